package vault_test

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
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
				_, err := b.client.Locate(b.Context(), "any", "", vault.Request{Op: vault.Read, Path: path})
				must.ErrorIs(b, err, vault.ErrInvalid)
				must.Eq(b, before, b.Calls(""))
				b.end(s)
			})
		})
	}
}

func TestPathsThatAreAsked(t *testing.T) {
	for _, path := range []string{"secret/a", "/secret/a/", " secret/a ", "secret/...", "secret/.a/b..", "secret/100%", "secret/50%25", "secret/a b", "secret/ä/名"} {
		must.NoError(t, vault.CheckPath(path), must.Sprint(path))
	}
}
