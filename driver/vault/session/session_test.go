package session_test

import (
	"context"
	"slices"
	"strings"
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

// bench is a server with one client, and what its sessions told.
type bench struct {
	*testing.T
	*vaulttest.Server
	client *session.Cluster

	mu      sync.Mutex
	notices []session.Notice
}

// loginAt is of the role, with the JWT that the server accepts when it is asked.
func loginAt(server *vaulttest.Server, role string) session.Login {
	return session.Login{Role: role, JWT: server.Identity}
}

// bubble runs a scenario in which time passes only while everybody waits. What the scenario leaves running fails it.
func bubble(t *testing.T, scenario func(*bench)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, Server: vaulttest.New(t)}
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
		b.start()
		scenario(b)
	})
}

// start makes a client as a plugin process does.
func (b *bench) start() {
	client, err := session.NewCluster(b.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	b.client = client
	b.Cleanup(client.Close)
}

func (b *bench) options() session.Options {
	return session.Options{Login: loginAt(b.Server, "app"), Notify: b.note}
}

func (b *bench) note(n session.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notices = append(b.notices, n)
}

// noticesSoFar are the notices so far.
func (b *bench) noticesSoFar() []session.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.notices)
}

// noticesOf counts the notices of a kind.
func (b *bench) noticesOf(kind session.NoticeKind) (n int) {
	for _, one := range b.noticesSoFar() {
		if one.Kind == kind {
			n++
		}
	}
	return n
}

// noticesWith counts the notices with a text.
func (b *bench) noticesWith(text string) (n int) {
	for _, one := range b.noticesSoFar() {
		if strings.Contains(one.Text, text) {
			n++
		}
	}
	return n
}

func (b *bench) open() *session.Session {
	s, err := b.client.Open(b.Context(), b.options())
	must.NoError(b, err)
	return s
}

// end closes the session and checks that it leaves nothing in Vault.
func (b *bench) end(s *session.Session) {
	must.NoError(b, s.Close(context.Background()))
	must.Len(b, 0, b.Tokens())
	must.Len(b, 0, b.Users())
}

const every = 30 * time.Second

func read(path string) vault.Request { return vault.Request{Op: vault.Read, Path: path, Every: every} }

var creds = read("database/creds/app")

// answer is what one reading says of one request.
func (b *bench) answer(r *session.Reading, req vault.Request) *vault.Secret {
	secret, err := r.Read(b.Context(), req)
	must.NoError(b, err)
	return secret
}

// generation reads and commits.
func (b *bench) generation(s *session.Session, grace time.Duration, reqs ...vault.Request) []*vault.Secret {
	r := s.Begin(false)
	var all []*vault.Secret
	for _, req := range reqs {
		all = append(all, b.answer(r, req))
	}
	r.Commit(grace)
	return all
}

// changed reports whether the session has something new to tell.
func changed(s *session.Session) bool {
	synctest.Wait()
	select {
	case <-s.Changed():
		return true
	default:
		return false
	}
}

// value is of the key k that the tests write in KV v2.
func value(s *vault.Secret) string { return s.Data["data"].(map[string]any)["k"].(string) }

func user(s *vault.Secret) string { return s.Data["username"].(string) }
