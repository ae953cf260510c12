package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// inChild is a session of a token in the namespace engineering, which has the child namespace frontend.
func (b *bench) inChild(role vaulttest.Role) *session.Session {
	b.Child = "frontend"
	b.Roles["app"] = role
	s, err := b.client.Open(b.Context(), b.engineer())
	must.NoError(b, err)
	return s
}

func (b *bench) engineer() session.Options {
	o := b.options()
	o.Login.Namespace = "engineering"
	return o
}

var childCreds = read("frontend/database/creds/app")

func TestShortPathOfKVv2InAChildNamespace(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.inChild(vaulttest.Role{TTL: time.Hour})
		b.Put("frontend/secret/a", map[string]any{"k": "1"})
		must.Eq(b, "1", value(b.generation(s, 0, read("frontend/secret/a"))[0]))
		b.Put("frontend/secret/a", map[string]any{"k": "2"})
		time.Sleep(every + every/5)
		must.True(b, changed(s))
		must.Eq(b, "2", value(b.generation(s, 0, read("frontend/secret/a"))[0]))
		must.Eq(b, 1, b.Calls("GET sys/internal/ui/mounts/"))
		b.end(s)
	})
}

// OpenBao does not tell of the mount: that there is nothing at a path need not mean that nothing is mounted there.
func TestOptionalSecretInAChildNamespace(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Mute = true
		s := b.inChild(vaulttest.Role{TTL: time.Hour})
		req := read("frontend/secret/data/a")
		req.Optional = true
		must.True(b, b.generation(s, 0, req)[0].Absent())
		b.Put("frontend/secret/a", map[string]any{"k": "1"})
		time.Sleep(every + every/5)
		must.True(b, changed(s))
		must.Eq(b, "1", value(b.generation(s, 0, req)[0]))

		short := read("frontend/secret/a")
		short.Optional = true
		_, err := s.Begin(false).Read(b.Context(), short)
		must.ErrorContains(b, err, "the mount is KV version 2: put data/ after the mount's name")
		b.end(s)
	})
}

// In KV v1 "ttl" and "expiration" are somebody's data, and Vault tells how long it thinks that it is good: no reason to
// wait so long.
func TestEditOfKVv1WithATTLIsNoticed(t *testing.T) {
	for name, mute := range map[string]bool{"where the mount is known": false, "where its lookup is denied": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Mute = mute
				s := b.inChild(vaulttest.Role{TTL: time.Hour})
				b.Put("frontend/kv/a", map[string]any{"k": "1", "ttl": 36000, "expiration": 4102444800})
				req := read("frontend/kv/a")
				must.Eq(b, vault.Polled, b.generation(s, 0, req)[0].Kind)
				b.Put("frontend/kv/a", map[string]any{"k": "2", "ttl": 36000, "expiration": 4102444800})
				time.Sleep(every + every/5)
				must.True(b, changed(s))
				must.Eq(b, any("2"), b.generation(s, 0, req)[0].Data["k"])
				b.end(s)
			})
		})
	}
}

// OpenBao does not end a lease of a child namespace with its token.
func TestLeaseInAChildNamespaceIsRevokedByItself(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, MaxTTL: 2 * time.Hour}
		s := b.inChild(vaulttest.Role{TTL: 8 * time.Hour, Revoke: true})
		own := b.generation(s, 0, childCreds, creds)[1]
		for range 3 {
			time.Sleep(2 * time.Hour)
			must.True(b, changed(s))
			b.generation(s, 0, childCreds, creds)
			time.Sleep(time.Second)
			must.Len(b, 2, b.Users(), must.Sprint("the older ones are revoked"))
		}
		must.SliceNotContains(b, b.Users(), user(own))
		must.Len(b, 0, b.noticesSoFar())

		b.RevokeTokens()
		time.Sleep(time.Hour)
		must.True(b, changed(s))
		b.generation(s, 0, childCreds, creds)
		time.Sleep(time.Second)
		must.Len(b, 2, b.Users(), must.Sprint("by the next token"))

		state := b.save(s)
		b.crash()
		s, err := b.client.Adopt(state, b.engineer())
		must.NoError(b, err)
		before := b.Calls("PUT sys/leases/revoke")
		b.end(s)
		must.Eq(b, before+1, b.Calls("PUT sys/leases/revoke"), must.Sprint("the other one ends with the token"))
	})
}

