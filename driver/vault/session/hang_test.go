package session_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// Whatever hangs delays nothing but itself: another cluster, another engine of the same cluster, another secret of the
// same task.

// another makes a client of another cluster, and what its sessions are asked.
func another(t *testing.T, name string, server *vaulttest.Server) *session.Cluster {
	cluster := server.Cluster()
	cluster.Name = name
	client, err := session.NewCluster(cluster, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// use opens a session, reads and commits.
func use(t *testing.T, client *session.Cluster, o session.Options, reqs ...vault.Request) *session.Session {
	s, err := client.Open(t.Context(), o)
	must.NoError(t, err)
	r := s.Begin(false)
	for _, req := range reqs {
		_, err := r.Read(t.Context(), req)
		must.NoError(t, err)
	}
	r.Commit(0)
	return s
}

// A task whose database hangs sees edits of its KV secrets in time, and keeps its token.
func TestHungEngineDelaysNothingElseOfItsTask(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: time.Minute})
		var reqs []vault.Request
		for i := range 40 {
			name := fmt.Sprintf("role%d", i)
			b.Creds[name] = vaulttest.Creds{TTL: time.Minute}
			reqs = append(reqs, read("database/creds/"+name))
		}
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		b.generation(s, 0, append(reqs, read("secret/a"))...)
		b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Hang: true})
		b.Break(vaulttest.Fault{Match: "GET database/", Hang: true})
		for n := range 20 {
			time.Sleep(time.Minute)
			changed(s)
			b.Put("secret/a", map[string]any{"k": fmt.Sprint(n)})
			time.Sleep(every + 12*time.Second)
			must.True(b, changed(s), must.Sprintf("edit %d was not seen", n))
		}
		must.Eq(b, 1, b.Logins())
	})
}

func TestQuestionsOfATaskAreBounded(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		r := s.Begin(false)
		var err error
		n := 0
		for ; err == nil && n < 3000; n++ {
			path := fmt.Sprintf("secret/many/%d", n)
			b.Put(path, map[string]any{"k": "v"})
			_, err = r.Read(b.Context(), read(path))
		}
		must.ErrorContains(b, err, "more than 2048 secrets")
		must.False(b, vault.Transient(err))
		must.Eq(b, 2049, n)
		b.end(s)
	})
}

// A thousand sessions are closed while one engine, and then the cluster, hangs: those of another cluster are closed at
// once.
func TestCloseOfAHungClusterDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung, well := vaulttest.New(t), vaulttest.New(t)
		stuck, free := another(t, "hung", hung), another(t, "well", well)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var sessions []*session.Session
		for range 1000 {
			sessions = append(sessions, use(t, stuck, session.Options{Login: loginAt(hung, "app")}))
		}
		neighbour := use(t, free, session.Options{Login: loginAt(well, "app")})
		hung.Break(vaulttest.Fault{Hang: true})
		for _, s := range sessions {
			go func() { _ = s.Close(ctx) }()
		}
		began := time.Now()
		must.NoError(t, neighbour.Close(ctx))
		must.Less(t, time.Second, time.Since(began))
		must.Len(t, 0, well.Tokens())
		time.Sleep(29 * time.Second)
		must.GreaterEq(t, 16*10, hung.Calls("PUT auth/token/revoke-self"),
			must.Sprint("those that hang make room for others"))
	})
}

// A task that is never told of new tokens for a month: what it keeps does not grow.
func TestReplacedTokensAreForgottenWhenTheyHaveEnded(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: time.Hour, Fixed: true})
		s := b.open()
		b.generation(s, -1, creds)
		for range 30 * 24 * 6 {
			time.Sleep(10 * time.Minute)
			if changed(s) {
				b.generation(s, -1, creds)
			}
		}
		must.Less(b, 16<<10, len(b.save(s)))
		s = b.restart(s)
		must.Less(b, 16<<10, len(b.save(s)))
		calls := b.Calls("")
		b.end(s)
		must.Less(b, 10, b.Calls("")-calls)
	})
}

