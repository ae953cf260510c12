package session_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// BenchmarkIdleSessions holds 1,000 sessions with a lease and a KV secret each, and reports what one costs while it
// waits.
func BenchmarkIdleSessions(b *testing.B) {
	const tasks = 1000
	for b.Loop() {
		server := vaulttest.New(b)
		server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
		server.Put("secret/a", map[string]any{"username": "app", "password": "0123456789abcdef"})
		before := runtime.NumGoroutine()
		client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
		must.NoError(b, err)
		sessions := make([]*session.Session, tasks)
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
		b.ReportMetric(float64(full-heap())/tasks, "bytes/session") // the server's part stays
	}
}

// BenchmarkPunctuality renews the 6 s leases of 20 tasks for a minute beside tasks of a cluster that hangs, and reports
// how much later than planned that happens, as a share of the TTL.
func BenchmarkPunctuality(b *testing.B) {
	const ttl, lasts, beside = 6 * time.Second, time.Minute, 20
	for _, tasks := range []int{0, 100, 1000} {
		b.Run(fmt.Sprintf("hung=%d", tasks), func(b *testing.B) {
			hung, well := vaulttest.New(b), vaulttest.New(b)
			for _, server := range []*vaulttest.Server{hung, well} {
				server.Creds["app"] = vaulttest.Creds{TTL: ttl}
			}
			openMany(b, hung, tasks)
			var late []float64
			for b.Loop() {
				sessions := openMany(b, well, beside)
				hung.Break(vaulttest.Fault{Hang: true})
				time.Sleep(lasts)
				for _, s := range sessions {
					late = append(late, lateness(b, well, s, ttl)...)
				}
			}
			slices.Sort(late)
			b.ReportMetric(100*late[len(late)/2], "%TTL-p50")
			b.ReportMetric(100*late[len(late)*99/100], "%TTL-p99")
		})
	}
}

// openMany opens sessions with a lease each.
func openMany(b *testing.B, server *vaulttest.Server, tasks int) (sessions []*session.Session) {
	client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	b.Cleanup(client.Close)
	server.Put("secret/a", map[string]any{"k": "v"})
	for range tasks {
		sessions = append(sessions, openOne(b, client, server))
	}
	return sessions
}

// lateness is by how much later than planned the session's lease was renewed, each time, as a share of its TTL. It is
// planned by the lease's jitter.
func lateness(b *testing.B, server *vaulttest.Server, s *session.Session, ttl time.Duration) (late []float64) {
	state, err := s.Save()
	must.NoError(b, err)
	var saved struct{ Items []struct{ Lease vault.Lease } }
	must.NoError(b, json.Unmarshal(state, &saved))
	for _, item := range saved.Items {
		if item.Lease.ID == "" {
			continue
		}
		times := server.Renewals(item.Lease.ID)
		for i := range times[1:] {
			late = append(late, float64(times[i+1].Sub(times[i]))/float64(ttl)-0.5-item.Lease.Jitter/6)
		}
	}
	must.SliceNotEmpty(b, late)
	return late
}

func openOne(b *testing.B, client *session.Cluster, server *vaulttest.Server) *session.Session {
	s, err := client.Open(b.Context(), session.Options{Login: loginAt(server, "app")})
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
	client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
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
	client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
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

// BenchmarkSave is what each change costs that a crash must not lose, for a task with twenty secrets.
func BenchmarkSave(b *testing.B) {
	server := vaulttest.New(b)
	server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
	client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	defer client.Close()
	server.Put("secret/a", map[string]any{"k": "1"})
	s := openOne(b, client, server)
	for i := range 20 {
		path := fmt.Sprintf("secret/%d", i)
		server.Put(path, map[string]any{"username": "app", "password": "0123456789abcdef"})
		_, err := s.Begin(false).Read(b.Context(), read(path))
		must.NoError(b, err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, err := s.Save()
		must.NoError(b, err)
	}
	must.NoError(b, s.Close(context.Background()))
}
