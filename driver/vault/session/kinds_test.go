package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

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
		must.Eq(b, 1, b.noticesOf(session.Recovered))
		must.Eq(b, 1, b.Minted())
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
	for name, ahead := range map[string]time.Duration{"the same": time.Second, "Vault's is ahead": 10 * time.Minute,
		"Vault's is behind": -10 * time.Minute} {
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
				cert := vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "1h"}, Every: every,
					Before: max(test.before, 0)}
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

// The token's time left is another one at each look, and not worth a restart; another token is.
func TestWhatVaultTellsOfTheTokenFollowsIt(t *testing.T) {
	bubble(t, func(b *bench) {
		self := read("auth/token/lookup-self")
		s := b.open()
		first := b.generation(s, 0, self)[0]
		time.Sleep(24 * time.Hour)
		must.False(b, changed(s))
		b.RevokeTokens()
		time.Sleep(time.Hour)
		must.True(b, changed(s))
		second := b.generation(s, 0, self)[0]
		_, accessor, _ := s.Token()
		must.Eq(b, accessor, second.Data["accessor"].(string))
		must.NotEq(b, first.Data["accessor"], second.Data["accessor"])
		b.end(s)
	})
}

// A token that a template asks for is kept as a lease is: renewed, made anew when it was revoked, and revoked with what
// it was made for.
func TestTokenThatIsMadeForATemplate(t *testing.T) {
	bubble(t, func(b *bench) {
		child := vault.Request{Op: vault.Write, Path: "auth/token/create", Every: every}
		s := b.open()
		first := b.generation(s, 0, child)[0]
		must.Eq(b, vault.Leased, first.Kind)
		must.True(b, b.Lives(first.Auth.Value))
		time.Sleep(24 * time.Hour)
		must.False(b, changed(s))
		must.True(b, b.Lives(first.Auth.Value), must.Sprint("it is renewed"))
		must.Eq(b, 1, b.Calls("PUT auth/token/create"))

		b.RevokeToken(first.Auth.Value)
		time.Sleep(time.Hour)
		must.True(b, changed(s))
		second := b.generation(s, 0, child)[0]
		must.True(b, b.Lives(second.Auth.Value))

		b.generation(s, time.Minute)
		time.Sleep(59 * time.Second)
		must.True(b, b.Lives(second.Auth.Value))
		time.Sleep(2 * time.Second)
		must.False(b, b.Lives(second.Auth.Value), must.Sprint("nothing asks for it any more"))

		third := b.generation(s, 0, child)[0]
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		must.Eq(b, third.Auth.Value, b.generation(s, 0, child)[0].Auth.Value)
		b.generation(s, -1) // left to end, but not beyond the session
		must.True(b, b.Lives(third.Auth.Value))
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
