package session_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestCloseWhileEverythingIsUnderWay(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		b.generation(s, 0, creds, read("secret/a"))
		b.Creds["late"] = b.Creds["app"]
		b.Put("secret/b", map[string]any{"k": "1"})
		mend := b.Break(vaulttest.Fault{Match: "GET", Slow: 50 * time.Second})
		time.Sleep(every + every/8) // a poll is under way
		var reading sync.WaitGroup
		for _, path := range []string{"database/creds/late", "secret/b"} { // and a start
			reading.Go(func() {
				_, err := s.Begin(true).Read(b.Context(), read(path))
				must.ErrorIs(b, err, context.Canceled)
			})
		}
		synctest.Wait()
		began := time.Now()
		must.NoError(b, s.Close(b.Context()))
		must.Eq(b, 5*time.Second, time.Since(began), must.Sprint("Vault may be making a user"))
		reading.Wait()
		mend()
		time.Sleep(time.Hour)
		must.Len(b, 0, b.Tokens(), must.Sprint("a reading logged in after Close"))
		must.Len(b, 0, b.Users())
		_, err := s.Begin(true).Read(b.Context(), read("secret/c"))
		must.ErrorIs(b, err, session.ErrClosed)
		must.NoError(b, s.Close(b.Context()), must.Sprint("Close may be called again"))
		must.Len(b, 1, b.noticesSoFar(), must.Sprint("who waits for what Vault may be making"))
		must.Eq(b, 1, b.noticesOf(session.Waiting))
	})
}

func TestCloseFinishesARevocationUnderWay(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 10 * time.Minute, Fixed: true}
		s := b.open()
		b.generation(s, 0, creds)
		time.Sleep(9 * time.Minute)
		mend := b.Break(vaulttest.Fault{Match: "PUT auth/token/revoke-self", Hang: true})
		b.generation(s, 0, creds)
		time.Sleep(time.Second)
		must.Eq(b, 1, b.Calls("PUT auth/token/revoke-self"))
		mend()
		b.end(s)
	})
}

func TestCloseDoesNotWaitForOtherSessions(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		b.start()
		one, two := b.open(), b.open()
		b.generation(one, 0, read("secret/a"))
		b.generation(two, 0, read("secret/a"))
		b.Break(vaulttest.Fault{Match: "GET secret/", Hang: true})
		time.Sleep(every + every/8) // one of them holds the only worker, the other one waits for it
		for _, s := range []*session.Session{one, two} {
			began := time.Now()
			must.NoError(b, s.Close(b.Context()))
			must.Eq(b, 0, time.Since(began))
		}
	})
}

func TestCloseTellsWhatItCouldNotDo(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Deny: []string{"auth/token/revoke-self"}}
		s := b.open()
		err := s.Close(b.Context())
		must.ErrorIs(b, err, vault.ErrDenied)
		must.StrContains(b, err.Error(), `path "auth/token/revoke-self" { capabilities = ["update"] }`)
		b.Down(true)
		must.ErrorIs(b, s.Close(b.Context()), vault.ErrUnavailable)
	})
}

// Vault forgets what it is just making for a request that is cut off: nobody could revoke it.
func TestWhatVaultIsMakingAtTheEndIsRevoked(t *testing.T) {
	slow := vaulttest.Fault{Match: "GET database/", Slow: 3 * time.Second, Forget: true}
	for when, end := range map[string]func(*bench, *session.Session){
		"a reading gives up": func(b *bench, s *session.Session) {
			b.Break(slow)
			ctx, cancel := context.WithTimeout(b.Context(), time.Second)
			defer cancel()
			_, _ = s.Begin(false).Read(ctx, creds)
		},
		"a reading gives up and the session ends before it": func(b *bench, s *session.Session) {
			b.Break(slow)
			ctx, cancel := context.WithCancel(b.Context())
			go func() { _, _ = s.Begin(false).Read(ctx, creds) }()
			time.Sleep(time.Second)
			cancel()
		},
		"a lease is being replaced": func(b *bench, s *session.Session) {
			b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
			b.generation(s, 0, creds)
			b.Break(slow)
			for b.Minted() == 1 {
				time.Sleep(time.Second)
			}
		},
		"a certificate is being issued": func(b *bench, s *session.Session) {
			b.Break(vaulttest.Fault{Match: "PUT pki/", Slow: 3 * time.Second})
			go func() {
				_, _ = s.Begin(false).Read(b.Context(), vault.Request{Op: vault.Write, Path: "pki/issue/app",
					Revoke: "pki/revoke-with-key"})
			}()
			time.Sleep(time.Second)
		},
	} {
		t.Run(when, func(t *testing.T) {
			bubble(t, func(b *bench) {
				s := b.open()
				end(b, s)
				must.NoError(b, s.Close(b.Context()))
				must.SliceEmpty(b, b.Users())
				must.SliceEmpty(b, b.Tokens())
				must.Zero(b, b.Certificates())
				_, err := s.Begin(false).Read(b.Context(), creds)
				must.ErrorIs(b, err, session.ErrClosed)
			})
		})
	}
}

func TestRequestThatNobodyWaitsForEndsSoon(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Break(vaulttest.Fault{Match: "GET database/", Hang: true})
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := s.Begin(false).Read(ctx, creds)
		must.Error(b, err)
		must.Eq(b, 6*time.Second, time.Since(began))
		calls := b.Calls("")
		_, err = s.Begin(false).Read(ctx, creds)
		must.Error(b, err)
		must.Eq(b, calls, b.Calls(""), must.Sprint("what nobody waits for to begin with is not sent"))
		b.end(s)
	})
}

func TestLoginUnderWayAtTheEndLeavesNoToken(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Break(vaulttest.Fault{Match: "PUT auth/jwt-nomad/login", Slow: 3 * time.Second})
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		s, err := b.client.Open(ctx, b.options())
		must.NoError(b, err, must.Sprint("there is a token now, and who waits no more has to revoke it"))
		must.NoError(b, s.Close(b.Context()))
		must.SliceEmpty(b, b.Tokens())
	})
}
