package vault_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// bench is a server with one client, and what its sessions told.
type bench struct {
	*testing.T
	*vaulttest.Server
	client *vault.Client

	mu      sync.Mutex
	notices []vault.Notice
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
	client, err := vault.NewClient(b.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	b.client = client
	b.Cleanup(client.Close)
}

func (b *bench) options() vault.Options {
	return vault.Options{Login: b.Login("app"), Notify: b.note}
}

func (b *bench) note(n vault.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notices = append(b.notices, n)
}

// heard are the notices so far.
func (b *bench) heard() []vault.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.notices)
}

// told counts the notices of a kind.
func (b *bench) told(kind vault.NoticeKind) (n int) {
	for _, one := range b.heard() {
		if one.Kind == kind {
			n++
		}
	}
	return n
}

// says counts the notices with a text.
func (b *bench) says(text string) (n int) {
	for _, one := range b.heard() {
		if strings.Contains(one.Text, text) {
			n++
		}
	}
	return n
}

func (b *bench) open() *vault.Session {
	s, err := b.client.Open(b.Context(), b.options())
	must.NoError(b, err)
	return s
}

// end closes the session and checks that it leaves nothing in Vault.
func (b *bench) end(s *vault.Session) {
	must.NoError(b, s.Close(context.Background()))
	must.Len(b, 0, b.Tokens())
	must.Len(b, 0, b.Users())
}

const every = 30 * time.Second

func read(path string) vault.Request { return vault.Request{Op: vault.Read, Path: path, Every: every} }

var creds = read("database/creds/app")

// answer is what one reading says of one request.
func (b *bench) answer(r *vault.Reading, req vault.Request) *vault.Secret {
	secret, err := r.Read(b.Context(), req)
	must.NoError(b, err)
	return secret
}

// generation reads and commits.
func (b *bench) generation(s *vault.Session, grace time.Duration, reqs ...vault.Request) []*vault.Secret {
	r := s.Begin(false)
	var all []*vault.Secret
	for _, req := range reqs {
		all = append(all, b.answer(r, req))
	}
	r.Commit(grace)
	return all
}

// changed reports whether the session has something new to tell.
func changed(s *vault.Session) bool {
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

func TestLeaseIsRenewedForADay(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.generation(s, 0, creds)
		time.Sleep(24 * time.Hour)
		must.False(b, changed(s))
		must.Eq(b, 1, b.Minted())
		must.Len(b, 1, b.Users())
		must.Eq(b, 1, b.Logins())
		must.Between(b, 34, b.Calls("PUT sys/leases/renew"), 50) // at a half to two thirds of an hour each
		must.Between(b, 34, b.Calls("PUT auth/token/renew-self"), 50)
		must.Len(b, 0, b.heard())
		b.end(s)
	})
}

func TestLeaseIsRenewedBeforeItIsInUse(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Creds["app"] = vaulttest.Creds{TTL: 20 * time.Second}
		s := b.open()
		r := s.Begin(false)
		first := b.answer(r, creds)
		time.Sleep(time.Minute) // the image is being pulled
		r.Commit(0)
		must.Eq(b, []string{user(first)}, b.Users())
		must.False(b, changed(s))
		b.end(s)
	})
}

func TestShortLeaseIsReplacedInTimeWhenItsRenewalsFail(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Creds["app"] = vaulttest.Creds{TTL: 20 * time.Second}
		b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		const tasks = 20 // for each its own jitter
		var all []*vault.Session
		for range tasks {
			s := b.open()
			b.generation(s, 0, creds)
			all = append(all, s)
		}
		time.Sleep(17*time.Second + 100*time.Millisecond)
		must.Eq(b, 2*tasks, b.Minted())
		for _, s := range all {
			must.NoError(b, s.Close(b.Context()))
		}
	})
}

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
		must.Eq(b, 1, b.told(vault.Outage))
		time.Sleep(3 * time.Minute)
		must.Eq(b, 2, b.Logins())
		must.Eq(b, 1, b.told(vault.Recovered))
		b.end(s)
	})
}

// A node of Vault that has not heard of a token yet denies all that is asked with it: the lookup of a mount, the read, and a revocation.
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

func TestLeaseIsReplacedNearItsEnd(t *testing.T) {
	for name, role := range map[string]vaulttest.Creds{
		"cannot be renewed":      {TTL: time.Hour, Fixed: true},
		"is cut at the max TTL":  {TTL: time.Hour, MaxTTL: time.Hour},
		"claims to be renewable": {TTL: time.Hour, MaxTTL: time.Hour, Fixed: false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
				b.Creds["app"] = role
				s := b.open()
				first := b.generation(s, 0, creds)[0]
				time.Sleep(48 * time.Minute)
				must.False(b, changed(s))
				time.Sleep(6 * time.Minute) // 85 %, give or take three, are at 49 to 53 minutes
				must.True(b, changed(s))
				must.Len(b, 2, b.Users(), must.Sprint("the old lease is kept until the new one is in use"))
				second := b.generation(s, time.Minute, creds)[0]
				must.NotEq(b, user(first), user(second))
				time.Sleep(59 * time.Second)
				must.Len(b, 2, b.Users())
				time.Sleep(2 * time.Second)
				must.Eq(b, []string{user(second)}, b.Users())
				b.end(s)
			})
		})
	}
}

