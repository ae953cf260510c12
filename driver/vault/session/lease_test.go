package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

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
		must.Len(b, 0, b.noticesSoFar())
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
		var all []*session.Session
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
	// replaced after seven hours, and lives for eight
	lastly := vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true}
	for name, test := range map[string]struct {
		role    vaulttest.Role
		req     vault.Request
		replace func(*bench)                                    // takes eight hours at most
		meddle  func(*bench, *session.Session) *session.Session // once it is replaced
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
		"it could not be renewed for a while": {role: vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}, req: creds,
			minted: 2, replace: func(b *bench) {
				mend := b.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
				for b.Minted() < 2 {
					time.Sleep(time.Second)
				}
				mend()
			}},
		"the plugin dies meanwhile": {role: lastly, req: creds, minted: 2,
			meddle: func(b *bench, s *session.Session) *session.Session {
				state := b.save(s)
				b.crash()
				return b.adopt(state)
			}},
		"an older reading is committed again": {role: lastly, req: creds, minted: 2,
			meddle: func(b *bench, s *session.Session) *session.Session {
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
		must.Len(b, 1, b.noticesSoFar())
		b.end(s)
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
		must.Len(b, 0, b.noticesSoFar())
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
		must.Eq(b, 1, b.noticesOf(session.Outage))
		must.Eq(b, 0, b.noticesOf(session.Recovered))
		must.Between(b, 20, b.Calls("PUT sys/leases/renew"), 90) // a minute apart at most, half that at least
		time.Sleep(3 * time.Minute)                              // past 85 %
		must.True(b, changed(s))
		must.Eq(b, 2, b.Minted())
		mend()
		b.generation(s, 0, creds)
		time.Sleep(2 * time.Hour)
		must.Eq(b, 2, b.Minted())
		must.Eq(b, 1, b.noticesOf(session.Recovered))
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
		must.Eq(b, 1, b.noticesOf(session.Outage))
		must.Eq(b, 1, b.noticesOf(session.Recovered))
		b.end(s)
	})
}

// A policy without sys/leases/renew is no reason to throw a valid lease away.
func TestRenewalThatIsRefusedKeepsTheLeaseUntilNearItsEnd(t *testing.T) {
	for name, role := range map[string]vaulttest.Role{
		"by the policy": {TTL: 24 * time.Hour, Deny: []string{"sys/leases/renew"}},
		"and the token cannot look itself": {TTL: 24 * time.Hour,
			Deny: []string{"sys/leases/renew", "auth/token/lookup-self"}, Bare: true},
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
				must.Eq(b, 1, b.noticesOf(session.Problem))
				must.StrContains(b, b.noticesSoFar()[0].Text, `path "sys/leases/renew" { capabilities = ["update"] }`)
				must.Between(b, 11, b.Minted(), 14)
				b.end(s)
			})
		})
	}
}
