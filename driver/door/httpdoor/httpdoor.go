// Package httpdoor is the door to an HTTP API, and to Vault's. A task's request is judged, gets the credential, and
// goes to the one upstream of the door.
//
// # What it refuses, and what it takes away
//
// Path, query and form of a request are judged as they were written, and sent on byte for byte; what two servers could
// understand in two ways is refused. The task's own Authorization and Cookie headers, and the headers and parameters
// that the credential sets in every spelling, are removed. So is Set-Cookie of an answer: a session that the upstream
// opens for the credential is one more credential. No redirect is followed.
//
// # What of an upstream's answer is unreadable
//
// With scrub = "full" the credential is made unreadable in headers, trailers, bodies and websockets, plain and in
// the usual encodings. That helps against an API that repeats what it was sent. It is no defence against an upstream
// that works with the task: anything else that can be computed from the credential passes. The limits:
//
//   - A secret of less than 8 bytes is not looked for: it would be found in any text by chance.
//   - An answer that is compressed although the door asked for none is refused, also one of gRPC.
//   - A beginning of a secret can be read if the upstream itself cuts the secret off there.
//   - Of a websocket's messages, one that has the secret in two frames passes.
//
// # Times and bounds
//
// A request's header may have 32 KiB. In HTTP/1 a larger one, or what is no request at all, gets an answer of the
// door's own. In HTTP/2 net/http answers or ends such a stream by itself: the answer does not say that it is the
// door's, and the record has no line.
//
// MaxConns bounds the calls at a time too: in HTTP/2, where a connection has many, there may be 300 more. Others get
// 429. Of an upstream's answer in HTTP/2 that nobody reads, 256 KiB are taken: over a long way that bounds its speed.
//
// A client must take and give bytes within IdleTimeout. An upstream that is silent is waited for as long as the client
// waits: it is the client that knows how long an answer may take, and a silent upstream costs the task's own door only.
package httpdoor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"nomad-driver-vault/driver/door"
)

const (
	maxHeader    = 32 << 10  // bytes of a request's or an answer's headers
	maxStreams   = 100       // of an HTTP/2 connection
	moreStreams  = 300       // calls at a time of all connections, beside one for each connection that may be
	maxUnread    = 256 << 10 // bytes of an answer's body in HTTP/2 that wait until the client takes them
	usualConns   = 100       // if the Spec has no bound
	maxReplay    = 64 << 10  // bytes of a body that are kept until the upstream has accepted the credential
	rereadEvery  = 5 * time.Second
	rereadWithin = 10 * time.Second
)

// httpDoor is a door to an API or to Vault: what differs is its kind.
type httpDoor struct {
	spec    door.Spec
	plugin  door.Plugin
	kind    kind
	rules   rules
	conns   conns
	limiter *rate.Limiter
	server  *http.Server
	dialled *upstream

	ctx    context.Context // of all calls
	cancel context.CancelFunc

	mu        sync.Mutex
	current   *generation // nil: no credential
	closed    bool
	calls     sync.WaitGroup // in flight
	rereading *reread

	total, inFlight, refused, failed, sent, received, sampled atomic.Int64
}

// A kind is what a door to an API and one to Vault judge and do in ways of their own.
type kind interface {
	// judge returns what a request asks for, and refuses what the door's rules are against. It may change headers.
	judge(r *http.Request) (target, error)
	// usable says what is missing of a credential.
	usable(c *door.Credential) error
	secrets(c *door.Credential) []string
	// add sets the credential in a request that is about to be sent, which has none or an older one.
	add(out *http.Request, t target, c *door.Credential)
	// denied reports whether the upstream did not accept the credential.
	denied(res *http.Response) bool
	// elsewhere returns the origin to which the door itself must send the request again; nil: the answer is final.
	elsewhere(out *http.Request, res *http.Response) *origin
}

