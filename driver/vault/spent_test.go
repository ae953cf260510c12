package vault_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// A token that was replaced takes its leases with it. While no other may be issued, one of them is the last known good that a
// generation shows, and the commit of that must not end it.
func TestCommitOfTheLastKnownGoodDoesNotRevokeIt(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true}) // replaced after seven hours
		b.Creds["app"] = vaulttest.Creds{TTL: 20 * time.Minute}
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		reqs := []vault.Request{creds, read("secret/a")}
		first := user(b.generation(s, 0, reqs...)[0])
		time.Sleep(6*time.Hour + 30*time.Minute)
		mend := b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		for b.Minted() < 5 { // that is all the budget
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		must.Eq(b, 2, b.Logins())
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(every + every/5)
		must.True(b, changed(s))
		must.Eq(b, first, user(b.generation(s, 0, reqs...)[0]))
		mend()
		for !changed(s) {
			must.SliceContains(b, b.Users(), first)
			time.Sleep(10 * time.Second)
		}
		next := user(b.generation(s, 0, reqs...)[0])
		must.NotEq(b, first, next)
		time.Sleep(time.Second)
		must.SliceNotContains(b, b.Users(), first)
		must.Len(b, 1, b.Tokens())
		b.end(s)
	})
}

// The same, of a lease that no generation has shown yet when the plugin dies: the next process may have to show it.
func TestAdoptionDoesNotRevokeTheLastKnownGood(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true})
		b.Creds["app"] = vaulttest.Creds{TTL: 20 * time.Minute}
		s := b.open()
		first := user(b.generation(s, 0, creds)[0])
		time.Sleep(6 * time.Hour)
		b.RevokeLease(first)
		time.Sleep(30 * time.Minute)
		must.Eq(b, 2, b.Minted())
		second := user(b.answer(s.Begin(false), creds))
		b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		for b.Minted() < 6 {
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		time.Sleep(4 * time.Second)
		must.Eq(b, second, user(b.answer(s.Begin(false), creds)))
		must.SliceContains(b, b.Users(), second)
		must.NoError(b, s.Close(b.Context()))
	})
}
