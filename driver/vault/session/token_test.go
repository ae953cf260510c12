package session_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestShortLivedTokensShortenTheirLeases(t *testing.T) {
	for name, role := range map[string]vaulttest.Role{
		"not renewable":      {TTL: 10 * time.Minute, Fixed: true},
		"renewable for some": {TTL: 5 * time.Minute, MaxTTL: 10 * time.Minute},
		"batch":              {TTL: 10 * time.Minute, Batch: true, Revoke: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = role
				s := b.open()
				b.generation(s, 0, creds)
				for range 5 * 60 {
					time.Sleep(time.Minute)
					if changed(s) {
						b.generation(s, 0, creds)
					}
					must.SliceContains(b, b.Users(), user(b.answer(s.Begin(false), creds)))
				}
				must.Between(b, 30, b.Minted(), 45)
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

// A lease that comes with the answer to a token of yesterday is not one to keep.
func TestLeaseOfATokenThatWasReplacedMeanwhile(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 2 * time.Minute, Fixed: true}
		s := b.open()
		time.Sleep(95 * time.Second)
		mend := b.Break(vaulttest.Fault{Match: "GET database/", Slow: 15 * time.Second})
		r := s.Begin(false)
		b.answer(r, creds) // the token is replaced at 85 %, give or take three
		mend()
		must.Eq(b, 2, b.Logins())
		r.Commit(0)
		second := b.generation(s, 0, creds)[0]
		time.Sleep(time.Second)
		must.Eq(b, []string{user(second)}, b.Users())
		b.end(s)
	})
}

func TestTokenWhoseRenewalsFailIsReplaced(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Break(vaulttest.Fault{Match: "PUT auth/token/renew-self", Status: 500})
		s := b.open()
		time.Sleep(50 * time.Minute)
		must.Eq(b, 1, b.Logins())
		must.Eq(b, 1, b.noticesOf(session.Outage))
		time.Sleep(3 * time.Minute)
		must.Eq(b, 2, b.Logins())
		must.Eq(b, 1, b.noticesOf(session.Recovered))
		b.end(s)
	})
}

// A node of Vault that has not heard of a token yet denies all that is asked with it: the lookup of a mount, the read,
// and a revocation.
func TestTokenThatTheAnsweringNodeDoesNotKnowYet(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Lag = 900 * time.Millisecond
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		b.generation(s, 0, read("secret/a"), creds) // by its short path, which takes the mount
		must.Eq(b, 1, b.Logins())
		must.Eq(b, 1, b.Minted())
		must.Less(b, 8, b.Calls("GET sys/internal/ui/mounts/secret/a"))
		b.end(s)

		b.end(b.open()) // before anything was read
	})
}

// One that is denied for good costs a second, and a few requests.
func TestDenialOfANewToken(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Deny: []string{"secret/"}}
		s := b.open()
		began := time.Now()
		_, err := s.Begin(false).Read(b.Context(), read("secret/a"))
		must.ErrorIs(b, err, vault.ErrDenied)
		must.Eq(b, time.Second, time.Since(began))
		must.Eq(b, 5, b.Calls("GET secret/data/a"))
		b.end(s)
	})
}

func TestTokenAtItsMaximumIsReplaced(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, MaxTTL: 3 * time.Hour}
		s := b.open()
		old, _, _ := s.Token()
		first := b.generation(s, 0, creds)[0]
		time.Sleep(160 * time.Minute) // 85 % of three hours, give or take three, are over
		must.True(b, changed(s))
		must.False(b, changed(s))
		must.Eq(b, 2, b.Logins())
		must.Eq(b, 1, b.noticesOf(session.Replaced))

		stale := s.Begin(false)
		must.NotEq(b, old, stale.Token())
		must.SliceContains(b, b.Tokens(), old, must.Sprint("revoked before anything of the new one is in use"))
		second := b.answer(stale, creds)
		must.NotEq(b, user(first), user(second))
		stale.Commit(500 * time.Millisecond)
		synctest.Wait()
		must.SliceContains(b, b.Users(), user(first), must.Sprint("revoked before the grace is over"))
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		must.Eq(b, []string{user(second)}, b.Users())
		must.SliceNotContains(b, b.Tokens(), old)
		b.end(s)
	})
}

func TestTokenIsNotRevokedWhileItsSecretsAreInUse(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 10 * time.Minute, Fixed: true}
		s := b.open()
		old, _, _ := s.Token()
		r := s.Begin(false)
		first := b.answer(r, creds)
		time.Sleep(9 * time.Minute) // the token is replaced while the process is being started
		must.Eq(b, 2, b.Logins())
		r.Commit(0)
		synctest.Wait()
		must.SliceContains(b, b.Tokens(), old)
		must.SliceContains(b, b.Users(), user(first))
		must.True(b, changed(s))
		must.NotEq(b, user(first), user(b.generation(s, -1, creds)[0]))
		time.Sleep(30 * time.Second)
		must.SliceContains(b, b.Tokens(), old, must.Sprint("a negative grace leaves it to end"))
		b.end(s)
	})
}

