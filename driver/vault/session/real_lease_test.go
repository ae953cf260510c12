package session_test

import (
	"cmp"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
)

// A minute in the life of a session, in seconds: what the fake Vault promises of leases and tokens, the real one keeps.
func TestRealVaultLeasesAndTokens(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	v.role(t, "brief", map[string]any{"token_period": "", "token_ttl": "2s", "token_max_ttl": "4s"})
	notices := make(chan session.Notice, 100)
	s, err := v.client(t, nil).Open(t.Context(), session.Options{
		Login:  session.Login{Role: "brief", JWT: func(context.Context) (string, error) { return v.jwt(t, nil), nil }},
		Notify: func(n session.Notice) { notices <- n },
	})
	must.NoError(t, err)
	cert := vault.Request{Op: vault.Write, Path: "pki/issue/leased",
		Data: map[string]any{"common_name": "a.example.com", "ttl": "3s"}, Every: time.Second}
	generation := func() (token, lease string) {
		r := s.Begin(false)
		secret, err := r.Read(t.Context(), cert)
		must.NoError(t, err)
		r.Commit(0)
		return r.Token(), secret.Lease.ID
	}
	token, lease := generation()
	for replaced := 0; replaced < 2; {
		select {
		case <-s.Changed():
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is replaced")
		}
		nextToken, nextLease := generation()
		must.NotEq(t, lease, nextLease)
		v.eventually(t, "the old lease lives on", func() bool { return !v.leaseLives(lease) })
		if token != nextToken {
			replaced++
			v.eventually(t, "the old token lives on", func() bool { return !v.tokenLives(token) })
		}
		must.True(t, v.leaseLives(nextLease))
		token, lease = nextToken, nextLease
	}

	must.NoError(t, v.root.Auth().Token().RevokeTree(token)) // from outside: the next request logs in again
	_, err = s.Begin(true).Read(t.Context(), vault.Request{Op: vault.Read, Path: "secret/app-none"})
	must.ErrorIs(t, err, vault.ErrNotFound)
	now, _, _ := s.Token()
	must.NotEq(t, token, now)
	_, lease = generation()
	must.NoError(t, s.Close(context.Background()))
	must.False(t, v.tokenLives(now))
	v.eventually(t, "the lease outlives its token", func() bool { return !v.leaseLives(lease) })
	must.NoError(t, s.Close(context.Background()), must.Sprint("Vault knows that token no more"))
	_, err = v.root.Sys().Renew(lease, 1)
	must.ErrorContains(t, err, "lease not found", must.Sprint("by these words a session knows that a lease is gone"))
	close(notices)
	for n := range notices {
		must.NotEq(t, session.Outage, n.Kind, must.Sprint(n.Text))
	}
}

// taken is what becomes of a session whose lease or token an operator takes away.
type taken struct {
	role, mount, pki string                           // empty: app, jwt-nomad, pki
	take             func(t *testing.T, token string) // nil: it ends by itself
	claims           map[string]any                   // of the first two identities afterwards
	keeps            bool                             // the token
	says             string                           // the problem that is told
}

// Whatever an operator does to what a session has, it finds its way to what it may have next.
func TestRealVaultTakesAwayWhatIsInUse(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	for _, mount := range []string{"pki2", "pki3", "pki4"} {
		v.pki(t, mount)
	}
	v.role(t, "explicit", map[string]any{"token_period": "", "token_explicit_max_ttl": "3s"})
	v.role(t, "batch", nil)
	rotate := v.rotatingKeys(t, "rotating")
	revoked := func(t *testing.T, token string) { must.NoError(t, v.root.Auth().Token().RevokeTree(token)) }
	now := time.Now().Unix()
	for name, test := range map[string]taken{
		"its leases are revoked with their prefix": {pki: "pki2", keeps: true, take: func(t *testing.T, _ string) {
			must.NoError(t, v.root.Sys().RevokePrefix("pki2/"))
		}},
		"its engine is mounted anew": {pki: "pki3", keeps: true, take: func(t *testing.T, _ string) {
			must.NoError(t, v.root.Sys().Unmount("pki3"))
			v.pki(t, "pki3")
		}},
		"its engine has gone for a while": {pki: "pki4", keeps: true, says: "write pki4/issue/leased: not found in Vault",
			take: func(t *testing.T, _ string) {
				must.NoError(t, v.root.Sys().Unmount("pki4"))
				time.AfterFunc(5*time.Second, func() { v.pki(t, "pki4") })
			}},
		"explicit_max_ttl is reached": {role: "explicit"},
		"its role becomes batch": {role: "batch", take: func(t *testing.T, token string) {
			v.role(t, "batch", map[string]any{"token_period": "", "token_type": "batch"})
			revoked(t, token)
		}},
		"its token is revoked and its identity has expired": {take: revoked, says: "waiting for Nomad to renew the identity",
			claims: map[string]any{"iat": now - 7200, "nbf": now - 7200, "exp": now - 3600}},
		"its token is revoked and Nomad's clock is ten minutes fast": {take: revoked, says: "compare the clocks",
			claims: map[string]any{"iat": now + 600, "nbf": now + 600, "exp": now + 4200}},
		"its token is revoked and Nomad's keys are rotated": {mount: "rotating", take: func(t *testing.T, token string) {
			rotate()
			revoked(t, token)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.survive(t, v)
		})
	}
}

