package session_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// wire is the network between a client and a server that speaks HTTP/2 over TLS, as Vault does.
type wire struct {
	accept chan net.Conn
	done   chan struct{}

	mu    sync.Mutex
	conns []*pipe // the client's ends
}

// pipe is a connection that can go deaf: nothing gets through any more and nobody is told.
type pipe struct {
	net.Conn
	deaf, closed chan struct{}
	goDeaf, shut func()
}

func (p *pipe) Write(b []byte) (int, error) {
	select {
	case <-p.deaf:
		return len(b), nil
	default:
		return p.Conn.Write(b)
	}
}

func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	select {
	case <-p.deaf:
		<-p.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (p *pipe) Close() error {
	p.shut()
	return p.Conn.Close()
}

func (w *wire) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p := &pipe{Conn: client, deaf: make(chan struct{}), closed: make(chan struct{})}
	p.goDeaf, p.shut = sync.OnceFunc(func() { close(p.deaf) }), sync.OnceFunc(func() { close(p.closed) })
	w.mu.Lock()
	w.conns = append(w.conns, p)
	w.mu.Unlock()
	w.accept <- server
	return p, nil
}

func (w *wire) each(do func(*pipe)) (dialled int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.conns {
		do(p)
	}
	return len(w.conns)
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case conn := <-w.accept:
		return conn, nil
	case <-w.done:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error   { return nil }
func (w *wire) Addr() net.Addr { return &net.TCPAddr{} }

// wired opens a session over such a network: https speaks HTTP/2, http does not.
func (b *bench) wired(speaks string) (*wire, *session.Session) {
	w := &wire{accept: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: b.Server, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(b.T)}}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if speaks == "https" {
			_ = server.ServeTLS(w, "", "")
		} else {
			_ = server.Serve(w)
		}
	}()
	b.Cleanup(func() {
		close(w.done)
		_ = server.Close()
		<-served
	})
	cluster := b.Cluster()
	cluster.Address, cluster.TLSSkipVerify, cluster.Dial = speaks+"://127.0.0.1:8200", true, w.dial
	client, err := session.NewCluster(cluster, hclog.NewNullLogger())
	must.NoError(b, err)
	b.Cleanup(client.Close)
	b.client = client
	b.Put("secret/a", map[string]any{"k": "1"})
	s := b.open()
	b.generation(s, 0, read("secret/a"))
	return w, s
}

func selfSigned(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A firewall that forgets its connections tells nobody: without a ping or a limit their requests would hang until TCP
// gives up. Without HTTP/2 a start leaves several of them.
func TestConnectionsThatWentDeafAreReplacedInSeconds(t *testing.T) {
	for name, speaks := range map[string]string{"HTTP/2": "https", "HTTP/1.1": "http"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				w, s := b.wired(speaks)
				mend := b.Break(vaulttest.Fault{Match: "GET secret/data/more", Slow: time.Second})
				r := s.Begin(false)
				var reading sync.WaitGroup
				for i := range 12 {
					b.Put(fmt.Sprintf("secret/more%d", i), map[string]any{"k": "1"})
					reading.Go(func() {
						_, _ = r.Read(b.Context(), vault.Request{Op: vault.Read, Path: fmt.Sprintf("secret/more%d", i)})
					})
				}
				reading.Wait()
				mend()
				polled := read("secret/a")
				polled.Every = time.Second
				b.answer(r, polled)
				r.Commit(0)
				time.Sleep(10 * time.Second)
				must.Eq(b, speaks == "https", w.each(func(p *pipe) { p.goDeaf() }) == 1,
					must.Sprint("one connection is enough for HTTP/2"))
				b.Put("secret/a", map[string]any{"k": "2"})
				time.Sleep(12 * time.Second)
				must.True(b, changed(s))
				must.Eq(b, "2", value(b.generation(s, 0, polled)[0]))
				must.Eq(b, 1, b.Logins())
				b.end(s)
			})
		})
	}
}

// An engine that hangs holds up nobody but who asks it.
func TestRequestsThatHangDoNotDelayOthers(t *testing.T) {
	for name, speaks := range map[string]string{"HTTP/2": "https", "HTTP/1.1": "http"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				_, s := b.wired(speaks)
				b.Break(vaulttest.Fault{Match: "GET database/creds/", Hang: true})
				ctx, cancel := context.WithCancel(b.Context())
				var hanging sync.WaitGroup
				for i := range 300 { // more than Go's HTTP/2 server takes on one connection
					hanging.Go(func() { _, _ = s.Begin(false).Read(ctx, read(fmt.Sprintf("database/creds/%d", i))) })
				}
				time.Sleep(time.Second)
				must.Eq(b, 300, b.Calls("GET database/creds/"))
				b.Put("secret/b", map[string]any{"k": "1"})
				began := time.Now()
				other := b.open()
				b.generation(other, 0, read("secret/b"))
				must.Less(b, time.Second, time.Since(began))
				cancel()
				hanging.Wait()
				must.NoError(b, other.Close(b.Context()))
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

// The bound on connections counts those that live: what broke must not use it up.
func TestConnectionsThatBreakDoNotUseUpTheirNumber(t *testing.T) {
	bubble(t, func(b *bench) {
		w, s := b.wired("https")
		for range 50 {
			w.each(func(p *pipe) { _ = p.Close() })
			reads := b.Calls("GET secret/")
			time.Sleep(time.Minute)
			synctest.Wait()
			must.Greater(b, reads, b.Calls("GET secret/"))
		}
		b.end(s)
	})
}