// A newer lease is at hand, but the process does not know it yet: its splay is long, or its action is stuck.
func TestLeaseInUseIsRenewedUntilTheCommitOfTheNext(t *testing.T) {
	endless := creds
	endless.Every = 0
	lastly := vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true} // replaced after seven hours, and lives for eight
	for name, test := range map[string]struct {
		role    vaulttest.Role
		req     vault.Request
		replace func(*bench)                                // takes eight hours at most
		meddle  func(*bench, *vault.Session) *vault.Session // once it is replaced
		minted  int
	}{
		"its token cannot be renewed": {role: lastly, req: creds, minted: 2},
		"and the next one cannot be read": {role: lastly, req: creds, minted: 1, replace: func(b *bench) {
			b.Break(vaulttest.Fault{Match: "GET database/", Status: 500})
		}},
		"the next one is refused": {role: lastly, req: creds, minted: 1, replace: func(b *bench) {
			b.Break(vaulttest.Fault{Match: "GET database/", Status: 400})
		}},
		"it is read once": {role: lastly, req: endless, minted: 1},
		"it could not be renewed for a while": {role: vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}, req: creds, minted: 2, replace: func(b *bench) {
			mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
			for b.Minted() < 2 {
				time.Sleep(time.Second)
			}
			mend()
		}},
		"the plugin dies meanwhile": {role: lastly, req: creds, minted: 2, meddle: func(b *bench, s *vault.Session) *vault.Session {
			state := b.save(s)
			b.crash()
			return b.adopt(state)
		}},
		"an older reading is committed again": {role: lastly, req: creds, minted: 2, meddle: func(b *bench, s *vault.Session) *vault.Session {
			b.answer(s.Begin(false), creds) // and given up
			return s
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = test.role
				b.Creds["app"] = vaulttest.Creds{TTL: 10 * time.Minute}
				began := time.Now()
				s := b.open()
				first := user(b.generation(s, 0, test.req)[0])
				if test.replace != nil {
					test.replace(b)
				}
				time.Sleep(7*time.Hour + 5*time.Minute - time.Since(began))
				must.True(b, test.minted == 1 || changed(s))
				if test.meddle != nil {
					s = test.meddle(b, s)
				}
				for time.Since(began) < 7*time.Hour+59*time.Minute {
					time.Sleep(time.Minute)
					must.SliceContains(b, b.Users(), first)
				}
				must.Eq(b, test.minted, b.Minted())
				if test.minted > 1 {
					second := user(b.generation(s, 10*time.Second, test.req)[0])
					time.Sleep(9 * time.Second)
					must.SliceContains(b, b.Users(), first)
					time.Sleep(2 * time.Second)
					must.Eq(b, []string{second}, b.Users())
				}
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

// The token is replaced and the lease with it, all while the image is being pulled.
func TestLeaseIsRenewedBeforeItIsInUseAlthoughThereIsANewerOne(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true}
		b.Creds["app"] = vaulttest.Creds{TTL: 10 * time.Minute}
		s := b.open()
		r := s.Begin(false)
		first := user(b.answer(r, creds))
		time.Sleep(7*time.Hour + 30*time.Minute)
		must.Eq(b, 2, b.Minted())
		r.Commit(0)
		must.True(b, changed(s))
		time.Sleep(25 * time.Minute)
		must.SliceContains(b, b.Users(), first)
		second := user(b.generation(s, 0, creds)[0])
		time.Sleep(time.Second)
		must.Eq(b, []string{second}, b.Users())
		b.end(s)
	})
}

// Vault says of a lease that it is gone, and is not asked again.
func TestLeaseInUseThatDiesIsNotRenewedForEver(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 8 * time.Hour, Fixed: true}
		s := b.open()
		b.generation(s, 0, creds)
		b.RevokeTokens()
		time.Sleep(time.Hour)
		must.Eq(b, 2, b.Minted())
		renewals := b.Calls("PUT sys/leases/renew")
		time.Sleep(6 * time.Hour)
		must.Between(b, 8, b.Calls("PUT sys/leases/renew")-renewals, 12, must.Sprint("those of the second one"))
		must.Len(b, 1, b.heard())
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
		must.Eq(b, 1, b.told(vault.Replaced))

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

func TestLeaseRevokedByOperator(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		first := b.generation(s, 0, creds)[0]
		b.RevokeLeases()
		time.Sleep(41 * time.Minute)
		must.True(b, changed(s))
		must.Eq(b, 1, b.Logins())
		must.Eq(b, 1, b.Calls("PUT sys/leases/renew"), must.Sprint("a lease that is gone is asked for again"))
		second := b.generation(s, 0, creds)[0]
		must.NotEq(b, user(first), user(second))
		must.Eq(b, []string{user(second)}, b.Users())
		must.Len(b, 0, b.heard())
		b.end(s)
	})
}

func TestRenewalsThatFailKeepTheLease(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour}
		b.Creds["app"] = vaulttest.Creds{TTL: 2 * time.Hour}
		s := b.open()
		b.generation(s, 0, creds)
		mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		time.Sleep(100 * time.Minute)
		must.False(b, changed(s))
		must.Eq(b, 1, b.Minted())
		must.Eq(b, 1, b.told(vault.Outage))
		must.Eq(b, 0, b.told(vault.Recovered))
		must.Between(b, 20, b.Calls("PUT sys/leases/renew"), 90) // a minute apart at most, half that at least
		time.Sleep(3 * time.Minute)                              // past 85 %
		must.True(b, changed(s))
		must.Eq(b, 2, b.Minted())
		mend()
		b.generation(s, 0, creds)
		time.Sleep(2 * time.Hour)
		must.Eq(b, 2, b.Minted())
		must.Eq(b, 1, b.told(vault.Recovered))
		b.end(s)
	})
}

