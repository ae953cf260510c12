package httpdoor

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

const soon = 300 * time.Millisecond

func impatient(s *door.Spec) { s.HeaderTime, s.IdleTimeout = soon, soon }

// TestAClientThatDoesNothingIsEnded wherever it stops, and another one is served meanwhile.
func TestAClientThatDoesNothingIsEnded(t *testing.T) {
	endless := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		piece := make([]byte, 64<<10)
		for {
			if _, err := rw.Write(piece); err != nil {
				return
			}
		}
	})
	for name, request := range map[string]string{
		"before a request":        "",
		"in the request line":     "GET /a",
		"in a header":             "GET /a HTTP/1.1\r\nHost: d\r\nX-A: ",
		"in a body":               "POST /a HTTP/1.1\r\nHost: d\r\nContent-Length: 10\r\n\r\nabc",
		"in a chunk":              "POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\na\r\nabc",
		"in a body to be refused": "TRACE /a HTTP/1.1\r\nHost: d\r\nContent-Length: 10\r\n\r\nabc",
		"in the answer":           "GET /a HTTP/1.1\r\nHost: d\r\n\r\n",
		"in HTTP/2":               "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"between requests":        "GET /quick HTTP/1.1\r\nHost: d\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, endless, impatient)
			c, _ := b.dial()
			_, err := io.WriteString(c, request)
			must.NoError(t, err)
			b.until("it is connected", func() bool { return b.door.Counters().Connections >= 1 })
			must.Eq(t, 200, b.get("/quick").StatusCode)
			b.client.CloseIdleConnections()
			b.until("it is ended", func() bool {
				now := b.door.Counters()
				return now.Connections == 0 && now.InFlight == 0
			})
		})
	}
}

// TestAStreamThatIsNotReadIsEnded: over HTTP/2 the connection goes on, and only the stream stands still.
func TestAStreamThatIsNotReadIsEnded(t *testing.T) {
	b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" {
			_, _ = io.Copy(rw, neverEnding('x'))
		}
	}), impatient)
	res, err := b.h2.Do(b.request("GET", "/endless", nil))
	must.NoError(t, err)
	defer res.Body.Close()
	b.until("it is ended", func() bool {
		must.Eq(t, 200, b.do(b.h2, b.request("GET", "/quick", nil)).StatusCode)
		return b.door.Counters().InFlight == 0
	})
}

type neverEnding byte

func (n neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(n)
	}
	return len(p), nil
}

// TestWhoMakesProgressMayTakeLonger: a slow client, and an upstream that is silent for longer than a client may be.
func TestWhoMakesProgressMayTakeLonger(t *testing.T) {
	everyWay(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		for range 2 {
			fmt.Fprint(rw, len(body), "\n")
			_ = http.NewResponseController(rw).Flush()
			<-time.After(2 * soon) // silence
		}
	}), func(b *bench, client *http.Client) {
		begin := time.Now()
		a := b.do(client, b.request("POST", "/", &slowly{rest: 10}))
		must.Eq(b.T, "10\n10\n", a.body)
		must.Greater(b.T, 4*soon, time.Since(begin))
	}, impatient)
}

// slowly is a body of single bytes, one every now and then.
type slowly struct{ rest int }

func (s *slowly) Read(p []byte) (int, error) {
	if s.rest == 0 {
		return 0, io.EOF
	}
	<-time.After(soon / 5)
	s.rest--
	return copy(p, "x"), nil
}

