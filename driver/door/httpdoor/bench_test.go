package httpdoor

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
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
		b.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return time.Since(begin)
}

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

// BenchmarkLatency makes a call through each side in turn, 1,000 a second, so that what disturbs one disturbs all.
func BenchmarkLatency(b *testing.B) {
	all := sides(b)
	took := map[string][]time.Duration{}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for b.Loop() {
		for name, s := range all {
			<-tick.C
			took[name] = append(took[name], s.get(b, "/"))
		}
	}
	for name, d := range took {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), name+"-p99-µs")
	}
}

func BenchmarkThroughput(b *testing.B) {
	all := sides(b)
	for _, path := range []string{"/small", "/large"} {
		for _, name := range []string{"plain", "door", "door-unscrubbed"} {
			b.Run(name+path, func(b *testing.B) {
				b.SetBytes(map[string]int64{"/small": 1 << 10, "/large": 1 << 20}[path])
				b.ReportAllocs()
				b.SetParallelism(8)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						all[name].get(b, path)
					}
				})
			})
		}
	}
}

// BenchmarkIdleDoor is the memory of a door that nobody uses.
func BenchmarkIdleDoor(b *testing.B) {
	var doors []door.Door
	before := inUse()
	for b.Loop() {
		d, _ := New(specOf("https://api.example.com"), silentPlugin{})
		d.Use(credential(1, secret))
		doors = append(doors, d)
	}
	b.ReportMetric(float64(inUse()-before)/float64(len(doors)), "B/door")
}