func TestRenewalsThatRecoverInTimeReplaceNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour}
		b.Creds["app"] = vaulttest.Creds{TTL: 2 * time.Hour}
		s := b.open()
		b.generation(s, 0, creds)
		mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		time.Sleep(95 * time.Minute)
		mend()
		time.Sleep(24 * time.Hour)
		must.False(b, changed(s))
		must.Eq(b, 1, b.Minted())
		must.Eq(b, 1, b.told(vault.Outage))
		must.Eq(b, 1, b.told(vault.Recovered))
		b.end(s)
	})
}

// A policy without sys/leases/renew is no reason to throw a valid lease away.
func TestRenewalThatIsRefusedKeepsTheLeaseUntilNearItsEnd(t *testing.T) {
	for name, role := range map[string]vaulttest.Role{
		"by the policy":                    {TTL: 24 * time.Hour, Deny: []string{"sys/leases/renew"}},
		"and the token cannot look itself": {TTL: 24 * time.Hour, Deny: []string{"sys/leases/renew", "auth/token/lookup-self"}, Bare: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = role
				s := b.open()
				b.generation(s, 0, creds)
				time.Sleep(48 * time.Minute)
				must.False(b, changed(s))
				must.Eq(b, 1, b.Calls("PUT sys/leases/renew"))
				time.Sleep(6 * time.Minute)
				must.True(b, changed(s))
				b.generation(s, 0, creds)
				time.Sleep(10 * time.Hour)
				must.Eq(b, 1, b.Logins())
				must.Eq(b, 1, b.told(vault.Problem))
				must.StrContains(b, b.heard()[0].Text, `path "sys/leases/renew" { capabilities = ["update"] }`)
				must.Between(b, 11, b.Minted(), 14)
				b.end(s)
			})
		})
	}
}

func TestOutageOfEightHours(t *testing.T) {
	const tasks = 4
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		all := b.tasks(tasks)
		b.Down(true)
		time.Sleep(8 * time.Hour)
		must.Eq(b, tasks, b.told(vault.Outage))
		for _, s := range all {
			must.False(b, changed(s))
			must.Eq(b, "v", value(b.answer(s.Begin(false), read("secret/app"))))
		}
		b.Down(false)
		time.Sleep(2 * time.Minute)
		must.Eq(b, tasks, b.told(vault.Outage))
		must.Eq(b, tasks, b.told(vault.Recovered))
		must.Eq(b, 2*tasks, b.Logins())
		must.Eq(b, 2*tasks, b.Minted())
		for _, s := range all {
			must.True(b, changed(s))
			b.generation(s, 0, creds, read("secret/app"))
		}
		time.Sleep(time.Hour)
		for _, s := range all {
			must.False(b, changed(s))
			must.NoError(b, s.Close(b.Context()))
		}
		must.Len(b, 0, b.Users())
	})
}

func TestOutageEndsWithoutAStampede(t *testing.T) {
	const tasks = 100
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		all := b.tasks(tasks)
		b.Down(true)
		time.Sleep(20 * time.Minute)
		b.RevokeTokens()
		b.Down(false)
		for range 60 {
			before := b.Logins()
			time.Sleep(time.Second)
			must.Less(b, tasks/5, b.Logins()-before)
		}
		must.Eq(b, 2*tasks, b.Logins())
		for _, s := range all {
			must.NoError(b, s.Close(b.Context()))
		}
	})
}

// The operator can have a node ask more slowly than its tasks would: when they start, and when an outage is over. Nothing fails for it.
func TestRateLimit(t *testing.T) {
	const tasks, perSecond, burst = 100, 5, 20
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		cluster := b.Cluster()
		cluster.RateLimit = fmt.Sprintf("%d:%d", perSecond, burst)
		client, err := vault.NewClient(cluster, hclog.NewNullLogger())
		must.NoError(b, err)
		b.Cleanup(client.Close)
		b.client = client

		ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
		defer cancel()
		sessions := make([]*vault.Session, tasks)
		var all sync.WaitGroup
		for i := range sessions {
			all.Go(func() {
				s, err := client.Open(ctx, b.options())
				must.NoError(b, err)
				r := s.Begin(false)
				_, err = r.Read(ctx, creds)
				must.NoError(b, err)
				r.Commit(0)
				sessions[i] = s
			})
		}
		b.keepsTo(perSecond, burst, 2*time.Minute)
		all.Wait()
		must.Eq(b, tasks, b.Logins())
		must.Eq(b, tasks, b.Minted())

		b.RevokeTokens()
		b.Down(true)
		time.Sleep(2 * time.Hour)
		b.Down(false)
		b.keepsTo(perSecond, burst, 10*time.Minute)
		must.Eq(b, 2*tasks, b.Logins())
		must.Eq(b, tasks, b.told(vault.Recovered))
		for _, s := range sessions {
			must.NoError(b, s.Close(b.Context()))
		}
	})
}

