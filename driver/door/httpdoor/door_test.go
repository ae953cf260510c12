package httpdoor

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"nomad-driver-vault/driver/door"
)

// secret is the credential of the doors in tests.
const secret = "sk-live-0123456789abcdef"

// A bench is a door between a client and an upstream of the test.
type bench struct {
	*testing.T
	door   door.Door
	socket string // also its address over TCP
	plugin *plugin
	client *http.Client // by HTTP/1.1
	h2     *http.Client // by HTTP/2, from the first byte
}

// plugin is what the door asks and tells.
type plugin struct {
	mu     sync.Mutex
	calls  []door.Call
	unused []uint64
	asked  int
	reread func(generation uint64) error
}

func (p *plugin) Reread(_ context.Context, generation uint64) error {
	p.mu.Lock()
	p.asked++
	reread := p.reread
	p.mu.Unlock()
	if reread == nil {
		return errors.New("nothing newer")
	}
	return reread(generation)
}

func (p *plugin) Unused(generation uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unused = append(p.unused, generation)
}

func (p *plugin) Call(c door.Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, c)
}

func (p *plugin) isUnused(generation uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.unused, generation)
}

func (p *plugin) timesAsked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// last waits for the record of n calls, and returns the newest.
func (b *bench) last(n int) (line door.Call) {
	b.Helper()
	b.until("the call is recorded", func() bool {
		b.plugin.mu.Lock()
		defer b.plugin.mu.Unlock()
		if len(b.plugin.calls) >= n {
			line = b.plugin.calls[len(b.plugin.calls)-1]
		}
		return len(b.plugin.calls) >= n
	})
	return line
}

func (b *bench) until(what string, f func() bool) {
	b.Helper()
	must.Wait(b.T, wait.InitialSuccess(wait.BoolFunc(f), wait.Timeout(10*time.Second), wait.Gap(5*time.Millisecond)),
		must.Sprint(what))
}

// loopback lets a door connect to an upstream of the test.
var loopback = door.Dial{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

// specOf returns a door to an upstream that sets X-Api-Key.
func specOf(url string) door.Spec {
	return door.Spec{ID: "alloc/task/api", Name: "api", Dial: loopback, HeaderTime: 5 * time.Second,
		IdleTimeout: 5 * time.Second, Record: door.Record{Calls: door.RecordAll},
		HTTP: &door.HTTP{URL: url, Header: []string{"X-Api-Key"}}}
}

func credential(generation uint64, value string) *door.Credential {
	return &door.Credential{Generation: generation, Accessor: fmt.Sprint("accessor-", generation),
		Leases: []string{"lease"}, ReadAt: time.Now(),
		Header: map[string]string{"X-Api-Key": value}}
}

// open opens a door with a credential of the first generation.
func open(t *testing.T, upstream http.Handler, change ...func(*door.Spec)) *bench {
	t.Helper()
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	return openTo(t, server.URL, change...)
}

// openTLS is open with an upstream that has a certificate, and HTTP/2.
func openTLS(t *testing.T, upstream http.Handler, change ...func(*door.Spec)) *bench {
	t.Helper()
	server := httptest.NewUnstartedServer(upstream)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return openTo(t, server.URL, append(change, func(s *door.Spec) { s.HTTP.CAs = ca })...)
}

func openTo(t *testing.T, url string, change ...func(*door.Spec)) *bench {
	t.Helper()
	spec := specOf(url)
	for _, f := range change {
		f(&spec)
	}
	b := serve(t, spec)
	b.door.Use(credential(1, secret))
	return b
}

func serve(t *testing.T, spec door.Spec) *bench {
	t.Helper()
	b := &bench{T: t, plugin: &plugin{}}
	var err error
	b.door, err = New(spec, b.plugin)
	must.NoError(t, err)
	dir, err := os.MkdirTemp("", "door") // a test's own directory is too long for a socket
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b.socket = filepath.Join(dir, "s")
	b.listen("unix", b.socket)
	dial := func(context.Context, string, string) (net.Conn, error) { return b.connect() }
	h1, h2 := &http.Transport{DialContext: dial}, &http.Transport{DialContext: dial, Protocols: &http.Protocols{}}
	h2.Protocols.SetUnencryptedHTTP2(true)
	noRedirects := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	b.client = &http.Client{Transport: h1, CheckRedirect: noRedirects}
	b.h2 = &http.Client{Transport: h2, CheckRedirect: noRedirects}
	t.Cleanup(func() {
		h1.CloseIdleConnections()
		h2.CloseIdleConnections()
	})
	return b
}

// overTCP has clients connect over TCP from now on.
func (b *bench) overTCP() {
	b.client.CloseIdleConnections()
	b.h2.CloseIdleConnections()
	b.socket = b.listen("tcp", "127.0.0.1:0").String()
}

func (b *bench) connect() (net.Conn, error) {
	if strings.HasPrefix(b.socket, "/") {
		return net.Dial("unix", b.socket)
	}
	return net.Dial("tcp", b.socket)
}

// listen has the door serve an address until the test ends.
func (b *bench) listen(network, address string) net.Addr {
	l, err := net.Listen(network, address)
	must.NoError(b.T, err)
	served := make(chan error, 1)
	go func() { served <- b.door.Serve(l) }()
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		b.door.Close(ctx)
		must.NoError(b.T, <-served)
	})
	return l.Addr()
}

// An answer is a response that was read whole.
type answer struct {
	*http.Response
	body string
}

// byDoor reports whether the door itself has answered.
func (a answer) byDoor() bool { return a.Header.Get(errorHeader) != "" }

func (b *bench) do(client *http.Client, r *http.Request) answer {
	b.Helper()
	res, err := client.Do(r)
	must.NoError(b.T, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must.NoError(b.T, err)
	return answer{res, string(body)}
}

func (b *bench) get(path string, header ...string) answer {
	b.Helper()
	r := b.request(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return b.do(b.client, r)
}

func (b *bench) request(method, path string, body io.Reader) *http.Request {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), method, "http://door"+path, body)
	must.NoError(b.T, err)
	return r
}

// raw sends bytes as they are and returns the door's first answer.
func (b *bench) raw(request string) answer {
	b.Helper()
	c, r := b.dial()
	_, err := io.WriteString(c, request)
	must.NoError(b.T, err)
	res, err := http.ReadResponse(r, nil)
	must.NoError(b.T, err)
	body, _ := io.ReadAll(res.Body)
	return answer{res, string(body)}
}

// dial connects to the door until the test ends.
func (b *bench) dial() (net.Conn, *bufio.Reader) {
	b.Helper()
	c, err := b.connect()
	must.NoError(b.T, err)
	b.Cleanup(func() { c.Close() })
	must.NoError(b.T, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c, bufio.NewReader(c)
}

// echo answers with what has arrived: the request line, the headers in order, and the body.
func echo(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	rw.Header().Set("Content-Type", "text/plain")
	fmt.Fprintf(rw, "%s %s\nHost: %s\n", r.Method, r.RequestURI, r.Host)
	for _, name := range sortedNames(r.Header) {
		fmt.Fprintf(rw, "%s: %s\n", name, strings.Join(r.Header[name], " | "))
	}
	fmt.Fprintf(rw, "\n%s", body)
}

func sortedNames(h http.Header) []string {
	var all []string
	for name := range h {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func noScrub(s *door.Spec) { s.HTTP.Scrub = door.ScrubOff }