func (test taken) survive(t *testing.T, v *real) {
	var identities, told atomic.Int32
	client := v.client(t, func(c *vault.Cluster) { c.AuthPath = cmp.Or(test.mount, c.AuthPath) })
	s, err := client.Open(t.Context(), session.Options{
		Login: session.Login{Role: cmp.Or(test.role, "app"), JWT: func(context.Context) (string, error) {
			if n := identities.Add(1); test.claims != nil && (n == 2 || n == 3) {
				return v.jwt(t, test.claims), nil
			}
			return v.jwtOf(t, test.mount), nil
		}},
		Notify: func(n session.Notice) {
			if test.says != "" && strings.Contains(n.Text, test.says) {
				told.Add(1)
			} else if n.Kind != session.Replaced && n.Kind != session.Recovered {
				t.Errorf("told: %s", n.Text)
			}
		},
	})
	must.NoError(t, err)
	cert := vault.Request{Op: vault.Write, Path: cmp.Or(test.pki, "pki") + "/issue/leased", Every: time.Second,
		Data: map[string]any{"common_name": "a.example.com", "ttl": "4s"}}
	generation := func() (token, lease string) {
		r := s.Begin(false)
		secret, err := r.Read(t.Context(), cert)
		must.NoError(t, err)
		r.Commit(0)
		return r.Token(), secret.Lease.ID
	}
	token, lease := generation()
	if test.take != nil {
		test.take(t, token)
	}
	for next, one := token, lease; one == lease || !test.keeps && next == token; next, one = generation() {
		select {
		case <-s.Changed():
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is replaced")
		}
	}
	now, current := generation()
	must.Eq(t, test.keeps, now == token)
	must.True(t, v.leaseLives(current))
	must.False(t, v.leaseLives(lease) && test.take != nil)
	must.Eq(t, test.says != "", told.Load() == 1)
	must.NoError(t, s.Close(context.Background()))
}

func (v *real) leaseLives(id string) bool {
	_, err := v.root.Sys().Lookup(id)
	return err == nil
}

func (v *real) tokenLives(token string) bool {
	_, err := v.root.Auth().Token().Lookup(token)
	return err == nil
}

func (v *real) eventually(t *testing.T, otherwise string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !is(); <-time.After(20 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprint(otherwise))
	}
}

// What ends without a lease says so in as many ways as Vault has engines.
func TestRealVaultAnswersThatEndWithoutALease(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	v.write(t, "secret/data/config/app", map[string]any{"data": map[string]any{"k": "v"}})
	v.write(t, "kv1/ttl", map[string]any{"ttl": 60, "token": "x", "token_ttl": 60})
	must.NoError(t, v.root.Sys().Mount("ssh", &api.MountInput{Type: "ssh"}))
	v.write(t, "ssh/config/ca", map[string]any{"generate_signing_key": true, "key_type": "ed25519"})
	v.write(t, "ssh/roles/app", map[string]any{"key_type": "ca", "allow_user_certificates": true, "allowed_users": "*",
		"default_user": "app", "ttl": "10m"})
	must.NoError(t, v.root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	v.write(t, "auth/approle/role/app", map[string]any{"secret_id_ttl": "10m", "token_ttl": "10m"})
	role, err := v.root.Logical().Read("auth/approle/role/app/role-id")
	must.NoError(t, err)
	id, err := v.root.Logical().Write("auth/approle/role/app/secret-id", nil)
	must.NoError(t, err)
	ca, err := v.root.Logical().Read("ssh/config/ca")
	must.NoError(t, err)
	s, err := v.open(t, v.client(t, nil), "app", v.jwt(t, nil))
	must.NoError(t, err)

	write := func(path string, data map[string]any) vault.Request {
		return vault.Request{Op: vault.Write, Path: path, Data: data, Every: time.Minute}
	}
	login := write("auth/approle/login", map[string]any{"role_id": role.Data["role_id"],
		"secret_id": id.Data["secret_id"]})
	child := write("auth/token/create", map[string]any{"ttl": "10m"})
	reading := s.Begin(false)
	for name, test := range map[string]struct {
		req  vault.Request
		kind vault.Kind
		life time.Duration
	}{
		"an SSH certificate": {write("ssh/sign/app", map[string]any{"public_key": ca.Data["public_key"]}),
			vault.Expiring, 10 * time.Minute},
		"an AppRole's secret ID": {write("auth/approle/role/app/secret-id", nil), vault.Expiring,
			10 * time.Minute},
		"a login": {login, vault.Leased, 10 * time.Minute},
		"a token": {child, vault.Leased, 10 * time.Minute},
		"the token's own data": {vault.Request{Op: vault.Read, Path: "auth/token/lookup-self"},
			vault.OfToken, 0},
		"KV v1 with such keys":              {vault.Request{Op: vault.Read, Path: "kv1/ttl"}, vault.Polled, 0},
		"KV v2 with a word of Vault's APIs": {vault.Request{Op: vault.Read, Path: "secret/config/app"}, vault.Polled, 0},
	} {
		secret, err := reading.Read(t.Context(), test.req)
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, test.kind, secret.Kind, must.Sprint(name))
		must.Between(t, test.life-10*time.Second, secret.Lease.TTL, test.life, must.Sprint(name))
	}
	reading.Commit(0)
	var tokens []string
	for _, req := range []vault.Request{login, child} {
		secret, err := reading.Read(t.Context(), req)
		must.NoError(t, err)
		must.True(t, v.tokenLives(secret.Auth.Value))
		tokens = append(tokens, secret.Auth.Value)
	}
	must.NoError(t, s.Close(t.Context()))
	for _, token := range tokens {
		must.False(t, v.tokenLives(token))
	}
}