// keepsTo checks for that long that Vault is not asked more often.
func (b *bench) keepsTo(perSecond, burst int, long time.Duration) {
	first := b.Calls("")
	for began := time.Now(); time.Since(began) < long; {
		time.Sleep(time.Second)
		asked, allowed := b.Calls("")-first, burst+perSecond*int(time.Since(began)/time.Second)
		must.LessEq(b, allowed, asked, must.Sprint("requests after ", time.Since(began)))
	}
}

// tasks opens that many sessions with a lease and a KV secret each.
func (b *bench) tasks(n int) (all []*vault.Session) {
	for range n {
		s := b.open()
		b.generation(s, 0, creds, read("secret/app"))
		all = append(all, s)
	}
	return all
}

// One engine that is down is told once, although all else works.
func TestOutageOfOneEngineDoesNotFlap(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/app", map[string]any{"k": "v"})
		s := b.open()
		b.generation(s, 0, creds, read("secret/app"))
		mend := []func(){
			b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500}),
			b.Break(vaulttest.Fault{Match: "GET database/", Status: 500}),
		}
		time.Sleep(5 * time.Hour)
		must.Eq(b, 1, b.told(vault.Outage))
		must.Eq(b, 0, b.told(vault.Recovered))
		mend[0]()
		mend[1]()
		time.Sleep(2 * time.Minute)
		must.Eq(b, 1, b.told(vault.Recovered))
		must.Eq(b, 1, b.told(vault.Dead))
		must.True(b, changed(s))
		must.Len(b, 3, b.heard())
		b.end(s)
	})
}

func TestSlowVaultIsNoOutage(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, MaxTTL: 3 * time.Hour}
		b.Put("secret/app", map[string]any{"k": "v"})
		b.Break(vaulttest.Fault{Slow: 3 * time.Second})
		s := b.open()
		b.generation(s, 0, creds, read("secret/app"))
		time.Sleep(4 * time.Hour)
		must.Eq(b, 0, b.told(vault.Outage))
		must.Eq(b, 2, b.Logins())
		must.Eq(b, 2, b.Minted())
		must.True(b, changed(s))
		b.end(s)
	})
}

func TestPollingNoticesAnEdit(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		b.Put("kv/b", map[string]any{"k": "1"})
		fast, slow := read("secret/a"), vault.Request{Op: vault.Read, Path: "kv/b", Every: time.Hour}
		s := b.open()
		b.generation(s, 0, fast, slow, creds)
		time.Sleep(10 * time.Minute)
		must.False(b, changed(s))
		b.Put("secret/a", map[string]any{"k": "2"})
		b.Put("kv/b", map[string]any{"k": "2"})
		time.Sleep(every + every/8)
		must.True(b, changed(s))
		time.Sleep(10 * time.Minute)
		must.False(b, changed(s), must.Sprint("told again without another change"))
		r := s.Begin(false)
		must.Eq(b, "2", value(b.answer(r, fast)))
		must.Eq(b, "2", b.answer(r, slow).Data["k"].(string), must.Sprint("changed together, told apart"))
		must.Eq(b, 1, b.Minted())
		r.Commit(0)
		time.Sleep(10 * time.Minute)
		must.False(b, changed(s))
		b.end(s)
	})
}

func TestOnceIsReadOnceAndKeptAlive(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		kv, lease := read("secret/a"), creds
		kv.Every, lease.Every = 0, 0
		s := b.open()
		b.generation(s, 0, kv, lease)
		b.Put("secret/a", map[string]any{"k": "2"})
		mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		time.Sleep(55 * time.Minute)
		mend()
		time.Sleep(24 * time.Hour)
		must.False(b, changed(s))
		must.Eq(b, 1, b.Calls("GET secret/"))
		must.Eq(b, 1, b.Minted())
		must.Len(b, 1, b.Users())
		b.end(s)
	})
}

func TestOnceThatIsLostIsNotReadAgain(t *testing.T) {
	bubble(t, func(b *bench) {
		lease := creds
		lease.Every = 0
		s := b.open()
		b.generation(s, 0, lease)
		b.RevokeTokens()
		time.Sleep(24 * time.Hour)
		must.True(b, changed(s), must.Sprint("the token was replaced"))
		must.Eq(b, 1, b.Minted())
		must.Less(b, 5, b.Calls("PUT sys/leases/renew"))
		must.NoError(b, s.Close(b.Context()))
	})
}

func TestOnceThatEndsInAnOutageDoesNotProlongIt(t *testing.T) {
	bubble(t, func(b *bench) {
		lease := creds
		lease.Every = 0
		s := b.open()
		b.generation(s, 0, lease)
		b.Down(true)
		time.Sleep(2 * time.Hour)
		b.Down(false)
		time.Sleep(2 * time.Minute)
		must.Eq(b, 1, b.told(vault.Recovered))
		must.Eq(b, 1, b.Minted())
		b.end(s)
	})
}

// A Vault that is down rotates nothing: the password it told last is good for a start meanwhile.
func TestStaticRoleInAnOutage(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Static("app", 10*time.Minute)
		s := b.open()
		static := read("database/static-creds/app")
		first := b.generation(s, 0, static)[0]
		b.Down(true)
		time.Sleep(15 * time.Minute)
		began := time.Now()
		must.Eq(b, first, b.answer(s.Begin(true), static))
		must.Eq(b, 0, time.Since(began))
		b.Down(false)
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		b.end(s)
	})
}

