package stack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
)

// A silent connection stays open and answers nobody until the fault is taken back; what is opened anew works, unless
// every packet is lost.
func TestSilence(t *testing.T) {
	for name, secure := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			p, client := proxied(t, secure)
			must.Eq(t, name, get(t, client, p, time.Minute))
			must.NoError(t, p.Break(Silent))
			must.Eq(t, "", get(t, client, p, 300*time.Millisecond))
			client.CloseIdleConnections()
			_, other := fresh(t, p)
			must.Eq(t, name, get(t, other, p, time.Minute))
			must.NoError(t, p.Break(Dropped))
			must.Eq(t, "", get(t, other, p, 300*time.Millisecond))
			_, another := fresh(t, p)
			must.Eq(t, "", get(t, another, p, 300*time.Millisecond))
			must.NoError(t, p.Mend())
			must.Eq(t, name, get(t, client, p, time.Minute))
		})
	}
}

func TestThird(t *testing.T) {
	p, client := proxied(t, false)
	must.NoError(t, p.Break(Third(Sealed)))
	var bad []int
	for i := range 9 {
		if get(t, client, p, time.Minute) != "HTTP/1.1" {
			bad = append(bad, i)
		}
	}
	must.Eq(t, []int{2, 5, 8}, bad)
}

// proxied returns a proxy of a server that says which protocol the proxy was asked by, and a client of it.
func proxied(t *testing.T, secure bool) (*Proxy, *http.Client) {
	t.Helper()
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	t.Cleanup(vault.Close)
	p, err := newProxy(vault.URL, map[bool]string{true: filepath.Join(t.TempDir(), "ca.pem")}[secure])
	must.NoError(t, err)
	must.NoError(t, p.listen(false))
	t.Cleanup(p.stop)
	t.Cleanup(func() { must.NoError(t, p.Mend()) })
	return fresh(t, p)
}

// fresh returns the proxy, and a client that has no connection yet.
func fresh(t *testing.T, p *Proxy) (*Proxy, *http.Client) {
	t.Helper()
	transport := &http.Transport{ForceAttemptHTTP2: true}
	if p.CA != "" {
		ca, err := os.ReadFile(p.CA)
		must.NoError(t, err)
		roots := x509.NewCertPool()
		must.True(t, roots.AppendCertsFromPEM(ca))
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return p, &http.Client{Transport: transport}
}

// get returns the protocol of a good answer that comes within that time; empty: there is none.
func get(t *testing.T, client *http.Client, p *Proxy, within time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Addr, nil)
	must.NoError(t, err)
	answer, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
		return ""
	}
	return answer.Proto[:len("HTTP/2")] + map[bool]string{true: ".1"}[answer.ProtoMajor == 1]
}

// Not even a session that is open already gets an answer while the server hangs.
func TestPostgresHangs(t *testing.T) {
	need.Root(t)
	if !HavePostgres() {
		need.Skip(t, "PostgreSQL")
	}
	dir, err := os.MkdirTemp("", "ndv")
	must.NoError(t, err)
	must.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	s := &Stack{Dir: dir, options: Options{Postgres: true, Log: t.Logf}}
	must.NoError(t, os.Mkdir(s.path("tmp"), 0o777))
	must.NoError(t, s.startPostgres(t.Context()))
	t.Cleanup(func() { must.NoError(t, s.Postgres.Stop()) })
	_, err = s.Postgres.Users(t.Context())
	must.NoError(t, err)
	must.NoError(t, s.Postgres.Pause())
	answered := make(chan error, 1)
	go func() {
		_, err := s.Postgres.Users(context.Background())
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Error("it answers", err)
		answered <- err
	case <-time.After(300 * time.Millisecond):
	}
	must.NoError(t, s.Postgres.Resume())
	must.NoError(t, <-answered)
}
