package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func (b *bench) save(s *session.Session) []byte {
	state, err := s.Save()
	must.NoError(b, err)
	return state
}

// crash ends the process without a word to Vault, and starts another one.
func (b *bench) crash() {
	b.client.Close()
	b.start()
}

func (b *bench) adopt(state []byte) *session.Session {
	s, err := b.client.Adopt(state, b.options())
	must.NoError(b, err)
	return s
}

func TestAdoptionGoesOnWhereTheOtherProcessStopped(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "v", "number": 1234567890123456789, "float": 1.5, "list": []any{1, "x", nil},
			"empty": map[string]any{}})
		reqs := []vault.Request{read("secret/a"), creds}
		s := b.open()
		before := b.generation(s, 0, reqs...)
		token, _, _ := s.Token()
		state := b.save(s)
		time.Sleep(10 * time.Hour) // renewals that the state does not know of
		b.crash()
		time.Sleep(5 * time.Minute)
		s = b.adopt(state)
		adopted, _, _ := s.Token()
		must.Eq(b, token, adopted)
		must.Eq(b, []string{"default"}, s.Policies())
		synctest.Wait() // what is polled is due
		reads := b.Calls("GET secret/")
		after := b.generation(s, 0, reqs...)
		for i := range after {
			must.Eq(b, before[i].Data, after[i].Data)
		}
		must.Eq(b, reads, b.Calls("GET secret/"))
		time.Sleep(24 * time.Hour)
		must.False(b, changed(s))
		must.Eq(b, 1, b.Logins())
		must.Eq(b, 1, b.Minted())
		must.Len(b, 1, b.Users())
		must.Len(b, 0, b.noticesSoFar())
		b.end(s)
	})
}

func TestAdoptionFindsOutWhatDiedMeanwhile(t *testing.T) {
	for name, test := range map[string]struct {
		role   vaulttest.Role
		died   func(*bench)
		logins int
		minted int
	}{
		"nothing":   {vaulttest.Role{TTL: time.Hour}, func(*bench) {}, 1, 1},
		"the lease": {vaulttest.Role{TTL: time.Hour}, (*bench).RevokeLeases, 1, 2},
		"the token": {vaulttest.Role{TTL: time.Hour}, (*bench).RevokeTokens, 2, 2},
		"a token that cannot be renewed": {vaulttest.Role{TTL: 24 * time.Hour, Fixed: true}, (*bench).RevokeTokens, 2,
			2},
		"a batch token": {vaulttest.Role{TTL: 24 * time.Hour, Batch: true, Revoke: true},
			(*bench).RevokeTokens, 2, 2},
		"a token that could not be renewed": {vaulttest.Role{TTL: 24 * time.Hour, Fixed: true}, func(*bench) {}, 1, 1},
		"all, by a plugin that was long away": {vaulttest.Role{TTL: time.Hour}, func(*bench) { time.Sleep(48 * time.Hour) },
			2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = test.role
				s := b.open()
				first := b.generation(s, 0, creds)[0]
				state := b.save(s)
				b.crash()
				test.died(b)
				s = b.adopt(state)
				time.Sleep(4 * time.Second)
				must.Eq(b, test.logins, b.Logins())
				must.Eq(b, test.minted, b.Minted())
				must.Eq(b, test.minted > 1, changed(s))
				must.False(b, changed(s))
				second := b.generation(s, 0, creds)[0]
				must.Eq(b, test.minted > 1, user(first) != user(second))
				must.Eq(b, []string{user(second)}, b.Users())
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

// The process dies between a change and the task's answer to it: the next one still has it to tell.
func TestAdoptionTellsWhatWasNotInUseYet(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		s := b.open()
		first := b.generation(s, 0, creds)[0]
		time.Sleep(54 * time.Minute)
		must.True(b, changed(s))
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		must.True(b, changed(s))
		second := b.generation(s, time.Second, creds)[0]
		must.NotEq(b, user(first), user(second))
		must.Eq(b, 2, b.Minted())
		time.Sleep(2 * time.Second)
		must.Eq(b, []string{user(second)}, b.Users())
		b.end(s)
	})
}

func TestAdoptionReplacesWhatWasKnownToBeGone(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour}
		b.Creds["app"] = vaulttest.Creds{TTL: 24 * time.Hour, Fixed: true}
		s := b.open()
		b.generation(s, 0, creds)
		b.RevokeTokens()
		mend := b.Break(vaulttest.Fault{Match: "GET database/", Status: 500})
		time.Sleep(41 * time.Minute)
		must.Eq(b, 2, b.Logins())
		state := b.save(s)
		b.crash()
		mend()
		s = b.adopt(state)
		time.Sleep(time.Minute)
		must.Eq(b, 2, b.Minted())
		must.True(b, changed(s))
		b.end(s)
	})
}