func TestExpiringAndRotatingSecretsAreReadAgainInTime(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Static("app", 10*time.Minute)
		cert := vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "1h"}, Every: every}
		static := read("database/static-creds/app")
		s := b.open()
		first := b.generation(s, 0, cert, static)
		must.Eq(b, vault.Expiring, first[0].Kind)
		must.Eq(b, vault.Rotating, first[1].Kind)
		time.Sleep(10*time.Minute + 7*time.Second)
		must.True(b, changed(s))
		second := b.generation(s, 0, cert, static)
		must.Eq(b, first[0], second[0])
		must.NotEq(b, first[1].Data["password"], second[1].Data["password"])
		time.Sleep(43 * time.Minute)
		third := b.generation(s, 0, cert, static)
		must.NotEq(b, first[0].Data["certificate"], third[0].Data["certificate"])
		must.Eq(b, 2, b.Calls("PUT pki/issue/app"))
		b.end(s)
	})
}

// An operator rotates a static role whenever he likes (database/rotate-role); looking for that is no change.
func TestStaticRoleThatIsRotatedBeforeItsTime(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Static("app", 24*time.Hour)
		static := read("database/static-creds/app")
		s := b.open()
		b.generation(s, 0, static)
		time.Sleep(5 * time.Minute)
		must.False(b, changed(s))
		b.Rotate()
		time.Sleep(every + every/8)
		must.True(b, changed(s))
		b.generation(s, 0, static)
		time.Sleep(time.Hour)
		must.False(b, changed(s))
		b.end(s)
	})
}

// A certificate's end is the only one that Vault tells as a point in time, and the node's clock need not be Vault's.
func TestCertificateIsReplacedInTimeWhateverTheClocksSay(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"the same": time.Second, "Vault's is ahead": 10 * time.Minute, "Vault's is behind": -10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Ahead = ahead
				cert := vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "5m"}, Every: every}
				s := b.open()
				first := b.generation(s, 0, cert)
				must.Eq(b, vault.Expiring, first[0].Kind)
				time.Sleep(4 * time.Minute)
				must.Eq(b, 1, b.Calls("PUT pki/issue/app"))
				time.Sleep(time.Minute)
				must.True(b, changed(s))
				must.Eq(b, 2, b.Calls("PUT pki/issue/app"))
				b.end(s)
			})
		})
	}
}

func TestExpiringSecretIsReplacedAsLongBeforeItsEndAsIsAskedFor(t *testing.T) {
	for name, test := range map[string]struct{ before, from, to time.Duration }{
		"not said":               {0, 49 * time.Minute, 53 * time.Minute},
		"late":                   {5 * time.Minute, 54 * time.Minute, 55*time.Minute + time.Second},
		"early":                  {20 * time.Minute, 37 * time.Minute, 40*time.Minute + time.Second},
		"more than its life":     {2 * time.Hour, 29 * time.Minute, 30*time.Minute + time.Second},
		"by the second who asks": {-20 * time.Minute, 37 * time.Minute, 40*time.Minute + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				cert := vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "1h"}, Every: every, Before: max(test.before, 0)}
				reqs := []vault.Request{cert}
				if test.before < 0 {
					cert.Before = -test.before
					reqs = append(reqs, cert)
				}
				s := b.open()
				b.generation(s, 0, reqs...)
				time.Sleep(test.from)
				must.False(b, changed(s))
				time.Sleep(test.to - test.from)
				must.True(b, changed(s))
				must.Eq(b, 2, b.Calls("PUT pki/issue/app"))
				b.generation(s, 0, reqs...)
				time.Sleep(20 * time.Minute)
				must.Eq(b, 2, b.Calls("PUT pki/issue/app"))
				b.end(s)
			})
		})
	}
}

func TestSpentLeases(t *testing.T) {
	for name, test := range map[string]struct {
		revoke bool
		grace  time.Duration
		calls  int
		users  int
	}{
		"are revoked after the grace":                {revoke: true, grace: time.Minute, calls: 1, users: 1},
		"are left to end when the grace is negative": {revoke: true, grace: -1, calls: 0, users: 2},
		"are left alone when the policy denies it":   {revoke: false, grace: time.Minute, calls: 1, users: 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: test.revoke}
				b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
				s := b.open()
				b.generation(s, 0, creds)
				time.Sleep(54 * time.Minute)
				b.generation(s, test.grace, creds)
				time.Sleep(2 * time.Minute)
				must.Eq(b, test.calls, b.Calls("PUT sys/leases/revoke"))
				must.Len(b, test.users, b.Users())
				time.Sleep(52 * time.Minute)
				b.generation(s, test.grace, creds)
				time.Sleep(2 * time.Minute)
				if !test.revoke {
					must.Eq(b, test.calls, b.Calls("PUT sys/leases/revoke"), must.Sprint("it asks although it was denied"))
				}
				must.Len(b, 0, b.heard())
				b.end(s)
			})
		})
	}
}

func TestForgottenQuestionIsRevokedAfterTheGrace(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		s := b.open()
		b.generation(s, 0, creds)
		b.generation(s, time.Minute)
		time.Sleep(59 * time.Second)
		must.Len(b, 1, b.Users())
		time.Sleep(2 * time.Second)
		must.Len(b, 0, b.Users())
		b.end(s)
	})
}

