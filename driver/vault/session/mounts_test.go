package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// The Vault API joins paths: what would lead elsewhere is refused before anything is asked, the mount neither.
func TestPathThatLeadsElsewhereIsNotAsked(t *testing.T) {
	for path, says := range map[string]string{
		"secret/../cubbyhole/m":         `path "secret/../cubbyhole/m": refused: it has the segment ".."; write the names of the mount`,
		"../../../../cubbyhole/m":       `the segment ".."`,
		"..":                            `the segment ".."`,
		"secret/./a":                    `the segment "."`,
		"secret//a":                     "an empty segment",
		"":                              "an empty segment",
		"secret/%2e%2e/a":               `the segment ".."`,
		"secret/.%2E/a":                 `the segment ".."`,
		"secret/%252e%252e/a":           `the segment ".."`,
		"secret/%2e":                    `the segment "."`,
		"secret/a%2fb":                  "an encoded slash",
		"secret/a\n2026 [ERROR] forged": "a character that cannot be printed",
		"secret/a%0a":                   "a character that cannot be printed",
		"secret/a\x1b[2J":               "a character that cannot be printed",
		"secret/a%1b":                   "a character that cannot be printed",
		"secret/a\u202e":                "a character that cannot be printed",
		"secret/a\xff":                  "a character that cannot be printed",
	} {
		t.Run(path, func(t *testing.T) {
			bubble(t, func(b *bench) {
				s := b.open()
				before := b.Calls("")
				for _, op := range []vault.Op{vault.Read, vault.Write, vault.List} {
					_, err := s.Begin(false).Read(b.Context(), vault.Request{Op: op, Path: path, Every: every})
					must.ErrorIs(b, err, vault.ErrInvalid)
					must.False(b, vault.Transient(err))
					must.StrContains(b, err.Error(), says)
					must.StrNotContains(b, err.Error(), "\n")
					must.StrNotContains(b, err.Error(), "\x1b")
				}
				_, err := b.client.Client().As(vault.Auth{Value: "any"}, "", "").Locate(b.Context(),
					vault.Request{Op: vault.Read, Path: path})
				must.ErrorIs(b, err, vault.ErrInvalid)
				must.Eq(b, before, b.Calls(""))
				b.end(s)
			})
		})
	}
}

// An auth method may have the name of an engine, and Vault tells of both by that name.
func TestAuthMethodIsNotTakenForTheEngineOfItsName(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		first := b.open()
		_, err := first.Begin(false).Read(b.Context(), read("auth/secret/role/x/role-id"))
		must.ErrorIs(b, err, vault.ErrNotFound)
		second := b.open()
		must.Eq(b, "1", value(b.generation(second, 0, read("secret/a"))[0]))
		must.NoError(b, first.Close(b.Context()))
		b.end(second)
	})
}

// Each denial is a line in Vault's audit log. One token's denial says nothing of another token's rights.
func TestDeniedLookupOfAMountIsRemembered(t *testing.T) {
	bubble(t, func(b *bench) {
		const lookup = "sys/internal/ui/mounts/secret/data/a"
		b.Put("secret/a", map[string]any{"k": "1"})
		b.Roles["blind"] = vaulttest.Role{TTL: time.Hour, Deny: []string{lookup}}
		o := b.options()
		o.Login.Role = "blind"
		blind, err := b.client.Open(b.Context(), o)
		must.NoError(b, err)
		b.generation(blind, 0, read("secret/data/a"))
		time.Sleep(4 * time.Minute)
		must.Eq(b, 1, b.Calls("GET "+lookup))
		must.Greater(b, 6, b.Calls("GET secret/data/a"))

		other := b.open()
		must.Eq(b, "1", value(b.generation(other, 0, read("secret/a"))[0]))
		must.NoError(b, blind.Close(b.Context()))
		b.end(other)
	})
}

// What is denied may be granted by an operator, or by the next token.
func TestDeniedLookupOfAMountIsAskedAgain(t *testing.T) {
	for name, change := range map[string]func(b *bench){
		"after a while":      func(*bench) { time.Sleep(6 * time.Minute) },
		"with another token": func(b *bench) { b.RevokeTokens(); time.Sleep(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				const lookup = "GET sys/internal/ui/mounts/kv/a"
				b.Put("kv/a", map[string]any{"k": "1"})
				mend := b.Break(vaulttest.Fault{Match: lookup, Status: 403})
				s := b.open()
				time.Sleep(2 * time.Second) // the token is not fresh any more
				b.generation(s, 0, read("kv/a"))
				must.Eq(b, 1, b.Calls(lookup))
				mend()
				change(b)
				must.Eq(b, 2, b.Calls(lookup))
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}