// restart saves the session and adopts it in another process.
func (b *bench) restart(s *session.Session) *session.Session {
	state := b.save(s)
	b.crash()
	return b.adopt(state)
}

// The token of one Vault is not shown to another, which has taken its name.
func TestSessionIsNotAdoptedForAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, other := vaulttest.New(t), vaulttest.New(t)
		client := another(t, "default", server)
		s := use(t, client, session.Options{Login: loginAt(server, "app")})
		state, err := s.Save()
		must.NoError(t, err)
		moved := other.Cluster()
		moved.Address = "http://other.example:8200"
		next, err := session.NewCluster(moved, hclog.NewNullLogger())
		must.NoError(t, err)
		t.Cleanup(next.Close)
		_, err = next.Adopt(state, session.Options{Login: loginAt(other, "app")})
		must.ErrorIs(t, err, session.ErrElsewhere)
		must.ErrorContains(t, err, server.Cluster().Address)
		time.Sleep(time.Hour)
		must.Eq(t, 0, other.Calls(""))
		must.NoError(t, s.Close(t.Context()))
	})
}

// Every third answer fails: it is seen in time, nothing is lost, and the log is not filled with it.
func TestEveryThirdAnswerFails(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		b.Creds["app"] = vaulttest.Creds{TTL: 30 * time.Second}
		s := b.open()
		fast := vault.Request{Op: vault.Read, Path: "secret/a", Every: 2 * time.Second}
		b.generation(s, 0, fast, creds)
		b.Break(vaulttest.Fault{Status: 500, Each: 3})
		for n := range 5 {
			b.Put("secret/a", map[string]any{"k": fmt.Sprint("v", n)})
			time.Sleep(10 * time.Second)
			must.True(b, changed(s), must.Sprintf("edit %d was not seen", n))
			b.generation(s, 0, fast, creds)
		}
		must.LessEq(b, 2, len(b.noticesSoFar()), must.Sprint(b.noticesSoFar()))
		must.Eq(b, 1, b.Minted())
		must.Eq(b, 1, b.Logins())
	})
}

// Vault is away, and comes back as another one that knows neither token nor role: the last word is not that it is well.
func TestLastNoticeIsTrue(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		b.generation(s, 0, read("secret/a"), creds)
		b.Down(true)
		time.Sleep(10 * time.Minute)
		must.Eq(b, 1, len(s.Trouble()), must.Sprint(s.Trouble()))
		b.RevokeTokens()
		mend := b.Break(vaulttest.Fault{Match: "PUT auth/", Status: 403})
		b.Down(false)
		time.Sleep(10 * time.Minute)
		last := b.noticesSoFar()[len(b.noticesSoFar())-1]
		must.Eq(b, session.Problem, last.Kind, must.Sprint(b.noticesSoFar()))
		must.StrContains(b, last.Text, "log in to vault")
		must.True(b, strings.Contains(strings.Join(s.Trouble(), "\n"), "log in to vault"), must.Sprint(s.Trouble()))
		mend()
		time.Sleep(10 * time.Minute)
		must.SliceEmpty(b, s.Trouble())
		last = b.noticesSoFar()[len(b.noticesSoFar())-1]
		must.True(b, last.Kind == session.Replaced || last.Kind == session.Recovered, must.Sprint(b.noticesSoFar()))
	})
}

// What ends in an outage is told once: the credentials are dead, since when, and what comes next.
func TestDeathOfALeaseIsTold(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour})
		b.Creds["app"] = vaulttest.Creds{TTL: 10 * time.Minute}
		s := b.open()
		b.generation(s, 0, creds)
		b.Down(true)
		began := time.Now()
		for b.noticesOf(session.Dead) == 0 && time.Since(began) < 20*time.Minute {
			time.Sleep(time.Second)
		}
		must.Between(b, 4*time.Minute, time.Since(began), 10*time.Minute+5*time.Second)
		time.Sleep(time.Hour)
		must.Eq(b, 1, b.noticesOf(session.Dead))
		must.Eq(b, 1, b.noticesWith("what was read from database/creds/app ended at "))
		must.Eq(b, 2, len(s.Trouble()), must.Sprint(s.Trouble()))
		b.Down(false)
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		b.generation(s, 0, creds)
		must.SliceEmpty(b, s.Trouble())
		b.end(s)
	})
}