func TestForgottenQuestionIsLeftToEndWhenTheGraceIsNegative(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		s := b.open()
		b.generation(s, 0, creds)
		b.generation(s, -1)
		time.Sleep(time.Minute)
		must.Len(b, 1, b.Users())
		b.end(s)
	})
}

func TestCommitOfTheSameAgainRevokesNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		s := b.open()
		for range 3 {
			b.generation(s, 0, creds)
			time.Sleep(time.Minute)
		}
		must.Len(b, 1, b.Users())
		must.Eq(b, 0, b.Calls("PUT sys/leases/revoke"))
		b.end(s)
	})
}

func TestCommitTakesOverAShorterInterval(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		slow := vault.Request{Op: vault.Read, Path: "secret/a", Every: time.Hour}
		b.generation(s, 0, slow)
		b.generation(s, 0, slow, read("secret/a"))
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(time.Minute)
		must.True(b, changed(s))
		b.end(s)
	})
}

// The last reading no longer asks while its answer is on the way: nobody wants it.
func TestAnswerToAForgottenQuestionIsRevoked(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		s := b.open()
		b.generation(s, 0, creds)
		mend := b.Break(vaulttest.Fault{Match: "GET database/", Slow: 20 * time.Second})
		for b.Minted() < 2 {
			time.Sleep(time.Second)
		}
		mend()
		b.generation(s, 0)
		time.Sleep(time.Minute)
		must.Len(b, 0, b.Users())
		b.end(s)
	})
}

// What was issued between two commits was never in use, and must not live on.
func TestLeaseThatWasNeverInUseIsRevoked(t *testing.T) {
	for when, test := range map[string]struct{ grace, lives time.Duration }{
		"at once":                               {0, 0},
		"after the grace":                       {time.Minute, time.Minute}, // it was in the task's files all the same
		"though what was in use is left to end": {-1, 0},
	} {
		t.Run(when, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
				b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
				s := b.open()
				b.generation(s, 0, creds)
				time.Sleep(106 * time.Minute) // two replacements without a commit
				must.Eq(b, 3, b.Minted())
				must.Len(b, 2, b.Users())
				third := b.generation(s, test.grace, creds)[0]
				if test.lives > 0 {
					time.Sleep(test.lives - time.Second)
					must.Len(b, 2, b.Users())
					time.Sleep(time.Second)
				}
				time.Sleep(time.Second)
				must.Eq(b, []string{user(third)}, b.Users())
				b.end(s)
			})
		})
	}
}

// The commit of an older reading leaves alone what a reading under way shows.
func TestCommitOfAnOlderReading(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		b.Creds["other"] = b.Creds["app"]
		s := b.open()
		older := s.Begin(false)
		b.answer(older, creds)
		newer := s.Begin(false)
		b.answer(newer, creds)
		only := b.answer(newer, read("database/creds/other"))
		older.Commit(0)
		time.Sleep(time.Minute)
		must.SliceContains(b, b.Users(), user(only))
		newer.Commit(0)
		time.Sleep(24 * time.Hour)
		must.Len(b, 2, b.Users(), must.Sprint("it is not renewed"))
		b.end(s)
	})
}

func TestChangeBetweenBeginAndCommitIsNotLost(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		r := s.Begin(false)
		b.answer(r, read("secret/a"))
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(time.Minute)
		must.False(b, changed(s), must.Sprint("nothing is in use yet"))
		r.Commit(0)
		must.True(b, changed(s))
		r = s.Begin(false)
		must.Eq(b, "2", value(b.answer(r, read("secret/a"))))
		b.end(s)
	})
}

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

func TestStartWaitsForVault(t *testing.T) {
	for name, fault := range map[string]vaulttest.Fault{
		"that is sealed":       {Status: 503},
		"that is overloaded":   {Status: 429},
		"behind a broken gate": {Status: 502},
		"that hangs":           {Hang: true},
		"that resets":          {Reset: true},
		"that loses answers":   {Lose: true},
		"that cuts its JSON":   {Body: `{"auth": {"client`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				mend := b.Break(fault)
				ctx, cancel := context.WithTimeout(b.Context(), 40*time.Second)
				defer cancel()
				began := time.Now()
				_, err := b.client.Open(ctx, b.options())
				must.ErrorIs(b, err, vault.ErrUnavailable)
				must.True(b, vault.Transient(err))
				must.Between(b, 35*time.Second, time.Since(began), 45*time.Second) // one that hangs may be making a token
				must.Len(b, 1, b.heard(), must.Sprint("it is told once that the start waits"))
				must.Eq(b, vault.Notice{Kind: vault.Waiting, Text: waiting(fault, err)}, b.heard()[0])
				time.AfterFunc(time.Minute, mend)
				s := b.open()
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

// waiting is what a start says that will end with err.
func waiting(fault vaulttest.Fault, err error) string {
	if fault.Hang {
		return "waiting for the task's identity, or for Vault to log in with it"
	}
	return "waiting: " + err.Error()
}

func TestStartThatIsQuickSaysNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		time.AfterFunc(500*time.Millisecond, b.Break(vaulttest.Fault{Status: 503}))
		b.end(b.open())
		must.Len(b, 0, b.heard())
	})
}

