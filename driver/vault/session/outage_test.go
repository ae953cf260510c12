package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// outages are the ways in which Vault as a whole can fail. acts: it does what it is asked all the same, and so nothing
// ends. answers: it is only slow, of which nobody has to be told.
var outages = map[string]struct {
	fault         vaulttest.Fault // the zero Fault: nobody listens
	acts, answers bool
}{
	"unreachable":       {},
	"hung":              {fault: vaulttest.Fault{Hang: true}},
	"reset":             {fault: vaulttest.Fault{Reset: true}},
	"overloaded":        {fault: vaulttest.Fault{Status: 429}},
	"erring":            {fault: vaulttest.Fault{Status: 500}},
	"behind a bad gate": {fault: vaulttest.Fault{Status: 502}},
	"sealed":            {fault: vaulttest.Fault{Status: 503}},
	"behind a slow one": {fault: vaulttest.Fault{Status: 504}},
	"a standby":         {fault: vaulttest.Fault{Status: 473}},
	"losing answers":    {fault: vaulttest.Fault{Lose: true}, acts: true},
	"cutting answers":   {fault: vaulttest.Fault{Body: `{"auth": {"client`}, acts: true},
	"slow":              {fault: vaulttest.Fault{Slow: 3 * time.Second}, acts: true, answers: true},
}

// Whatever the fault and however long: nobody has to do anything meanwhile, one notice says that it began and one that
// it is over, and then there is one change where something has ended, and none where nothing has.
func TestOutages(t *testing.T) {
	for how, kind := range outages {
		for length, test := range map[string]struct {
			lasts, life time.Duration
		}{
			"a quarter of an hour":                {15 * time.Minute, time.Hour},
			"eight hours, which leases outlive":   {8 * time.Hour, 24 * time.Hour},
			"eight hours, in which all has ended": {8 * time.Hour, time.Hour},
		} {
			t.Run(how+" for "+length, func(t *testing.T) {
				bubble(t, func(b *bench) {
					const tasks = 4
					b.SetRole("app", vaulttest.Role{TTL: test.life, Revoke: true})
					b.Creds["app"] = vaulttest.Creds{TTL: test.life}
					b.Put("secret/app", map[string]any{"k": "v"})
					all := b.tasks(tasks)
					before := b.Users()
					mend := b.fails(kind.fault)
					for range test.lasts / (5 * time.Minute) {
						time.Sleep(5 * time.Minute)
						for _, s := range all {
							must.False(b, changed(s))
							must.Eq(b, "v", value(b.answer(s.Begin(false), read("secret/app"))))
						}
					}
					notices := tasks
					if kind.answers {
						notices = 0
					}
					must.Eq(b, notices, b.noticesOf(session.Outage))
					must.Eq(b, 0, b.noticesOf(session.Recovered))
					must.Eq(b, tasks, b.Minted(), must.Sprint("nothing could be issued"))
					must.LessEq(b, 2*tasks, len(b.Tokens()), must.Sprint("tokens of which nobody knows"))
					must.LessEq(b, tasks*(20+10*int(test.lasts/time.Minute)), b.Calls(""), must.Sprint("a storm"))

					mend()
					time.Sleep(4 * time.Minute) // the request that hangs, and the longest pause
					must.Eq(b, notices, b.noticesOf(session.Outage))
					must.Eq(b, notices, b.noticesOf(session.Recovered))
					if test.lasts < test.life || kind.acts {
						must.SliceContainsAll(b, before, b.Users())
						must.Eq(b, tasks, b.Minted())
					} else {
						must.Len(b, tasks, b.Tokens())
						must.Eq(b, 2*tasks, b.Minted())
					}
					for _, s := range all {
						must.Eq(b, b.Minted() > tasks, changed(s))
						must.SliceContains(b, b.Users(), user(b.generation(s, 0, creds, read("secret/app"))[0]))
					}
					time.Sleep(time.Hour)
					for _, s := range all {
						must.False(b, changed(s))
						must.NoError(b, s.Close(b.Context()))
					}
					must.Len(b, 0, b.Users())
					must.Len(b, 0, b.Leaked())
				})
			})
		}
	}
}

// fails puts a fault in force, or takes the server off the network.
func (b *bench) fails(f vaulttest.Fault) (mend func()) {
	if f != (vaulttest.Fault{}) {
		return b.Break(f)
	}
	b.Down(true)
	return func() { b.Down(false) }
}

// A Vault that takes half a minute to answer is asked with more and more patience: it is told to be away until that is
// known, and nothing ends.
func TestVerySlowVaultIsWaitedFor(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
		b.Put("secret/app", map[string]any{"k": "v"})
		s := b.tasks(1)[0]
		mend := b.Break(vaulttest.Fault{Slow: 30 * time.Second})
		time.Sleep(8 * time.Hour)
		must.False(b, changed(s))
		must.Between(b, 1, b.noticesOf(session.Outage), 3) // one each for the token, the lease and the secret
		must.Eq(b, b.noticesOf(session.Outage), b.noticesOf(session.Recovered))
		must.Eq(b, 1, b.Logins())
		must.Eq(b, 1, b.Minted())
		mend()
		b.end(s)
	})
}
