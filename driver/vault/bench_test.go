package vault_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// BenchmarkIdleSessions holds 1,000 sessions with a lease and a KV secret each, and reports what one costs while it waits.
func BenchmarkIdleSessions(b *testing.B) {
	const tasks = 1000
	for b.Loop() {
		server := vaulttest.New(b)
		server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
		server.Put("secret/a", map[string]any{"username": "app", "password": "0123456789abcdef"})
		before := runtime.NumGoroutine()
		client, err := vault.NewClient(server.Cluster(), hclog.NewNullLogger())
		must.NoError(b, err)
		sessions := make([]*vault.Session, tasks)
		for i := range sessions {
			sessions[i] = openOne(b, client, server)
		}
		client.Close() // the idle connections, of which sixteen serve all
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+1 && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		b.ReportMetric(float64(runtime.NumGoroutine()-before)/tasks, "goroutines/session")
		full := heap()
		runtime.KeepAlive(sessions)
		runtime.KeepAlive(client)
		sessions, client = nil, nil
		b.ReportMetric(float64(full-heap())/tasks, "bytes/session") // the server's part stays
	}
}

func openOne(b *testing.B, client *vault.Client, server *vaulttest.Server) *vault.Session {
	s, err := client.Open(b.Context(), vault.Options{Login: server.Login("app")})
	must.NoError(b, err)
	r := s.Begin(true)
	for _, req := range []vault.Request{creds, read("secret/a")} {
		_, err = r.Read(b.Context(), req)
		must.NoError(b, err)
	}
	r.Commit(0)
	return s
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkPoll is one look at a KV secret that has not changed, client and fake server together.
func BenchmarkPoll(b *testing.B) {
	server := vaulttest.New(b)
	server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
	server.Put("secret/a", map[string]any{"username": "app", "password": "0123456789abcdef"})
	client, err := vault.NewClient(server.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	defer client.Close()
	s := openOne(b, client, server)
	b.ReportAllocs()
	for b.Loop() {
		_, err := s.Begin(true).Read(context.Background(), read("secret/a"))
		must.NoError(b, err)
	}
	must.NoError(b, s.Close(context.Background()))
}

// BenchmarkReading answers from what the session has.
func BenchmarkReading(b *testing.B) {
	server := vaulttest.New(b)
	server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
	server.Put("secret/a", map[string]any{"k": "1"})
	client, err := vault.NewClient(server.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	defer client.Close()
	s := openOne(b, client, server)
	b.ReportAllocs()
	for b.Loop() {
		_, err := s.Begin(false).Read(context.Background(), creds)
		must.NoError(b, err)
	}
	must.NoError(b, s.Close(context.Background()))
}
