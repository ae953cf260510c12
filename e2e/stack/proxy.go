package stack

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Proxy stands between the plugins and the Vault of the cluster "default", and does with their requests what a
// network, a load balancer and a Vault in trouble do. A test lays faults with Break and takes them back with Mend; by
// itself the proxy passes everything on. To the plugins it is a cluster of its own name: one Vault can be in trouble in
// many ways at once, each for the tasks of one name.
type Proxy struct {
	Addr string // what the plugins' configuration has for an address
	CA   string // file with the certificate that it is trusted by; empty: it speaks plain HTTP/1.1, otherwise HTTP/2 too

	port   int
	vault  http.Handler
	certs  map[bool]tls.Certificate // whether it has expired
	mu     sync.Mutex
	server *http.Server
	faults []laid
	mended chan struct{} // closed by Mend, for those that hang
	hush   atomic.Pointer[hush]
}

// hush is the silence of connections while it lasts. It is not guarded by the proxy's mu, which who ends connections
// holds while they pass on their last words.
type hush struct {
	silence silence
	since   time.Time
	over    chan struct{} // closed at its end
}

// A Fault is what goes wrong with a request or, where answer is nil, with every connection.
type Fault struct {
	answer  func(exchange)
	expired bool    // connections find an expired certificate
	silent  silence // they pass nothing on; without that and expired they find nobody
}

// silence says which connections stay open and pass nothing on, in either direction.
type silence int

const (
	none silence = iota
	old          // those that are open
	all          // new ones too
)

type laid struct {
	fault Fault
	where []string
	met   int
}

// An exchange is one request that meets a fault.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	vault  http.Handler
	mended <-chan struct{}
}

// Faults of connections.
var (
	Refused = Fault{}              // nobody listens
	Expired = Fault{expired: true} // the certificate has, a year ago
	// what is open is never heard of again, as behind a firewall that has forgotten it; new connections work
	Silent  = Fault{silent: old}
	Dropped = Fault{silent: all} // every packet is lost
)

// Faults of Vault and of what may stand before it: the request does not reach Vault. The bodies are those of Vault
// 1.21.
var (
	Sealed = fails(http.StatusServiceUnavailable, `{"errors":["Vault is sealed"]}`+"\n")
	// http/handler.go, respondStandby
	Standby = fails(http.StatusServiceUnavailable, `{"errors":["no active Vault instance found"]}`+"\n")
	Broken  = fails(http.StatusInternalServerError, `{"errors":["1 error occurred:\n\t* internal error\n\n"]}`+"\n")
	Limited = fails(http.StatusTooManyRequests, `{"errors":["request path \"kv\": rate limit quota exceeded"]}`+"\n",
		"Retry-After", "1")
	Gateway = fails(http.StatusBadGateway, "<html><body><h1>502 Bad Gateway</h1></body></html>\n", "Content-Type",
		"text/html")
	Hung = Fault{answer: exchange.hang} // the request is taken, and never answered
	Held = Fault{answer: exchange.hold} // it is passed on when the fault is taken back, if its client still waits
)

// Faults of answers: Vault has done what was asked.
var (
	Reset     = Fault{answer: exchange.reset}    // the connection is reset in the middle of the body
	Truncated = Fault{answer: exchange.truncate} // half of the JSON, as if it were all
	Lost      = Fault{answer: exchange.lose}     // the connection ends without an answer
)

// Slow passes a request on after that long.
func Slow(by time.Duration) Fault {
	return Fault{answer: func(x exchange) {
		timer := time.NewTimer(by)
		defer timer.Stop()
		select {
		case <-timer.C:
			x.vault.ServeHTTP(x.w, x.r)
		case <-x.r.Context().Done():
		}
	}}
}

// Third has every third request meet a fault, as one ill node of three behind a load balancer does.
func Third(f Fault) Fault {
	var asked atomic.Int64
	return Fault{answer: func(x exchange) {
		if asked.Add(1)%3 == 0 {
			f.answer(x)
			return
		}
		x.vault.ServeHTTP(x.w, x.r)
	}}
}

// Break lays a fault; of several that concern a request, that meets the first. where are the beginnings of the requests
// that it concerns, as in "PUT /v1/sys/leases/"; none: all. A fault of connections concerns all, and ends those that
// are open, unless it is their silence.
func (p *Proxy) Break(f Fault, where ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, laid{fault: f, where: where})
	if f.silent != none {
		h := &hush{f.silent, time.Now(), make(chan struct{})}
		if before := p.hush.Load(); before != nil {
			h.over = before.over
		}
		p.hush.Store(h)
		return nil
	}
	if f.answer != nil {
		return nil
	}
	p.stop()
	if f.expired {
		return p.listen(true)
	}
	return nil
}

// Mend takes all faults back. Who hangs loses the connection; what was silent passes on what it held.
func (p *Proxy) Mend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	connections := slices.ContainsFunc(p.faults, func(l laid) bool {
		return l.fault.answer == nil &&
			l.fault.silent == none
	})
	p.faults = nil
	p.speak()
	close(p.mended)
	p.mended = make(chan struct{})
	if !connections {
		return nil
	}
	p.stop()
	return p.listen(false)
}

// Met returns how many requests have met one of the faults that are laid.
func (p *Proxy) Met() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.faults {
		n += l.met
	}
	return n
}

// newProxy returns a proxy of the Vault at an address, which takes no connections yet. It speaks TLS if there is a file
// for the certificate that it is trusted by.
func newProxy(vault, ca string) (*Proxy, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	to, err := url.Parse(vault)
	if err != nil {
		return nil, fmt.Errorf("parse address of Vault: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	p := &Proxy{Addr: fmt.Sprintf("http://127.0.0.1:%d", port), port: port, mended: make(chan struct{}),
		vault: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, ErrorLog: quiet}}
	if ca == "" {
		return p, nil
	}
	p.Addr, p.CA = fmt.Sprintf("https://127.0.0.1:%d", port), ca
	p.certs, err = certificates(ca)
	return p, err
}

