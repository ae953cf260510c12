package httpdoor

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"time"

	"nomad-driver-vault/driver/door"
)

// A generation is a credential, and the calls that use it.
type generation struct {
	secret    *door.Credential
	unusable  error     // nil: calls may use it
	transport transport // with its client certificate

	readAt  time.Time // guarded by httpDoor.mu, as is calls
	calls   int       // in flight
	matched sync.Once
	matcher *matcher
}

// forms returns what of the generation must not be read in an answer. It is made at the first call: most doors are
// never used with most generations.
func (g *generation) forms(d *httpDoor) *matcher {
	g.matched.Do(func() {
		if d.rules.scrub != door.ScrubOff {
			g.matcher = newMatcher(d.kind.secrets(g.secret))
		}
	})
	return g.matcher
}

// Use implements door.Door.
func (d *httpDoor) Use(c *door.Credential) {
	d.mu.Lock()
	old := d.current
	switch {
	case c == nil:
		d.current = nil
	case old != nil && c.Generation < old.secret.Generation:
		d.mu.Unlock()
		return // a message that was overtaken
	case old != nil && c.Generation == old.secret.Generation:
		old.readAt = c.ReadAt
		d.mu.Unlock()
		return
	default:
		d.current = d.newGeneration(c)
	}
	unused := old != nil && old.calls == 0
	d.mu.Unlock()
	if unused {
		d.plugin.Unused(old.secret.Generation)
	}
}

func (d *httpDoor) newGeneration(c *door.Credential) *generation {
	g := &generation{secret: c, readAt: c.ReadAt, unusable: d.kind.usable(c)}
	if g.unusable == nil {
		g.transport, g.unusable = d.dialled.with(c)
	}
	return g
}

// The reasons for which a door has no credential for a call.
var (
	errNone   = errors.New("the door has no credential yet, or lost it")
	errBroken = errors.New("the credential cannot be used")
	errStale  = errors.New("the credential could not be made anew for too long")
	errClosed = errors.New("the door is being closed")
)

// begin counts a call and returns what it uses, until release is called.
func (d *httpDoor) begin() (*generation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.current
	switch {
	case d.closed:
		return nil, errClosed
	case g == nil:
		return nil, errNone
	case g.unusable != nil:
		return nil, errBroken
	case d.spec.Stale > 0 && time.Since(g.readAt) > d.spec.Stale:
		return nil, errStale
	}
	g.calls++
	d.calls.Add(1)
	return g, nil
}

func (d *httpDoor) release(g *generation) {
	d.mu.Lock()
	g.calls--
	d.calls.Done()
	unused := g.calls == 0 && g != d.current
	d.mu.Unlock()
	if unused {
		d.plugin.Unused(g.secret.Generation)
	}
}

// A reread is one question to the plugin for all calls that a generation was denied to.
type reread struct {
	generation uint64
	ended      time.Time // guarded by httpDoor.mu; zero: not yet
	done       chan struct{}
}

// newer waits for a generation after the given one, for which the plugin is asked once in a while. It reports whether
// there is one.
func (d *httpDoor) newer(ctx context.Context, than uint64) bool {
	d.mu.Lock()
	if d.current == nil || d.current.secret.Generation != than {
		defer d.mu.Unlock()
		return d.current != nil && d.current.secret.Generation > than
	}
	r := d.rereading
	if r == nil || r.generation != than || !r.ended.IsZero() && time.Since(r.ended) > rereadEvery {
		r = &reread{generation: than, done: make(chan struct{})}
		d.rereading = r
		go d.reread(r)
	}
	d.mu.Unlock()
	select {
	case <-r.done:
	case <-ctx.Done():
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current != nil && d.current.secret.Generation > than
}

func (d *httpDoor) reread(r *reread) {
	defer close(r.done)
	ctx, cancel := context.WithTimeout(d.ctx, rereadWithin)
	defer cancel()
	_ = d.plugin.Reread(ctx, r.generation) // nothing newer: the upstream's answer goes to the task as it is
	d.mu.Lock()
	defer d.mu.Unlock()
	r.ended = time.Now()
}

// An upstream makes the connections of a door. Generations with the same client certificate share them.
type upstream struct {
	dial  door.Dial
	tls   *tls.Config
	idle  time.Duration
	conns int

	mu  sync.Mutex
	own transport // with the newest certificate
	pem string    // of that
}

// A transport sends a request as the client asked for: HTTP/2 without TLS only for gRPC, which has nothing else.
type transport struct{ usual, grpc *http.Transport }

// with returns the transport for a credential's certificate. Connections with an older certificate end when the calls
// on them do.
func (u *upstream) with(c *door.Credential) (transport, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	pem := string(c.CertPEM)
	if u.own.usual != nil && u.pem == pem {
		return u.own, nil
	}
	config := u.tls.Clone()
	if len(c.CertPEM) > 0 {
		pair, err := tls.X509KeyPair(c.CertPEM, c.KeyPEM)
		if err != nil {
			return transport{}, errors.New("client certificate and key do not fit") // an error could show the key
		}
		config.Certificates = []tls.Certificate{pair}
	}
	u.own.close()
	u.own, u.pem = transport{usual: u.newTransport(config), grpc: u.newTransport(config)}, pem
	u.own.usual.ForceAttemptHTTP2 = true
	u.own.grpc.Protocols = &http.Protocols{}
	u.own.grpc.Protocols.SetHTTP2(true)
	u.own.grpc.Protocols.SetUnencryptedHTTP2(true)
	return u.own, nil
}

func (u *upstream) newTransport(config *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:            u.dial.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		DisableCompression:     true, // the client asks for what it understands
		MaxIdleConns:           u.conns,
		MaxIdleConnsPerHost:    u.conns,
		MaxConnsPerHost:        u.conns,
		IdleConnTimeout:        u.idle,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: maxUnread, SendPingTimeout: 30 * time.Second,
			PingTimeout: 15 * time.Second, WriteByteTimeout: time.Minute},
	}
}

// of returns the transport for a request.
func (t transport) of(r *http.Request) *http.Transport {
	if r.URL.Scheme == "http" && r.ProtoMajor == 2 && isGRPC(r.Header) {
		return t.grpc
	}
	return t.usual
}

func (t transport) close() {
	if t.usual != nil {
		t.usual.CloseIdleConnections()
		t.grpc.CloseIdleConnections()
	}
}

func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.own.close()
}