func TestTokenRevokedFromOutside(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		b.Creds["other"] = b.Creds["app"]
		other := read("database/creds/other")
		s := b.open()
		first := b.generation(s, 0, creds, other, read("secret/app"))
		b.RevokeTokens()
		time.Sleep(every + every/5)
		must.True(b, changed(s))
		must.False(b, changed(s))
		must.Eq(b, 2, b.Logins())
		must.Eq(b, 4, b.Minted())
		second := b.generation(s, 0, creds, other, read("secret/app"))
		must.NotEq(b, user(first[0]), user(second[0]))
		must.NotEq(b, user(first[1]), user(second[1]))
		must.Eq(b, first[2], second[2])
		time.Sleep(time.Hour)
		must.False(b, changed(s))
		must.Eq(b, 4, b.Minted())
		b.end(s)
	})
}

// A reading that meets a dead token must not mix its leases with those of the next.
func TestReadingThatMeetsADeadTokenShowsOnlyWhatLives(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		b.Creds["other"] = b.Creds["app"]
		other := read("database/creds/other")
		s := b.open()
		b.generation(s, 0, creds, other)
		b.RevokeTokens()
		r := s.Begin(true)
		b.answer(r, read("secret/app"))
		must.Eq(b, 2, b.Logins())
		second := []string{user(b.answer(r, creds)), user(b.answer(r, other))}
		users := b.Users()
		slices.Sort(users)
		slices.Sort(second)
		must.Eq(b, second, users)
		r.Commit(0)
		time.Sleep(time.Minute)
		must.Eq(b, 4, b.Minted(), must.Sprint("a step issued again what the reading had just read"))
		must.True(b, changed(s), must.Sprint("the reading began with the token before"))
		b.end(s)
	})
}

func TestReadingThatMeetsADeadTokenWakesTheRest(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.generation(s, 0, creds)
		b.RevokeTokens()
		_, err := s.Begin(true).Read(b.Context(), read("secret/none"))
		must.ErrorIs(b, err, vault.ErrNotFound)
		must.Eq(b, 2, b.Logins())
		time.Sleep(time.Second)
		must.True(b, changed(s))
		must.Eq(b, 2, b.Minted())
		b.end(s)
	})
}

// Many that miss the same token log in once, and are refused once.
func TestReadersThatMissTheSameToken(t *testing.T) {
	bubble(t, func(b *bench) {
		const readers = 8
		s := b.open()
		ask := func() (failed int) {
			b.RevokeTokens()
			r := s.Begin(true)
			var all sync.WaitGroup
			errs := make([]error, readers)
			for i := range readers {
				path := fmt.Sprintf("secret/%d", i)
				b.Put(path, map[string]any{"k": "1"})
				all.Go(func() { _, errs[i] = r.Read(b.Context(), read(path)) })
			}
			all.Wait()
			return len(slices.DeleteFunc(errs, func(err error) bool { return err == nil }))
		}
		must.Eq(b, 0, ask())
		must.Eq(b, 2, b.Logins())
		b.SetRole("other", b.Roles["app"])
		delete(b.Roles, "app")
		must.Eq(b, readers, ask())
		must.Eq(b, 3, b.Logins())
		must.NoError(b, s.Close(b.Context()))
	})
}

func TestTokenInUseIsNotRevoked(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		b.Roles["app"] = vaulttest.Role{TTL: 10 * time.Minute, Fixed: true}
		s := b.open()
		r := s.Begin(false)
		b.answer(r, read("secret/app"))
		time.Sleep(9 * time.Minute)
		r.Commit(0)
		time.Sleep(time.Second)
		must.SliceContains(b, b.Tokens(), r.Token())
		must.Len(b, 2, b.Tokens())
		b.end(s) // of which one was in use and the other was not
	})
}

// An expired identity is none of Vault's outages, and is no reason to give the task up.
func TestIdentityThatIsRefusedWhileRunning(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Put("secret/a", map[string]any{"k": "1"})
		b.generation(s, 0, creds, read("secret/a"))
		options := b.options()
		stale := options
		stale.Login.JWT = func(context.Context) (string, error) { return "stale", nil }
		s.Listen(stale)
		b.RevokeTokens()
		time.Sleep(time.Hour)
		must.Eq(b, 1, b.noticesOf(session.Problem))
		must.Eq(b, 0, b.noticesOf(session.Outage))
		must.Between(b, 60, b.Logins(), 300) // two secrets and the token ask, each once a minute or less often
		s.Listen(options)
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		must.Eq(b, 1, b.noticesOf(session.Replaced))
		must.Eq(b, 2, b.Minted())
		b.end(s)
	})
}

func TestIdentityThatIsMissingWhileRunning(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.generation(s, 0, creds)
		options := b.options()
		options.Login.JWT = func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", fmt.Errorf("no identity at %s", time.Now())
		}
		s.Listen(options)
		b.RevokeTokens()
		time.Sleep(3 * time.Hour)
		must.Eq(b, 1, b.noticesOf(session.Problem))
		must.Len(b, 1, b.noticesSoFar())
		must.NoError(b, s.Close(b.Context()))
		must.Len(b, 1, b.noticesSoFar(), must.Sprint("told something when it was closed"))
	})
}

func TestBatchToken(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Batch: true, Revoke: true}
		s := b.open()
		first := b.generation(s, 0, creds)[0]
		time.Sleep(54 * time.Minute)
		must.True(b, changed(s))
		must.Eq(b, 2, b.Logins())
		second := b.generation(s, 0, creds)[0]
		must.NotEq(b, user(first), user(second))
		must.Eq(b, 0, b.Calls("PUT auth/token/renew-self"))
		must.NoError(b, s.Close(b.Context()))
		must.Len(b, 0, b.Users(), must.Sprint("no token takes these leases with it"))
	})
}
