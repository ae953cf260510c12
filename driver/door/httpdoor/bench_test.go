package httpdoor

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
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

	"github.com/shoenig/test/must"

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
	if res.StatusCode != http.StatusOK {
		b.Error(res.Status)
	}
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
	listen := socketsOf(b)
	all := map[string]side{"plain": plainProxy(b, listen("plain"), upstream.URL, nil)}
	for name, scrub := range map[string]door.Scrub{"door": door.ScrubFull, "door-unscrubbed": door.ScrubOff} {
		spec := specOf(upstream.URL)
		spec.HTTP.Scrub = scrub
		all[name] = doorSide(b, listen(name), spec, credential(1, secret))
	}
	return all
}

// socketsOf returns what listens at a socket of the benchmark.
func socketsOf(b *testing.B) (listen func(name string) net.Listener) {
	dir, _ := os.MkdirTemp("", "door")
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		must.NoError(b, err)
		return l
	}
}

// plainProxy is httputil's proxy, which has no rule and sets the headers.
func plainProxy(b *testing.B, l net.Listener, to string, headers http.Header) side {
	target, _ := url.Parse(to)
	plain := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		maps.Copy(r.Out.Header, headers)
	}, BufferPool: buffers, Transport: &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true}}}
	go plain.Serve(l)
	b.Cleanup(func() { _ = plain.Close() })
	return clientTo(l.Addr().String())
}

func doorSide(b *testing.B, l net.Listener, spec door.Spec, c *door.Credential) side {
	d, err := New(spec, silentPlugin{})
	must.NoError(b, err)
	d.Use(c)
	go func() { _ = d.Serve(l) }()
	b.Cleanup(func() { d.Close(context.Background()) })
	return clientTo(l.Addr().String())
}

// silentPlugin keeps nothing.
type silentPlugin struct{}

func (silentPlugin) Reread(context.Context, uint64) error { return context.Canceled }
func (silentPlugin) Unused(uint64)                        {}
func (silentPlugin) Call(door.Call)                       {}

// BenchmarkLatency is what a door adds to a small answer of an API, at 1,000 calls a second.
func BenchmarkLatency(b *testing.B) { addedLatency(b, sides(b), "/small", time.Millisecond, sideNames) }

// addedLatency makes a call at each interval through one side after the other, 250 at a turn. No call waits for another
// to end. It reports what the others take longer than the first, each percentile as the median of all turns: the
// machine does other things too.
func addedLatency(b *testing.B, all map[string]side, path string, interval time.Duration, names []string) {
	percents := []int{50, 99}
	took := map[string]map[int][]float64{}
	for b.Loop() {
		for range 4 {
			for _, name := range names {
				turn := paced(b, all[name], path, 250, interval)
				slices.Sort(turn)
				if took[name] == nil {
					took[name] = map[int][]float64{}
				}
				for _, percent := range percents {
					took[name][percent] = append(took[name][percent], turn[len(turn)*percent/100])
				}
			}
		}
	}
	for _, percent := range percents {
		first := median(took[names[0]][percent])
		b.ReportMetric(first, fmt.Sprintf("%s-p%d-µs", names[0], percent))
		for _, name := range names[1:] {
			b.ReportMetric(median(took[name][percent])-first, fmt.Sprintf("%s-added-p%d-µs", name, percent))
		}
	}
}

// paced begins a call at each interval and returns the µs that each has taken.
func paced(b *testing.B, s side, path string, calls int, interval time.Duration) []float64 {
	took := make([]float64, calls)
	var all sync.WaitGroup
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range calls {
		<-tick.C
		all.Go(func() { took[i] = float64(s.get(b, path).Microseconds()) })
	}
	all.Wait()
	return took
}

// BenchmarkThroughput is what a door leaves of a plain proxy's throughput, for answers of 1 KiB and of 1 MiB.
func BenchmarkThroughput(b *testing.B) {
	all := sides(b)
	for path, calls := range map[string]int{"/small": 200, "/large": 20} {
		b.Run(path[1:], func(b *testing.B) { throughput(b, all, path, calls, sideNames) })
	}
}

// throughput has eight clients call one side after the other, many times, and reports what of the first's throughput
// the others have: the median, since the machine does other things too.
func throughput(b *testing.B, all map[string]side, path string, calls int, names []string) {
	took := map[string][]float64{}
	for b.Loop() {
		for range 10 {
			for _, name := range names {
				took[name] = append(took[name], together(b, all[name], path, calls).Seconds())
			}
		}
	}
	for _, name := range names[1:] {
		var ratios []float64
		for i, seconds := range took[name] {
			ratios = append(ratios, took[names[0]][i]/seconds)
		}
		b.ReportMetric(median(ratios), name+"-of-"+names[0])
	}
	b.ReportMetric(float64(calls)/median(took[names[0]]), names[0]+"-calls/s")
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