// listen takes connections, as nobody did before.
func (p *Proxy) listen(expired bool) error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
	if err != nil {
		return fmt.Errorf("start proxy: %w", err)
	}
	l = listener{l, p}
	p.server = &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	if p.CA == "" {
		go p.server.Serve(l)
		return nil
	}
	p.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{p.certs[expired]}}
	go p.server.ServeTLS(l, "", "")
	return nil
}

// speak ends the silence of connections, if there is one.
func (p *Proxy) speak() {
	if h := p.hush.Swap(nil); h != nil {
		close(h.over)
	}
}

// stop ends every connection and takes no more.
func (p *Proxy) stop() {
	p.speak()
	if p.server != nil {
		_ = p.server.Close() // nothing is lost with it
		p.server = nil
	}
}

// listener is the proxy's, whose connections can be silent.
type listener struct {
	net.Listener
	proxy *Proxy
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return connection{c, l.proxy, time.Now()}, nil
}

// connection holds what it has read, or is to write, while it is silent. So it holds the news that its client has gone.
type connection struct {
	net.Conn
	proxy *Proxy
	since time.Time
}

func (c connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.proxy.pass(c.since)
	return n, err
}

func (c connection) Write(b []byte) (int, error) {
	c.proxy.pass(c.since)
	return c.Conn.Write(b)
}

// pass returns when a connection that is open since then may pass something on.
func (p *Proxy) pass(since time.Time) {
	if h := p.hush.Load(); h != nil && (h.silence == all || since.Before(h.since)) {
		<-h.over
	}
}

// ServeHTTP is for the server.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := exchange{w: w, r: r, vault: p.vault}
	if answer := p.meets(&x); answer != nil {
		answer(x)
		return
	}
	p.vault.ServeHTTP(w, r)
}

// meets returns what answers the request in Vault's place, nil when it is passed on.
func (p *Proxy) meets(x *exchange) func(exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x.mended = p.mended
	for i, l := range p.faults {
		if l.fault.silent != none {
			continue
		}
		concerns := len(l.where) == 0 || slices.ContainsFunc(l.where, func(prefix string) bool {
			return strings.HasPrefix(x.r.Method+" "+x.r.URL.Path, prefix)
		})
		if concerns {
			p.faults[i].met++
			return l.fault.answer
		}
	}
	return nil
}

// fails is a fault that answers in Vault's place; header has keys and values by turns.
func fails(status int, body string, header ...string) Fault {
	return Fault{answer: func(x exchange) {
		x.w.Header().Set("Content-Type", "application/json")
		for pair := range slices.Chunk(header, 2) {
			x.w.Header().Set(pair[0], pair[1])
		}
		x.w.WriteHeader(status)
		_, _ = io.WriteString(x.w, body)
	}}
}

func (x exchange) hang() {
	_, _ = io.Copy(io.Discard, x.r.Body) // The server sees only after the body that the client has gone.
	select {
	case <-x.mended:
	case <-x.r.Context().Done():
	}
	panic(http.ErrAbortHandler)
}

func (x exchange) hold() {
	select {
	case <-x.mended:
		x.vault.ServeHTTP(x.w, x.r)
	case <-x.r.Context().Done():
	}
}

func (x exchange) lose() {
	x.half()
	panic(http.ErrAbortHandler)
}

func (x exchange) truncate() {
	half := x.half()
	x.w.Header().Set("Content-Type", "application/json")
	_, _ = x.w.Write(half)
}

// reset promises more than it sends. Of HTTP/2 the stream is reset, by the server when the handler panics; of HTTP/1.1
// it is the connection, where it does not linger.
func (x exchange) reset() {
	half := x.half()
	x.w.Header().Set("Content-Type", "application/json")
	x.w.Header().Set("Content-Length", strconv.Itoa(2*len(half)+1))
	_, _ = x.w.Write(half)
	control := http.NewResponseController(x.w)
	_ = control.Flush()
	if conn, _, err := control.Hijack(); err == nil {
		if c, ok := conn.(connection); ok {
			_ = c.Conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
		return
	}
	panic(http.ErrAbortHandler)
}

// half has Vault do what is asked, and returns the first half of what it said.
func (x exchange) half() []byte {
	x.r.Header.Del("Accept-Encoding") // Half of a compressed body would be another fault.
	all := &said{header: http.Header{}}
	x.vault.ServeHTTP(all, x.r)
	return all.body.Bytes()[:all.body.Len()/2]
}

// said is an answer of Vault's that is not sent on as it is.
type said struct {
	header http.Header
	body   bytes.Buffer
}

func (s *said) Header() http.Header         { return s.header }
func (s *said) WriteHeader(int)             {}
func (s *said) Write(b []byte) (int, error) { return s.body.Write(b) }

// certificates makes a certificate of 127.0.0.1 that is good and one that has expired, by whether that is so, both
// signed by what it writes to the file ca.
func certificates(ca string) (map[bool]tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "proxy"},
		NotBefore: now.AddDate(-2, 0, 0), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	sign := func(c *x509.Certificate) ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, c, root, key.Public(), key)
	}
	der, err := sign(root)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, fmt.Errorf("write certificate: %w", err)
	}
	certs := map[bool]tls.Certificate{}
	for expired, ends := range map[bool]time.Time{false: root.NotAfter, true: now.AddDate(-1, 0, 0)} {
		leaf, err := sign(&x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: ends,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			return nil, fmt.Errorf("make certificate: %w", err)
		}
		certs[expired] = tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}
	}
	return certs, nil
}