// TestANewConnectionTakesThePlaceOfAnIdleOne, and waits if none is idle.
func TestANewConnectionTakesThePlaceOfAnIdleOne(t *testing.T) {
	release := make(chan struct{})
	b := open(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
	}), func(s *door.Spec) { s.MaxConns, s.IdleTimeout = 2, time.Minute })
	ask := func(path string) (net.Conn, *bufio.Reader) {
		c, r := b.dial()
		_, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: d\r\n\r\n")
		must.NoError(t, err)
		return c, r
	}
	answered := func(r *bufio.Reader) {
		t.Helper()
		res, err := http.ReadResponse(r, nil)
		must.NoError(t, err)
		must.Eq(t, 200, res.StatusCode)
	}
	idle := func(n int) {
		b.until("the connections are idle", func() bool {
			of := &b.door.(*httpDoor).conns
			of.mu.Lock()
			defer of.mu.Unlock()
			return of.idle.Len() == n
		})
	}
	_, first := ask("/")
	answered(first)
	idle(1)
	for range 5 {
		_, r := ask("/")
		answered(r)
		idle(2)
	}
	_, err := first.ReadByte()
	must.ErrorIs(t, err, io.EOF)
	must.Eq(t, 2, b.door.Counters().Connections)

	_, slow := ask("/slow")
	_, slower := ask("/slow")
	b.until("both are under way", func() bool { return b.door.Counters().InFlight == 2 })
	_, waiting := ask("/")
	must.Eq(t, 2, b.door.Counters().Connections)
	close(release)
	answered(slow)
	answered(slower)
	answered(waiting)
}

// scarce is a listener of a process that has no file descriptors left for a while.
type scarce struct {
	net.Listener
	failures atomic.Int32
}

func (s *scarce) Accept() (net.Conn, error) {
	if s.failures.Add(1) <= 3 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	c, err := s.Listener.Accept()
	return known{c}, err
}

// known is a connection of which the listener knows who has made it.
type known struct{ net.Conn }

func (known) Peer() door.Peer { return door.Peer{PID: 4711, UID: 1000} }

// TestAListenerOutlivesAShortageOfFiles, and the record says who has called, over each protocol.
func TestAListenerOutlivesAShortageOfFiles(t *testing.T) {
	b := open(t, http.HandlerFunc(echo))
	l, err := net.Listen("unix", filepath.Join(filepath.Dir(b.socket), "other"))
	must.NoError(t, err)
	go func() { _ = b.door.Serve(&scarce{Listener: l}) }()
	b.socket = l.Addr().String()
	for i, client := range []*http.Client{b.client, b.h2} {
		must.Eq(t, 200, b.do(client, b.request("GET", "/", nil)).StatusCode)
		line := b.last(i + 1)
		must.Eq(t, 4711, line.PID)
		must.Eq(t, 1000, *line.UID)
	}
}

// inUse returns the memory of the process that is in use, with stacks.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestMemoryOfIdleDoorsAndConnections: 8 KiB for a door, and 32 KiB for a connection that has made a call.
func TestMemoryOfIdleDoorsAndConnections(t *testing.T) {
	before := inUse()
	doors := make([]door.Door, 1000)
	for i := range doors {
		doors[i], _ = New(specOf("https://api.example.com"), &plugin{})
		doors[i].Use(credential(1, secret))
	}
	each := (inUse() - before) / uint64(len(doors))
	t.Log("bytes of an idle door:", each)
	must.Less(t, 8<<10, each)
	runtime.KeepAlive(doors)

	b := open(t, http.HandlerFunc(echo), func(s *door.Spec) { s.MaxConns, s.IdleTimeout = 1000, time.Minute })
	var conns []net.Conn
	before = inUse()
	for range 1000 {
		c, r := b.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: d\r\n\r\n")
		must.NoError(t, err)
		res, err := http.ReadResponse(r, nil)
		must.NoError(t, err)
		_, _ = io.Copy(io.Discard, res.Body)
		conns = append(conns, c)
	}
	b.until("all are idle", func() bool { return b.door.Counters().InFlight == 0 })
	each = (inUse() - before) / uint64(len(conns))
	t.Log("bytes of an idle connection, with the test's own end:", each)
	must.Less(t, 32<<10, each)
	must.Eq(t, 1000, b.door.Counters().Connections)
}

