package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func optional(path string) vault.Request {
	req := read(path)
	req.Optional = true
	return req
}

func TestOptionalSecretIsWaitedForWithoutTrouble(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		must.True(b, b.generation(s, 0, optional("secret/a"))[0].Absent())
		asked := b.Calls("GET secret/data/a")
		time.Sleep(10 * time.Minute)
		must.False(b, changed(s))
		must.Between(b, 17, b.Calls("GET secret/data/a")-asked, 24) // each half minute, as it is polled once it is there

		state, err := s.Save()
		must.NoError(b, err)
		b.client.Close()
		b.start()
		s, err = b.client.Adopt(state, b.options())
		must.NoError(b, err)
		must.True(b, b.generation(s, 0, optional("secret/a"))[0].Absent(), must.Sprint("after a crash, too"))
		b.Put("secret/a", map[string]any{"k": "1"})
		time.Sleep(every + every/8)
		must.True(b, changed(s))
		must.Eq(b, "1", value(b.generation(s, 0, optional("secret/a"))[0]))
		must.Len(b, 0, b.noticesSoFar())

		b.Delete("secret/a", false)
		time.Sleep(10 * time.Minute)
		must.False(b, changed(s))
		must.Eq(b, 1, b.noticesOf(session.Problem), must.Sprint("what was there once is missed"))
		must.Eq(b, "1", value(b.generation(s, 0, optional("secret/a"))[0]))
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		b.end(s)
	})
}

func TestOptionalIsOnlyWhatMayBeThereLater(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Put("secret/deleted", map[string]any{"k": "1"})
		b.Delete("secret/deleted", false)
		for _, path := range []string{"secret/none", "secret/deleted", "kv/none"} {
			must.True(b, b.answer(s.Begin(false), optional(path)).Absent(), must.Sprint(path))
		}
		for path, class := range map[string]error{"nowhere/x": vault.ErrNotFound, "database/creds/none": vault.ErrInvalid} {
			_, err := s.Begin(false).Read(b.Context(), optional(path))
			must.ErrorIs(b, err, class, must.Sprint(path))
		}
		b.Break(vaulttest.Fault{Match: "GET secret/data/denied", Status: 403})
		_, err := s.Begin(false).Read(b.Context(), optional("secret/denied"))
		must.ErrorIs(b, err, vault.ErrDenied)
		b.end(s)
	})
}

func TestSecretThatOneAskerNeedsIsNotOptional(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		r := s.Begin(false)
		must.True(b, b.answer(r, optional("secret/a")).Absent())
		_, err := r.Read(b.Context(), read("secret/a"))
		must.ErrorIs(b, err, vault.ErrNotFound)
		must.ErrorContains(b, err, "read secret/data/a: not found in Vault; write it first")
		must.Eq(b, 1, b.Calls("GET secret/data/a"), must.Sprint("it is the same question"))
		b.end(s)
	})
}
