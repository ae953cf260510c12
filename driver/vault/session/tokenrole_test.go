package session_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/tokenrole"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// minting is a bench whose cluster makes tokens by the token role "nomad", of a token in a file, and serves.
type minting struct {
	*bench
	file string
	own  string
}

const ownPeriod = 6 * time.Hour

// mint runs a scenario with such a cluster. The role's tokens live for an hour at a time.
func mint(t *testing.T, scenario func(*minting)) {
	file := filepath.Join(t.TempDir(), "token")
	bubble(t, func(b *bench) {
		m := &minting{bench: b, file: file}
		b.Makes["nomad"] = vaulttest.TokenRole{Period: time.Hour, Disallowed: []string{"nomad-server"}}
		m.put(b.MakeOwn(ownPeriod))
		m.reach(nil)
		m.client.Serve(func() {})
		scenario(m)
	})
}

// put writes the token file.
func (m *minting) put(own string) {
	must.NoError(m, os.WriteFile(m.file, []byte(own+"\n"), 0o600))
	m.own = own
}

// reach makes a client of the cluster, as another process does.
func (m *minting) reach(change func(*vault.Cluster)) {
	c := m.Cluster()
	c.Role, c.TokenFile = "nomad", m.file
	if change != nil {
		change(&c)
	}
	client, err := session.NewCluster(c, hclog.NewNullLogger())
	must.NoError(m, err)
	m.Cleanup(client.Close)
	m.client = client
}

func (m *minting) options() session.Options {
	return session.Options{Login: session.Login{Token: vault.TokenRequest{Policies: []string{"api"},
		DisplayName: "a-task"}}, Notify: m.note}
}

func (m *minting) open() *session.Session {
	m.Helper()
	s, err := m.client.Open(m.Context(), m.options())
	must.NoError(m, err)
	return s
}

// refused is the error of a session that is opened within a minute.
func (m *minting) refused() error {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	_, err := m.client.Open(ctx, m.options())
	must.Error(m, err)
	must.StrNotContains(m, err.Error(), "\n")
	must.StrNotContains(m, err.Error(), vaulttest.Planted)
	return err
}

func (m *minting) made() int {
	return m.Calls("PUT auth/token/create/nomad") + m.Calls("POST auth/token/create/nomad")
}

func TestTokenByTokenRole(t *testing.T) {
	mint(t, func(m *minting) {
		s := m.open()
		must.Eq(m, []string{"default", "api"}, s.Policies())
		must.False(m, s.External())
		must.Eq(m, tokenrole.Ready, m.client.Status())
		m.generation(s, 0, creds)
		time.Sleep(48 * time.Hour)
		must.False(m, changed(s))
		must.Eq(m, 1, m.made())
		must.Eq(m, 1, m.Minted())
		must.Eq(m, 0, m.Logins())
		must.True(m, m.Lives(m.own), must.Sprint("it is renewed in time"))
		must.Len(m, 0, m.noticesSoFar())
		m.end(s)
		must.True(m, m.Lives(m.own), must.Sprint("it is no task's to revoke"))
	})
}

func TestTokenByTokenRoleThatIsLostIsMadeAnew(t *testing.T) {
	mint(t, func(m *minting) {
		s := m.open()
		first := m.generation(s, 0, creds)[0]
		value, _, _ := s.Token()
		m.RevokeToken(value)
		time.Sleep(time.Hour)
		must.True(m, changed(s))
		must.NotEq(m, user(first), user(m.generation(s, 0, creds)[0]))
		must.Eq(m, 2, m.made())
		m.end(s)
	})
}

// Adoption needs nothing of the cluster's own token, and finds the session as it was.
func TestTokenByTokenRoleIsAdopted(t *testing.T) {
	mint(t, func(m *minting) {
		s := m.open()
		first := m.generation(s, 0, creds)[0]
		value, _, _ := s.Token()
		state, err := s.Save()
		must.NoError(m, err)
		must.StrNotContains(m, string(state), m.own)
		m.client.Close()
		m.reach(nil)
		m.client.Serve(func() {})
		s, err = m.client.Adopt(state, m.options())
		must.NoError(m, err)
		time.Sleep(24 * time.Hour)
		must.False(m, changed(s))
		again, _, _ := s.Token()
		must.Eq(m, value, again)
		must.Eq(m, user(first), user(m.generation(s, 0, creds)[0]))
		must.Eq(m, 1, m.made())
		m.end(s)
	})
}