// TestNeighboursOfACrowdedDoor: a thousand clients of one door are idle, or stuck in a body without end, in either
// direction. That costs little memory, and the calls of another door take as long as before.
func TestNeighboursOfACrowdedDoor(t *testing.T) {
	const idle, stuck = 980, 10
	over := make(chan struct{})
	crowded := open(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost: // nobody reads the body
			<-over
		case http.MethodPut: // nobody reads the answer
			_, _ = io.Copy(rw, neverEnding('x'))
		}
	}), func(s *door.Spec) { s.MaxConns, s.IdleTimeout = idle+2*stuck, time.Minute })
	t.Cleanup(func() { close(over) })
	neighbour := open(t, http.HandlerFunc(echo))
	alone, before := medianOf(neighbour), inUse()
	for range idle {
		c, r := crowded.dial()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: d\r\n\r\n")
		_, err := http.ReadResponse(r, nil)
		must.NoError(t, err)
	}
	for range stuck {
		c, _ := crowded.dial()
		_, _ = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: d\r\n\r\n")
		c, _ = crowded.dial()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n")
		go func() { _, _ = io.Copy(c, neverEnding('x')) }()
	}
	var bytes int64
	crowded.until("all are stuck", func() bool {
		was, now := bytes, crowded.door.Counters()
		bytes = now.Sent + now.Received
		return now.InFlight == 2*stuck && bytes > 0 && bytes == was
	})
	must.Eq(t, idle+2*stuck, crowded.door.Counters().Connections)
	each := (inUse() - before) / (idle + 2*stuck)
	beside := medianOf(neighbour)
	t.Log("bytes of a client of the crowded door:", each, "a call of its neighbour:", alone, "and beside it:", beside)
	must.Less(t, 32<<10, each)
	must.Less(t, 3*alone+time.Millisecond, beside)
}

// medianOf returns how long most calls of a door take.
func medianOf(b *bench) time.Duration {
	took := make([]time.Duration, 300)
	for i := range took {
		begin := time.Now()
		must.Eq(b.T, 200, b.get("/").StatusCode)
		took[i] = time.Since(begin)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// certificate makes a client certificate of a name.
func certificate(t *testing.T, name string) (cert, key []byte) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// TestTheClientCertificateIsThatOfTheGeneration, also where a connection with the older one is still open.
func TestTheClientCertificateIsThatOfTheGeneration(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		release := make(chan struct{})
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprint(rw, r.TLS.PeerCertificates[0].Subject.CommonName)
			_ = http.NewResponseController(rw).Flush()
			if r.URL.Path == "/slow" {
				<-release
			}
		}))
		server.EnableHTTP2 = h2
		server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		server.StartTLS()
		t.Cleanup(server.Close)
		b := openTo(t, server.URL, func(s *door.Spec) {
			s.HTTP.CAs = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
			s.HTTP.Header, s.HTTP.ClientCert = nil, true
		})
		use := func(generation uint64, name string) {
			c := &door.Credential{Generation: generation, ReadAt: time.Now()}
			if name != "" {
				c.CertPEM, c.KeyPEM = certificate(t, name)
			}
			b.door.Use(c)
		}
		use(2, "")
		must.Eq(t, 503, b.get("/").StatusCode)
		use(3, "first")
		must.Eq(t, "first", b.get("/").body)
		slow, err := b.client.Do(b.request("GET", "/slow", nil))
		must.NoError(t, err)
		use(4, "second")
		for range 3 {
			must.Eq(t, "second", b.get("/").body)
		}
		close(release)
		body, err := io.ReadAll(slow.Body)
		must.NoError(t, err)
		must.Eq(t, "first", string(body))
		must.Eq(t, "second", b.get("/").body)
	}
}

func TestACredentialDoesNotPrintItself(t *testing.T) {
	must.StrNotContains(t, fmt.Sprintf("%v %+v %#v", *credential(1, secret), credential(1, secret), credential(1,
		secret)), secret)
}
