package vault_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
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

// wired opens a session over such a network.
func (b *bench) wired() (*wire, *vault.Session) {
	w := &wire{accept: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: b.Server, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(b.T)}}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.ServeTLS(w, "", "")
	}()
	b.Cleanup(func() {
		close(w.done)
		_ = server.Close()
		<-served
	})
	cluster := b.Cluster()
	cluster.Address, cluster.TLSSkipVerify, cluster.Dial = "https://127.0.0.1:8200", true, w.dial
	client, err := vault.NewClient(cluster, hclog.NewNullLogger())
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

// A firewall that forgets a connection tells nobody: without a ping its requests would hang until TCP gives up.
func TestConnectionThatWentDeafIsReplaced(t *testing.T) {
	bubble(t, func(b *bench) {
		w, s := b.wired()
		time.Sleep(10 * time.Minute)
		must.Eq(b, 1, w.each(func(p *pipe) { p.goDeaf() }), must.Sprint("one connection is enough for HTTP/2"))
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		must.Eq(b, "2", value(b.generation(s, 0, read("secret/a"))[0]))
		must.Eq(b, 2, w.each(func(*pipe) {}))
		must.Eq(b, 1, b.Logins())
		b.end(s)
	})
}

// The bound on connections counts those that live: what broke must not use it up.
func TestConnectionsThatBreakDoNotUseUpTheirNumber(t *testing.T) {
	bubble(t, func(b *bench) {
		w, s := b.wired()
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