func TestAdoptionRevokesWhatWasNeverInUse(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		s := b.open()
		b.generation(s, 0, creds)
		time.Sleep(106 * time.Minute) // two replacements without a commit; the first lease has ended
		must.Len(b, 2, b.Users())
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		time.Sleep(4 * time.Second)
		must.Eq(b, []string{user(b.answer(s.Begin(false), creds))}, b.Users())
		b.end(s)
	})
}

func TestAdoptionTellsOfATokenThatIsNotInUseYet(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Fixed: true}
		s := b.open()
		time.Sleep(54 * time.Minute)
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		must.True(b, changed(s))
		b.generation(s, 0)
		must.False(b, changed(s))
		b.end(s)
	})
}

func TestAdoptionRevokesWhatWasSpent(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, MaxTTL: time.Hour}
		s := b.open()
		old, _, _ := s.Token()
		b.generation(s, 0, creds)
		time.Sleep(54 * time.Minute)
		second := b.generation(s, time.Minute, creds)[0]
		synctest.Wait()
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		synctest.Wait()
		must.SliceContains(b, b.Tokens(), old)
		time.Sleep(61 * time.Second)
		must.SliceNotContains(b, b.Tokens(), old)
		must.Eq(b, []string{user(second)}, b.Users())
		b.end(s)
	})
}

func TestAdoptionWithoutVault(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		first := b.generation(s, 0, creds, read("secret/a"))
		state := b.save(s)
		b.crash()
		b.Down(true)
		s = b.adopt(state)
		time.Sleep(20 * time.Minute)
		must.Eq(b, 1, b.noticesOf(session.Outage))
		must.Eq(b, user(first[0]), user(b.answer(s.Begin(true), creds)))
		must.Eq(b, "1", value(b.answer(s.Begin(true), read("secret/a"))))
		b.Down(false)
		time.Sleep(2 * time.Hour)
		must.False(b, changed(s))
		must.Eq(b, 1, b.Minted())
		b.end(s)
	})
}

func TestAdoptionRefusesWhatIsNotItsOwn(t *testing.T) {
	for name, test := range map[string]struct {
		spoil   func(state string) string
		options func(*session.Options)
		says    string
	}{
		"another role":      {options: func(o *session.Options) { o.Login.Role = "other" }, says: `it belongs to role "app"`},
		"another namespace": {options: func(o *session.Options) { o.Login.Namespace = "team" }, says: "it belongs to role"},
		"another cluster": {spoil: func(s string) string {
			return strings.Replace(s, `"cluster":"default"`, `"cluster":"x"`,
				1)
		}, says: `vault "x"`},
		"nothing": {spoil: func(string) string { return "" }, says: "decode saved session: EOF"},
		"half of it": {spoil: func(s string) string { return s[:len(s)/2] },
			says: "decode saved session: unexpected EOF"},
		"two of them": {spoil: func(s string) string { return s + s }, says: "something follows it"},
		"no token": {spoil: func(string) string { return `{"cluster":"default","role":"app"}` },
			says: "it lacks a token"},
		"an empty old token": {spoil: func(s string) string {
			return strings.Replace(s, `"used":1`,
				`"used":1,"retired":[null]`, 1)
		}, says: "it lacks a token"},
		"no answer": {spoil: func(s string) string {
			return strings.Replace(s, `"used":1`, `"used":1,"items":[{"request":{"op":"read","path":"x"}}]`, 1)
		},
			says: "it has no answer to read x"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				s := b.open()
				state := string(b.save(s))
				if test.spoil != nil {
					state = test.spoil(state)
				}
				o := b.options()
				if test.options != nil {
					test.options(&o)
				}
				_, err := b.client.Adopt([]byte(state), o)
				must.ErrorContains(b, err, test.says)
				must.StrNotContains(b, err.Error(), "hvs.")
				b.end(s)
			})
		})
	}
}