// A fault of ours in the upkeep of one session is in the log without the value, which could be a secret; a neighbour
// does not notice.
func TestPanicEndsTheUpkeepOfOneSession(t *testing.T) {
	var logged bytes.Buffer
	bubble(t, func(b *bench) {
		client, err := session.NewCluster(b.Cluster(), hclog.New(&hclog.LoggerOptions{Output: &logged}))
		must.NoError(b, err)
		b.Cleanup(client.Close)
		options := b.options()
		jwt, logins := options.Login.JWT, 0
		options.Login.JWT = func(ctx context.Context) (string, error) {
			if logins++; logins > 1 {
				panic(vaulttest.Planted)
			}
			return jwt(ctx)
		}
		broken := use(b.T, client, options, creds)
		neighbour := use(b.T, client, session.Options{Login: loginAt(b.Server, "app")}, creds)
		b.RevokeTokens()
		time.Sleep(2 * time.Hour)
		must.Eq(b, 1, b.noticesOf(session.Broken), must.Sprint(b.noticesSoFar()))
		must.Eq(b, 1, len(broken.Trouble()))
		must.True(b, changed(neighbour))
		must.Len(b, 1, b.Tokens())
		must.NoError(b, broken.Close(b.Context()))
		must.NoError(b, neighbour.Close(b.Context()))
		must.Len(b, 0, b.Tokens())
	})
	must.StrContains(t, logged.String(), "panic in the upkeep of a session")
	must.StrContains(t, logged.String(), "hang_test.go")
	must.StrNotContains(t, logged.String(), vaulttest.Planted)
}

// The panic may come while the session is locked: here the agent's log breaks, to which the session writes then.
func TestSessionThatPanickedCanBeClosed(t *testing.T) {
	bubble(t, func(b *bench) {
		client, err := session.NewCluster(b.Cluster(), hclog.New(&hclog.LoggerOptions{Level: hclog.Debug,
			Output: &brokenLog{words: "try again"}}))
		must.NoError(b, err)
		b.Cleanup(client.Close)
		broken := use(b.T, client, b.options(), creds)
		mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		time.Sleep(2 * time.Hour)
		mend()
		must.Eq(b, 1, b.noticesOf(session.Broken), must.Sprint(b.noticesSoFar()))
		must.NoError(b, broken.Close(b.Context()))
		must.Len(b, 0, b.Tokens())
	})
}

// brokenLog panics at the first line that has the words.
type brokenLog struct {
	words string
	broke bool
}

func (l *brokenLog) Write(line []byte) (int, error) {
	if !l.broke && bytes.Contains(line, []byte(l.words)) {
		l.broke = true
		panic("the log is broken")
	}
	return len(line), nil
}

// A renewal that comes in the last moment can lose to the revocation that Vault has begun: a look soon after it finds
// out.
func TestLateRenewalIsRepeated(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour})
		b.Creds["app"] = vaulttest.Creds{TTL: 2 * time.Hour}
		s := b.open()
		b.generation(s, 0, creds)
		mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		b.Break(vaulttest.Fault{Match: "GET database/", Status: 500})
		time.Sleep(110 * time.Minute)
		must.False(b, changed(s))
		renewals := b.Calls("PUT sys/leases/renew")
		mend()
		for b.Calls("PUT sys/leases/renew") == renewals {
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Second)
		must.Eq(b, renewals+2, b.Calls("PUT sys/leases/renew"))
		time.Sleep(5 * time.Minute)
		must.Eq(b, renewals+2, b.Calls("PUT sys/leases/renew"))
	})
}