// What a token's policies do not let it do, the cluster's own token does by accessor.
func TestTokenByTokenRoleIsRevokedByAccessor(t *testing.T) {
	mint(t, func(m *minting) {
		m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour, Deny: []string{"auth/token/revoke-self"}})
		s := m.open()
		m.generation(s, 0, creds)
		must.Len(m, 1, m.Users())
		m.end(s)
		must.Eq(m, 1, m.Calls("POST auth/token/revoke-accessor")+m.Calls("PUT auth/token/revoke-accessor"))
	})
}

func TestLostAnswersOfTokenRolesKeepToTheBudget(t *testing.T) {
	mint(t, func(m *minting) {
		time.Sleep(time.Second) // until the token was looked up
		for _, method := range []string{"PUT", "POST"} {
			m.Break(vaulttest.Fault{Match: method + " auth/token/create/", Lose: true})
		}
		must.ErrorIs(m, m.refused(), vault.ErrUnavailable)
		must.Eq(m, 4, m.made())
	})
}

// What is asked of the cluster's own token leaves nothing behind: its lost answers are no tokens.
func TestLostAnswersAboutTheOwnTokenAreAskedForAgain(t *testing.T) {
	mint(t, func(m *minting) {
		mend := m.Break(vaulttest.Fault{Match: "GET auth/token/lookup-self", Lose: true})
		time.AfterFunc(40*time.Second, mend)
		m.reach(nil) // the first client may have had its answer before
		m.client.Serve(func() {})
		m.end(m.open())
		must.Greater(m, 6, m.Calls("GET auth/token/lookup-self"))
	})
}

func TestOwnTokenIsFollowedWhenItIsReplaced(t *testing.T) {
	mint(t, func(m *minting) {
		s, old := m.open(), m.own
		m.put(m.MakeOwn(ownPeriod))
		time.Sleep(10 * time.Second)
		m.RevokeToken(old)
		m.end(s)
		s = m.open()
		must.Len(m, 1, m.Tokens())
		m.end(s)
		must.Eq(m, tokenrole.Ready, m.client.Status())
		must.NoError(m, os.Remove(m.file))
		time.Sleep(time.Minute)
		must.Eq(m, tokenrole.Ready, m.client.Status(), must.Sprint("the token that is known is good"))
	})
}

// An outage is none of the token's: who starts waits, who runs goes on, and the status stays.
func TestOutageOfAClusterWithTokenRoles(t *testing.T) {
	mint(t, func(m *minting) {
		m.put(m.MakeOwn(time.Hour))
		time.Sleep(10 * time.Second)
		s := m.open()
		m.generation(s, 0, creds)
		time.Sleep(20 * time.Minute)
		m.Down(true)
		time.Sleep(25 * time.Minute) // in which the cluster's own token was to be renewed
		must.ErrorIs(m, m.refused(), vault.ErrUnavailable)
		must.Eq(m, tokenrole.Ready, m.client.Status())
		m.Down(false)
		time.Sleep(2 * time.Hour)
		must.False(m, changed(s))
		must.True(m, m.Lives(m.own))
		m.end(s)
	})
}

func TestOutageBeforeTheFirstLook(t *testing.T) {
	mint(t, func(m *minting) {
		m.Down(true)
		time.Sleep(10 * time.Minute)
		must.StrContains(m, m.client.Status(), "Vault unavailable")
		go func() {
			time.Sleep(5 * time.Second)
			m.Down(false)
		}()
		began := time.Now()
		m.end(m.open())
		must.Less(m, 15*time.Second, time.Since(began), must.Sprint("who waits has it looked at"))
	})
}

// A running task keeps what it has while the cluster's own token is invalid, and gets its next token when there is
// another one.
func TestTaskRunsOnWithoutTheClustersOwnToken(t *testing.T) {
	mint(t, func(m *minting) {
		s := m.open()
		m.generation(s, 0, creds)
		m.RevokeToken(m.own)
		time.Sleep(3 * time.Hour)
		must.False(m, changed(s))
		must.Len(m, 0, m.noticesSoFar())
		value, _, _ := s.Token()
		m.RevokeToken(value)
		time.Sleep(2 * time.Hour)
		must.Positive(m, len(m.noticesSoFar()))
		must.Less(m, 3, len(m.noticesSoFar()))
		m.put(m.MakeOwn(ownPeriod))
		time.Sleep(2 * time.Minute)
		must.True(m, changed(s))
		m.generation(s, 0, creds)
		m.end(s)
	})
}