// What is planted must be nowhere but in the state and in the secrets themselves.
func TestNoSecretInLogsNoticesAndErrors(t *testing.T) {
	var logged, seen bytes.Buffer
	bubble(t, func(b *bench) {
		b.JWT = vaulttest.Planted
		b.Put("secret/a", map[string]any{"k": vaulttest.Planted})
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		client, err := session.NewCluster(b.Cluster(), hclog.New(&hclog.LoggerOptions{Output: &logged, Level: hclog.Trace}))
		must.NoError(b, err)
		b.client = client
		b.Cleanup(client.Close)
		s := b.open()
		b.generation(s, 0, creds, read("secret/a"))
		for _, f := range []vaulttest.Fault{{Status: 500}, {Status: 403}, {Status: 400}, {Status: 404}, {Lose: true},
			{Reset: true},
			{Body: "hvs.hunter2-1 hunter2"}, {Body: `{"lease_duration": "hunter2"}`}} {
			mend := b.Break(f)
			_, err := s.Begin(false).Read(b.short(), read("secret/b"))
			must.Error(b, err)
			seen.WriteString(err.Error() + "\n")
			time.Sleep(time.Hour)
			mend()
			time.Sleep(2 * time.Minute)
			b.generation(s, 0, creds, read("secret/a"))
		}
		must.NoError(b, s.Close(b.Context()))
		for _, n := range b.noticesSoFar() {
			seen.WriteString(n.Text + "\n")
		}
	})
	must.StrContains(t, logged.String(), "logged in")
	for line := range strings.Lines(logged.String() + seen.String()) {
		must.StrNotContains(t, line, vaulttest.Planted)
	}
}

// short is a context for one try.
func (b *bench) short() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Millisecond)
	b.Cleanup(cancel)
	return ctx
}

// FuzzAdopt reads any state. Whatever it holds, the session works as far as one without Vault can, and ends.
func FuzzAdopt(f *testing.F) {
	f.Add(savedState(f))
	f.Add([]byte(`{"cluster":"default","token":{"value":"x","n":-1},"items":[{"request":{"every":-5},"secret":{"kind":"leased","lease":{"id":"x","ttl":-1}},"lease":{"ends":"2020-01-01T00:00:00Z","renewable":true,"jitter":1e300}}]}`))
	f.Add([]byte(`{"cluster":"default","token":{"value":"x"},"spent":[{"after":"2020-01-01T00:00:00Z"},{"token":{},"after":"2020-01-01T00:00:00Z"}],"retired":[{"value":"y"}]}`))
	cluster := vault.Cluster{Name: "default", Address: "http://127.0.0.1:8200",
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no network")
		}}
	client, err := session.NewCluster(cluster, hclog.NewNullLogger())
	must.NoError(f, err)
	f.Cleanup(client.Close)
	f.Fuzz(func(t *testing.T, state []byte) {
		s, err := client.Adopt(state, session.Options{Login: session.Login{JWT: func(context.Context) (string,
			error) {
			return "jwt", nil
		}}})
		if err != nil {
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r := s.Begin(false)
		_, _ = r.Read(ctx, creds)
		r.Commit(0)
		again, err := s.Save()
		must.NoError(t, err)
		must.True(t, json.Valid(again))
		_ = s.Close(ctx)
	})
}

// savedState is what a session looks like that has one of everything.
func savedState(f *testing.F) (state []byte) {
	f.Helper()
	server := vaulttest.New(f)
	server.Roles[""] = vaulttest.Role{TTL: time.Hour}
	server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
	server.Static("app", time.Hour)
	server.Put("secret/a", map[string]any{"k": 1})
	client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	must.NoError(f, err)
	defer client.Close()
	s, err := client.Open(f.Context(), session.Options{Login: loginAt(server, "")})
	must.NoError(f, err)
	r := s.Begin(false)
	for _, req := range []vault.Request{creds, read("secret/a"), read("database/static-creds/app"),
		{Op: vault.Write, Path: "pki/issue/app", Every: every}} {
		_, err := r.Read(f.Context(), req)
		must.NoError(f, err)
	}
	r.Commit(0)
	state, err = s.Save()
	must.NoError(f, err)
	must.NoError(f, s.Close(f.Context()))
	return state
}