// A login whose answer gets lost leaves a token that nobody can revoke: there are not many of those, and none where nothing gets through.
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
				must.Eq(b, 1, b.told(vault.Outage))
				mend()
				time.Sleep(time.Hour)
				must.True(b, changed(s))
				must.Eq(b, 1, b.told(vault.Recovered))
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

func TestStartFailsAtOnceWhereWaitingCannotHelp(t *testing.T) {
	bubble(t, func(b *bench) {
		delete(b.Roles, "app")
		began := time.Now()
		_, err := b.client.Open(b.Context(), b.options())
		must.ErrorIs(b, err, vault.ErrNotFound)
		must.StrContains(b, err.Error(), `create role "app"`)

		b.SetRole("app", vaulttest.Role{TTL: time.Hour, Deny: []string{"secret/"}})
		s := b.open()
		_, err = s.Begin(true).Read(b.Context(), read("secret/a"))
		must.ErrorIs(b, err, vault.ErrDenied)
		must.StrContains(b, err.Error(), `path "secret/data/a" { capabilities = ["read"] }`)
		_, err = s.Begin(true).Read(b.Context(), read("kv/none"))
		must.ErrorIs(b, err, vault.ErrNotFound)
		must.LessEq(b, time.Second, time.Since(began))
		b.end(s)
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
		must.Eq(b, 1, b.told(vault.Problem))
		must.Eq(b, 0, b.told(vault.Outage))
		must.Between(b, 60, b.Logins(), 300) // two secrets and the token ask, each once a minute or less often
		s.Listen(options)
		time.Sleep(2 * time.Minute)
		must.True(b, changed(s))
		must.Eq(b, 1, b.told(vault.Replaced))
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
		must.Eq(b, 1, b.told(vault.Problem))
		must.Len(b, 1, b.heard())
		must.NoError(b, s.Close(b.Context()))
		must.Len(b, 1, b.heard(), must.Sprint("told something when it was closed"))
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

// A token that Nomad has made for the task is Nomad's to renew, to replace and to end.
func TestGivenToken(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true, Policies: []string{"api"}}
		given := b.Issue("app")
		var shown atomic.Value // what Nomad's file holds
		shown.Store(given)
		login := vault.Login{Given: func() (string, error) { return shown.Load().(string), nil }}
		s, err := b.client.Open(b.Context(), vault.Options{Login: login, Notify: b.note})
		must.NoError(b, err)
		must.True(b, s.Given())
		value, accessor, _ := s.Token()
		must.Eq(b, given, value)
		must.NotEq(b, "", accessor)
		must.Eq(b, []string{"default", "api"}, s.Policies())
		first := b.generation(s, 0, creds)[0]
		for range 10 { // While somebody extends it, nothing of it is ours to do, and its leases are kept.
			time.Sleep(50 * time.Minute)
			b.Extend(given)
		}
		must.False(b, changed(s))
		must.Eq(b, 0, b.Logins()+b.Calls("PUT auth/token/renew-self"))
		must.Eq(b, 1, b.Minted())

		old := given
		given = b.Issue("app")
		shown.Store(given)
		time.Sleep(10 * time.Second)
		must.True(b, changed(s))
		second := b.generation(s, 0, creds)[0]
		must.NotEq(b, user(first), user(second))
		time.Sleep(time.Minute)
		must.SliceContains(b, b.Tokens(), old, must.Sprint("it is not ours to revoke"))

		b.RevokeTokens()
		time.Sleep(2 * time.Hour)
		must.True(b, s.Given())
		must.Between(b, 1, b.told(vault.Problem), 2)
		given = b.Issue("app")
		shown.Store(given)
		time.Sleep(time.Minute + 10*time.Second)
		must.True(b, changed(s))
		third := b.generation(s, 0, creds)[0]
		must.NotEq(b, user(second), user(third))

		must.NoError(b, s.Close(b.Context()))
		must.Len(b, 0, b.Users(), must.Sprint("what was issued to us is taken back"))
		must.Eq(b, []string{given}, b.Tokens())
	})
}

