package httpdoor

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nomad-driver-vault/driver/door"
)

// side is a proxy that a benchmark measures: clients that reach it through a unix socket.
type side struct{ client *http.Client }

func clientTo(socket string) side {
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	return side{&http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 100}}}
}

func (s side) get(b *testing.B, path string) time.Duration {
	begin := time.Now()
	res, err := s.client.Get("http://door" + path)
	if err != nil {
		b.Error(err)
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return time.Since(begin)
}

// sideNames are the sides in the order in which they are measured, the one first that the others are compared with.
var sideNames = []string{"plain", "door", "door-unscrubbed"}

// sides returns a door and httputil's proxy without any rule, to the same upstream.
func sides(b *testing.B) map[string]side {
	large := make([]byte, 1<<20)
	_, _ = rand.Read(large)
	small := make([]byte, 1<<10)
	upstream := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/octet-stream")
		if r.URL.Path == "/large" {
			_, _ = rw.Write(large)
			return
		}
		_, _ = rw.Write(small)
	}))
	b.Cleanup(upstream.Close)
	dir, _ := os.MkdirTemp("", "door")
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	listen := func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			b.Fatal(err)
		}
		return l
	}
	target, _ := url.Parse(upstream.URL)
	plain := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		BufferPool: buffers, Transport: &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true}}}
	go plain.Serve(listen("plain"))
	b.Cleanup(func() { _ = plain.Close() })
	all := map[string]side{"plain": clientTo(filepath.Join(dir, "plain"))}
	for name, scrub := range map[string]door.Scrub{"door": door.ScrubFull, "door-unscrubbed": door.ScrubOff} {
		spec := specOf(upstream.URL)
		spec.HTTP.Scrub = scrub
		d, err := New(spec, silentPlugin{})
		if err != nil {
			b.Fatal(err)
		}
		d.Use(credential(1, secret))
		go func() { _ = d.Serve(listen(name)) }()
		b.Cleanup(func() { d.Close(context.Background()) })
		all[name] = clientTo(filepath.Join(dir, name))
	}
	return all
}

// silentPlugin keeps nothing.
type silentPlugin struct{}

func (silentPlugin) Reread(context.Context, uint64) error { return context.Canceled }
func (silentPlugin) Unused(uint64)                        {}
func (silentPlugin) Call(door.Call)                       {}

// BenchmarkLatency makes 1,000 calls a second through one side after the other, a tenth of a second each, so that what
// disturbs one disturbs all. No call waits for another to end.
func BenchmarkLatency(b *testing.B) {
	all := sides(b)
	took := map[string][]float64{}
	for b.Loop() {
		for range 10 {
			for _, name := range sideNames {
				took[name] = append(took[name], paced(b, all[name], 100, time.Millisecond)...)
			}
		}
	}
	for _, percent := range []int{50, 99} {
		at := func(name string) float64 {
			slices.Sort(took[name])
			return took[name][len(took[name])*percent/100]
		}
		b.ReportMetric(at("plain"), fmt.Sprintf("plain-p%d-µs", percent))
		for _, name := range sideNames[1:] {
			b.ReportMetric(at(name)-at("plain"), fmt.Sprintf("%s-added-p%d-µs", name, percent))
		}
	}
}

// paced begins a call at each interval and returns the µs that each has taken.
func paced(b *testing.B, s side, calls int, interval time.Duration) []float64 {
	took := make([]float64, calls)
	var all sync.WaitGroup
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range calls {
		<-tick.C
		all.Go(func() { took[i] = float64(s.get(b, "/small").Microseconds()) })
	}
	all.Wait()
	return took
}

// BenchmarkThroughput has eight clients call one side after the other, many times, and reports what of the plain
// proxy's throughput the others have: the median, since the machine does other things too.
func BenchmarkThroughput(b *testing.B) {
	all := sides(b)
	for path, calls := range map[string]int{"/small": 200, "/large": 20} {
		b.Run(path[1:], func(b *testing.B) {
			took := map[string][]float64{}
			for b.Loop() {
				for range 10 {
					for _, name := range sideNames {
						took[name] = append(took[name], together(b, all[name], path, calls).Seconds())
					}
				}
			}
			for _, name := range sideNames[1:] {
				var ratios []float64
				for i, seconds := range took[name] {
					ratios = append(ratios, took["plain"][i]/seconds)
				}
				b.ReportMetric(median(ratios), name+"-of-plain")
			}
			b.ReportMetric(float64(calls)/median(took["plain"]), "plain-calls/s")
		})
	}
}

// together returns how long eight clients take for so many calls.
func together(b *testing.B, s side, path string, calls int) time.Duration {
	begin := time.Now()
	var all sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(calls))
	for range 8 {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				s.get(b, path)
			}
		})
	}
	all.Wait()
	return time.Since(begin)
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// BenchmarkIdleDoor is the memory of a door that nobody uses.
func BenchmarkIdleDoor(b *testing.B) {
	var doors []door.Door
	before := inUse()
	for b.Loop() {
		for range 100 {
			d, _ := New(specOf("https://api.example.com"), silentPlugin{})
			d.Use(credential(1, secret))
			doors = append(doors, d)
		}
	}
	b.ReportMetric(float64(inUse()-before)/float64(len(doors)), "B/door")
}