// Where the process is not told of new credentials it uses the old ones until they end, at the latest with the task.
func TestLeaseInAChildNamespaceThatIsLeftToTheProcess(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Creds["app"] = vaulttest.Creds{TTL: 10 * time.Hour, Fixed: true}
		s := b.inChild(vaulttest.Role{TTL: 100 * time.Hour, Revoke: true})
		first := user(b.generation(s, -1, childCreds)[0])
		time.Sleep(9 * time.Hour)
		must.True(b, changed(s))
		b.generation(s, -1, childCreds)
		time.Sleep(time.Minute)
		must.SliceContains(b, b.Users(), first)
		must.Eq(b, 0, b.Calls("PUT sys/leases/revoke"))
		b.end(s)
	})
}

func TestLeaseInAChildNamespaceThatPoliciesDoNotLetBeRevoked(t *testing.T) {
	bubble(t, func(b *bench) {
		const missing = `path "frontend/sys/leases/revoke" { capabilities = ["update"] }`
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		s := b.inChild(vaulttest.Role{TTL: 8 * time.Hour, Revoke: true, Deny: []string{"frontend/sys/leases/revoke"}})
		b.generation(s, 0, childCreds, creds)
		for range 3 {
			time.Sleep(time.Hour)
			must.True(b, changed(s))
			b.generation(s, 0, childCreds, creds)
			time.Sleep(time.Second)
		}
		must.Len(b, 1, b.noticesSoFar(), must.Sprint("once is enough"))
		must.StrContains(b, b.noticesSoFar()[0].Text, "revoke lease of frontend/database/creds/app: denied by Vault")
		must.StrContains(b, b.noticesSoFar()[0].Text, missing)

		err := s.Close(b.Context())
		must.ErrorIs(b, err, vault.ErrDenied)
		must.StrContains(b, err.Error(), missing)
		must.Len(b, 0, b.Tokens())
		must.Len(b, 1, b.Users(), must.Sprint("which ends by its TTL"))
	})
}

// Nobody can revoke it then, and that is said.
func TestLeaseInAChildNamespaceWhoseTokenIsGone(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.inChild(vaulttest.Role{TTL: 8 * time.Hour, Revoke: true})
		b.generation(s, 0, childCreds)
		b.RevokeTokens()
		err := s.Close(b.Context())
		must.ErrorIs(b, err, vault.ErrDenied)
		must.StrContains(b, err.Error(),
			"revoke lease of frontend/database/creds/app: denied by Vault: the token that could is gone")
	})
}

// Leases of the token's own namespace are left to end with it where the policies do not grant more.
func TestLeaseInAChildNamespaceIsRevokedWhereOthersAreNot(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		s := b.inChild(vaulttest.Role{TTL: 8 * time.Hour, Revoke: true, Deny: []string{"sys/leases/revoke"}})
		b.generation(s, 0, childCreds, creds)
		for range 2 {
			for !changed(s) {
				time.Sleep(time.Second)
			}
			b.generation(s, 0, childCreds, creds)
			time.Sleep(time.Second)
			must.Len(b, 3, b.Users(), must.Sprint("with the older one of the own namespace"))
			time.Sleep(15 * time.Minute)
		}
		must.Len(b, 0, b.noticesSoFar())
		b.end(s)
	})
}

// The default policy grants sys/leases/renew, in the token's own namespace.
func TestDeniedRenewalNamesTheNamespaceOfTheLease(t *testing.T) {
	for asked, path := range map[string]string{"frontend/database/creds/app": "frontend/sys/leases/renew",
		"database/creds/app": "sys/leases/renew"} {
		t.Run(asked, func(t *testing.T) {
			bubble(t, func(b *bench) {
				s := b.inChild(vaulttest.Role{TTL: time.Hour, Revoke: true, Deny: []string{path}})
				b.generation(s, 0, read(asked))
				time.Sleep(45 * time.Minute)
				must.Len(b, 1, b.noticesSoFar())
				must.StrContains(b, b.noticesSoFar()[0].Text, `what is missing in one of them is: path "`+path+`" { capabilities = ["update"] }`)
				b.end(s)
			})
		})
	}
}