// Adoption goes on with it: the next process must not take it for its own.
// What stands before Vault may answer with something of its own.
func TestAnswerOfAProxyTellsNothingOfAToken(t *testing.T) {
	for name, says := range map[string]string{"an empty object": "{}", "a health page": `{"data":{"status":"up"}}`} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				mend := b.Break(vaulttest.Fault{Match: "GET auth/token/lookup-self", Body: says})
				given := b.Issue("app")
				o := b.options()
				o.Login = vault.Login{Given: func() (string, error) { return given, nil }}
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				defer cancel()
				_, err := b.client.Open(ctx, o)
				must.ErrorIs(b, err, vault.ErrUnavailable)
				must.ErrorContains(b, err, "look up token: Vault unavailable: the answer tells of no token; is it Vault that answers at http://127.0.0.1:8200")
				mend()
				s, err := b.client.Open(b.Context(), o)
				must.NoError(b, err)
				must.NoError(b, s.Close(b.Context()))

				s = b.open()
				mend = b.Break(vaulttest.Fault{Match: "PUT auth/token/renew-self", Body: says})
				time.Sleep(45 * time.Minute)
				mend()
				time.Sleep(24 * time.Hour)
				must.Eq(b, 1, b.Logins(), must.Sprint("the token can be renewed as before"))
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

func TestGivenTokenIsAdopted(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		given := b.Issue("app")
		login := vault.Login{Given: func() (string, error) { return given, nil }}
		s, err := b.client.Open(b.Context(), vault.Options{Login: login, Notify: b.note})
		must.NoError(b, err)
		b.generation(s, 0, creds)
		state, err := s.Save()
		must.NoError(b, err)
		b.client.Close()
		b.start()
		s, err = b.client.Adopt(state, vault.Options{Login: login, Notify: b.note})
		must.NoError(b, err)
		time.Sleep(5 * time.Minute)
		must.Eq(b, 0, b.Logins()+b.Calls("PUT auth/token/renew-self"))
		must.NoError(b, s.Close(b.Context()))
		must.Eq(b, []string{given}, b.Tokens())
	})
}

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
		must.ErrorIs(b, err, vault.ErrClosed)
		must.NoError(b, s.Close(b.Context()), must.Sprint("Close may be called again"))
		must.Len(b, 1, b.heard(), must.Sprint("who waits for what Vault may be making"))
		must.Eq(b, 1, b.told(vault.Waiting))
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
		for _, s := range []*vault.Session{one, two} {
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

func TestReadersOfOneReadingAskOnce(t *testing.T) {
	bubble(t, func(b *bench) {
		var reqs []vault.Request
		for i := range 5 {
			path := fmt.Sprintf("secret/%d", i)
			b.Put(path, map[string]any{"k": "1"})
			reqs = append(reqs, read(path))
		}
		s := b.open()
		mend := b.Break(vaulttest.Fault{Match: "GET secret/", Status: 503})
		time.AfterFunc(10*time.Second, mend)
		r := s.Begin(false)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for _, req := range reqs {
					b.answer(r, req)
				}
			})
		}
		all.Wait()
		r.Commit(0)
		failed := b.Calls("GET secret/data/0") - 1
		must.Between(b, 3, failed, 30)
		for i := 1; i < 5; i++ {
			must.Eq(b, 1, b.Calls(fmt.Sprintf("GET secret/data/%d", i)))
		}
		b.end(s)
	})
}

func TestReaderCanGiveUpWaitingForAnother(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Break(vaulttest.Fault{Match: "GET database/", Hang: true})
		r := s.Begin(false)
		var slow sync.WaitGroup
		slow.Go(func() { _, _ = r.Read(b.Context(), creds) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		_, err := r.Read(ctx, creds)
		must.ErrorIs(b, err, context.DeadlineExceeded)
		must.NoError(b, s.Close(b.Context()))
		slow.Wait()
	})
}

func TestFreshReading(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		b.generation(s, 0, creds, read("secret/a"))
		b.Put("secret/a", map[string]any{"k": "2"})
		r := s.Begin(true)
		must.Eq(b, "2", value(b.answer(r, read("secret/a"))))
		b.answer(r, creds)
		must.Eq(b, 1, b.Minted(), must.Sprint("a start anew costs no credentials"))
		r.Commit(0)
		must.False(b, changed(s))
		b.Down(true)
		r = s.Begin(true)
		must.Eq(b, "2", value(b.answer(r, read("secret/a"))), must.Sprint("the last known good"))
		b.Down(false)
		b.end(s)
	})
}

func TestWriteWithoutAnAnswer(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Break(vaulttest.Fault{Match: "PUT pki/issue/", Status: 204})
		secret := b.generation(s, 0, vault.Request{Op: vault.Write, Path: "pki/issue/app", Every: every})[0]
		must.Eq(b, vault.Fixed, secret.Kind)
		time.Sleep(time.Hour)
		must.Eq(b, 1, b.Calls("PUT pki/"))
		b.end(s)
	})
}

// Vault forgets what it is just making for a request that is cut off: nobody could revoke it.
func TestWhatVaultIsMakingAtTheEndIsRevoked(t *testing.T) {
	slow := vaulttest.Fault{Match: "GET database/", Slow: 3 * time.Second, Forget: true}
	for when, end := range map[string]func(*bench, *vault.Session){
		"a reading gives up": func(b *bench, s *vault.Session) {
			b.Break(slow)
			ctx, cancel := context.WithTimeout(b.Context(), time.Second)
			defer cancel()
			_, _ = s.Begin(false).Read(ctx, creds)
		},
		"a reading gives up and the session ends before it": func(b *bench, s *vault.Session) {
			b.Break(slow)
			ctx, cancel := context.WithCancel(b.Context())
			go func() { _, _ = s.Begin(false).Read(ctx, creds) }()
			time.Sleep(time.Second)
			cancel()
		},
		"a lease is being replaced": func(b *bench, s *vault.Session) {
			b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
			b.generation(s, 0, creds)
			b.Break(slow)
			for b.Minted() == 1 {
				time.Sleep(time.Second)
			}
		},
		"a certificate is being issued": func(b *bench, s *vault.Session) {
			b.Break(vaulttest.Fault{Match: "PUT pki/", Slow: 3 * time.Second})
			go func() {
				_, _ = s.Begin(false).Read(b.Context(), vault.Request{Op: vault.Write, Path: "pki/issue/app", Revoke: "pki/revoke-with-key"})
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
				must.ErrorIs(b, err, vault.ErrClosed)
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
