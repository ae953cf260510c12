package session_test

import (
	"context"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestBudget(t *testing.T) {
	const perLife = 4
	for name, trouble := range map[string]func(*bench) (mend func()){
		"every renewal is refused": func(b *bench) func() {
			return b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 400})
		},
		"every answer is lost": func(b *bench) func() {
			return b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		},
		"a proxy loses every answer": func(b *bench) func() {
			return b.Break(vaulttest.Fault{Match: "GET database/creds/", Body: "{\"lease_id\": \"data"})
		},
		"the token is revoked all the time": func(b *bench) func() {
			ctx, cancel := context.WithCancel(b.Context())
			go func() {
				for ctx.Err() == nil {
					b.RevokeTokens()
					time.Sleep(10 * time.Second)
				}
			}()
			return cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Put("secret/a", map[string]any{"k": "1"})
				b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, MaxTTL: time.Hour}
				s := b.open()
				b.generation(s, 0, creds, read("secret/a"))
				mend := trouble(b)
				time.Sleep(337 * time.Millisecond)
				for range 10 {
					before := b.Minted()
					time.Sleep(time.Hour)
					must.LessEq(b, perLife, b.Minted()-before)
				}
				mend()
				time.Sleep(time.Hour)
				must.True(b, changed(s))
				must.SliceContains(b, b.Users(), user(b.generation(s, 0, creds)[0]))
				b.end(s)
			})
		})
	}
}

func TestLostAnswersAtStartKeepToTheBudget(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
		defer cancel()
		_, err := s.Begin(true).Read(ctx, creds)
		must.ErrorIs(b, err, vault.ErrUnavailable)
		must.False(b, vault.Transient(err))
		must.Eq(b, 4, b.Minted())
		b.end(s)
	})
}

// A task that renders again and again while answers get lost spends no more than the session does by itself.
func TestLostAnswersOfReadingsKeepToTheBudget(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour}
		s := b.open()
		first := b.generation(s, 0, creds)[0]
		b.RevokeTokens()
		mend := b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		began := time.Now()
		for time.Since(began) < 5*time.Hour {
			if secret, err := s.Begin(false).Read(b.short(), creds); err == nil {
				must.Eq(b, first, secret, must.Sprint("the last known good"))
			}
			time.Sleep(time.Minute)
		}
		must.Between(b, 5, b.Minted(), 1+5*4)
		mend()
		time.Sleep(time.Hour)
		must.NotEq(b, user(first), user(b.generation(s, 0, creds)[0]))
		b.end(s)
	})
}

func TestConnectionsThatBreakAtStartDoNotCountAsLostAnswers(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.generation(s, 0, creds)
		b.generation(s, 0) // the mount is known, the lease is not
		mend := b.Break(vaulttest.Fault{Reset: true})
		time.AfterFunc(time.Minute, mend)
		b.generation(s, 0, creds)
		b.end(s)
	})
}

func TestLostAnswersOfKVAreAskedForAgain(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		mend := b.Break(vaulttest.Fault{Match: "GET secret/", Lose: true})
		time.AfterFunc(time.Minute, mend)
		b.generation(s, 0, read("secret/a"))
		b.end(s)
	})
}

// A login whose answer gets lost leaves a token that nobody can revoke: there are not many of those, and none where
// nothing gets through.
func TestLostLoginsOfARunningTaskKeepToTheBudget(t *testing.T) {
	for name, test := range map[string]struct {
		match string
		most  int // logins in an hour and a half, with tokens that live for an hour
	}{
		"of logins only": {"PUT auth/jwt-nomad/login", 4 + 7},
		"of everything":  {"", 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = vaulttest.Role{TTL: time.Hour}
				s := b.open()
				b.generation(s, 0, creds)
				before := b.Logins()
				b.RevokeTokens()
				mend := b.Break(vaulttest.Fault{Match: test.match, Lose: true})
				time.Sleep(90 * time.Minute)
				must.Between(b, 1, b.Logins()-before, test.most)
				must.Eq(b, 1, b.noticesOf(session.Outage))
				mend()
				time.Sleep(time.Hour)
				must.True(b, changed(s))
				must.Eq(b, 1, b.noticesOf(session.Recovered))
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}