// rules are what all kinds of doors have.
type rules struct {
	origin  origin
	scrub   door.Scrub
	headers names // that the door sets; the task's own are removed
	tls     *tls.Config
}

// New returns a door that refuses all calls until Use was called. An error names the field of the door's block.
func New(spec door.Spec, plugin door.Plugin) (door.Door, error) {
	d := &httpDoor{spec: spec, plugin: plugin}
	if d.spec.MaxConns == 0 {
		d.spec.MaxConns = usualConns
	}
	if err := d.toUpstream(); err != nil {
		return nil, err
	}
	d.conns.max, d.conns.room.L, d.conns.unreadable = d.spec.MaxConns, &d.conns.mu, d.unreadable
	d.dialled = &upstream{dial: spec.Dial, tls: d.rules.tls, idle: spec.IdleTimeout, conns: d.spec.MaxConns}
	if spec.Rate > 0 {
		d.limiter = rate.NewLimiter(rate.Limit(spec.Rate), max(1, spec.Burst))
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.server = d.newServer()
	return d, nil
}

// toUpstream has the door be for what the Spec says.
func (d *httpDoor) toUpstream() error {
	switch {
	case d.spec.Vault != nil:
		return d.toVault(d.spec.Vault)
	case d.spec.HTTP != nil:
		return d.toAPI(d.spec.HTTP)
	}
	return errors.New("the door is not one to an HTTP API or to Vault")
}

func (d *httpDoor) toAPI(spec *door.HTTP) error {
	a, err := newAPI(spec)
	if err != nil {
		return err
	}
	d.kind = a
	d.rules = rules{origin: a.origin, scrub: cmp.Or(spec.Scrub, door.ScrubFull), headers: namesOf(spec.Header...)}
	d.rules.tls, err = trust(spec.CAs, "")
	return err
}

func (d *httpDoor) toVault(spec *door.Vault) error {
	v, err := newVault(spec)
	if err != nil {
		return err
	}
	d.kind = v
	d.rules = rules{origin: v.origin, scrub: door.ScrubFull, headers: namesOf("X-Vault-Token", "X-Vault-Namespace")}
	d.rules.tls, err = trust(spec.CAs, spec.TLSServerName)
	return err
}

// trust returns how the upstream proves who it is. Without certificates it is by the host's.
func trust(pem []byte, serverName string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if len(pem) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("ca_pem: there is no certificate in it")
		}
	}
	return config, nil
}

// silent is for what net/http would log of a task's or an upstream's mistakes.
var silent = log.New(io.Discard, "", 0)

func (d *httpDoor) newServer() *http.Server {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // to a client that begins with it
	streams := &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: d.spec.IdleTimeout}
	return &http.Server{
		Handler:                      d,
		ReadHeaderTimeout:            d.spec.HeaderTime,
		IdleTimeout:                  d.spec.IdleTimeout,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     silent,
		Protocols:                    protocols,
		HTTP2:                        streams,
		BaseContext:                  func(net.Listener) context.Context { return d.ctx },
		ConnContext:                  withConn,
		ConnState:                    state,
	}
}

// Close implements door.Door.
func (d *httpDoor) Close(ctx context.Context) {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.conns.close()
	_ = d.server.Shutdown(ctx) // its error is that ctx is over: what is left is cut off below
	done := make(chan struct{})
	go func() { d.calls.Wait(); close(done) }() // those that are not HTTP any more, which Shutdown does not know
	select {
	case <-done:
	case <-ctx.Done():
	}
	d.cancel()
	_ = d.server.Close()
	<-done
	d.Use(nil)
	d.dialled.close()
}

// Counters implements door.Door.
func (d *httpDoor) Counters() door.Counters {
	return door.Counters{
		Connections: d.conns.count(),
		Calls:       d.total.Load(),
		InFlight:    d.inFlight.Load(),
		Refused:     d.refused.Load(),
		Failed:      d.failed.Load(),
		Sent:        d.sent.Load(),
		Received:    d.received.Load(),
	}
}
