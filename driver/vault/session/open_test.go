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
				must.Len(b, 1, b.noticesSoFar(), must.Sprint("it is told once that the start waits"))
				must.Eq(b, session.Notice{Kind: session.Waiting, Text: waiting(fault, err)}, b.noticesSoFar()[0])
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
		must.Len(b, 0, b.noticesSoFar())
	})
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
