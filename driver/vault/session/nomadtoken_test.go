package session_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// A token that Nomad has made for the task is Nomad's to renew, to replace and to end.
func TestGivenToken(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true, Policies: []string{"api"}}
		given := b.Issue("app")
		var shown atomic.Value // what Nomad's file holds
		shown.Store(given)
		login := session.Login{NomadToken: func() (string, error) { return shown.Load().(string), nil }}
		s, err := b.client.Open(b.Context(), session.Options{Login: login, Notify: b.note})
		must.NoError(b, err)
		must.True(b, s.External())
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
		must.True(b, s.External())
		must.Between(b, 1, b.noticesOf(session.Problem), 2)
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
				o.Login = session.Login{NomadToken: func() (string, error) { return given, nil }}
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				defer cancel()
				_, err := b.client.Open(ctx, o)
				must.ErrorIs(b, err, vault.ErrUnavailable)
				must.ErrorContains(b, err,
					"look up token: Vault unavailable: the answer tells of no token; "+
						"is it Vault that answers at http://127.0.0.1:8200")
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
		login := session.Login{NomadToken: func() (string, error) { return given, nil }}
		s, err := b.client.Open(b.Context(), session.Options{Login: login, Notify: b.note})
		must.NoError(b, err)
		b.generation(s, 0, creds)
		state, err := s.Save()
		must.NoError(b, err)
		b.client.Close()
		b.start()
		s, err = b.client.Adopt(state, session.Options{Login: login, Notify: b.note})
		must.NoError(b, err)
		time.Sleep(5 * time.Minute)
		must.Eq(b, 0, b.Logins()+b.Calls("PUT auth/token/renew-self"))
		must.NoError(b, s.Close(b.Context()))
		must.Eq(b, []string{given}, b.Tokens())
	})
}
