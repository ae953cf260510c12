package session_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestOutageOfEightHours(t *testing.T) {
	const tasks = 4
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		all := b.tasks(tasks)
		b.Down(true)
		time.Sleep(8 * time.Hour)
		must.Eq(b, tasks, b.noticesOf(session.Outage))
		for _, s := range all {
			must.False(b, changed(s))
			must.Eq(b, "v", value(b.answer(s.Begin(false), read("secret/app"))))
		}
		b.Down(false)
		time.Sleep(2 * time.Minute)
		must.Eq(b, tasks, b.noticesOf(session.Outage))
		must.Eq(b, tasks, b.noticesOf(session.Recovered))
		must.Eq(b, 2*tasks, b.Logins())
		must.Eq(b, 2*tasks, b.Minted())
		for _, s := range all {
			must.True(b, changed(s))
			b.generation(s, 0, creds, read("secret/app"))
		}
		time.Sleep(time.Hour)
		for _, s := range all {
			must.False(b, changed(s))
			must.NoError(b, s.Close(b.Context()))
		}
		must.Len(b, 0, b.Users())
	})
}

func TestOutageEndsWithoutAStampede(t *testing.T) {
	const tasks = 100
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		all := b.tasks(tasks)
		b.Down(true)
		time.Sleep(20 * time.Minute)
		b.RevokeTokens()
		b.Down(false)
		for range 60 {
			before := b.Logins()
			time.Sleep(time.Second)
			must.Less(b, tasks/5, b.Logins()-before)
		}
		must.Eq(b, 2*tasks, b.Logins())
		for _, s := range all {
			must.NoError(b, s.Close(b.Context()))
		}
	})
}

// The operator can have a node ask more slowly than its tasks would: when they start, and when an outage is over.
// Nothing fails for it.
func TestRateLimit(t *testing.T) {
	const tasks, perSecond, burst = 100, 5, 20
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		cluster := b.Cluster()
		cluster.RateLimit = fmt.Sprintf("%d:%d", perSecond, burst)
		client, err := session.NewCluster(cluster, hclog.NewNullLogger())
		must.NoError(b, err)
		b.Cleanup(client.Close)
		b.client = client

		ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
		defer cancel()
		sessions := make([]*session.Session, tasks)
		var all sync.WaitGroup
		for i := range sessions {
			all.Go(func() {
				s, err := client.Open(ctx, b.options())
				must.NoError(b, err)
				r := s.Begin(false)
				_, err = r.Read(ctx, creds)
				must.NoError(b, err)
				r.Commit(0)
				sessions[i] = s
			})
		}
		b.keepsTo(perSecond, burst, 2*time.Minute)
		all.Wait()
		must.Eq(b, tasks, b.Logins())
		must.Eq(b, tasks, b.Minted())

		b.RevokeTokens()
		b.Down(true)
		time.Sleep(2 * time.Hour)
		b.Down(false)
		b.keepsTo(perSecond, burst, 10*time.Minute)
		must.Eq(b, 2*tasks, b.Logins())
		must.Eq(b, tasks, b.noticesOf(session.Recovered))
		for _, s := range sessions {
			must.NoError(b, s.Close(b.Context()))
		}
	})
}

// keepsTo checks for that long that Vault is not asked more often.
func (b *bench) keepsTo(perSecond, burst int, long time.Duration) {
	first := b.Calls("")
	for began := time.Now(); time.Since(began) < long; {
		time.Sleep(time.Second)
		asked, allowed := b.Calls("")-first, burst+perSecond*int(time.Since(began)/time.Second)
		must.LessEq(b, allowed, asked, must.Sprint("requests after ", time.Since(began)))
	}
}

// tasks opens that many sessions with a lease and a KV secret each.
func (b *bench) tasks(n int) (all []*session.Session) {
	for range n {
		s := b.open()
		b.generation(s, 0, creds, read("secret/app"))
		all = append(all, s)
	}
	return all
}

// One engine that is down is told once, although all else works.
func TestOutageOfOneEngineDoesNotFlap(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		s := b.open()
		b.generation(s, 0, creds, read("secret/app"))
		mend := []func(){
			b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500}),
			b.Break(vaulttest.Fault{Match: "GET database/", Status: 500}),
		}
		time.Sleep(5 * time.Hour)
		must.Eq(b, 1, b.noticesOf(session.Outage))
		must.Eq(b, 0, b.noticesOf(session.Recovered))
		mend[0]()
		mend[1]()
		time.Sleep(2 * time.Minute)
		must.Eq(b, 1, b.noticesOf(session.Recovered))
		must.Eq(b, 1, b.noticesOf(session.Dead))
		must.True(b, changed(s))
		must.Len(b, 3, b.noticesSoFar())
		b.end(s)
	})
}

func TestSlowVaultIsNoOutage(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, MaxTTL: 3 * time.Hour}
		b.Put("secret/app", map[string]any{"k": "v"})
		b.Break(vaulttest.Fault{Slow: 3 * time.Second})
		s := b.open()
		b.generation(s, 0, creds, read("secret/app"))
		time.Sleep(4 * time.Hour)
		must.Eq(b, 0, b.noticesOf(session.Outage))
		must.Eq(b, 2, b.Logins())
		must.Eq(b, 2, b.Minted())
		must.True(b, changed(s))
		b.end(s)
	})
}

// A Vault that is down rotates nothing: the password it told last is good for a start meanwhile.
func TestStaticRoleInAnOutage(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Static("app", 10*time.Minute)
		s := b.open()
		static := read("database/static-creds/app")
		first := b.generation(s, 0, static)[0]
		b.Down(true)
		time.Sleep(15 * time.Minute)
		began := time.Now()
		must.Eq(b, first, b.answer(s.Begin(true), static))
		must.Eq(b, 0, time.Since(began))
		b.Down(false)
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		b.end(s)
	})
}
