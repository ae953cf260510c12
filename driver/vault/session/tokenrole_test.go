package session_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
		must.Len(m, 0, m.heard())
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

func TestNobodyIsAskedBeforeTheClientServes(t *testing.T) {
	mint(t, func(m *minting) {
		time.Sleep(time.Minute)
		before := m.Calls("")
		m.reach(nil)
		time.Sleep(2 * time.Minute)
		must.Eq(m, before, m.Calls(""))
		must.StrContains(m, m.client.Status(), "not looked up yet")
	})
}

// One node asks little: the token is looked after, and not watched.
func TestOwnTokenIsLookedAtSparingly(t *testing.T) {
	mint(t, func(m *minting) {
		time.Sleep(24 * time.Hour)
		must.Between(m, 24, m.Calls("PUT auth/token/renew-self"), 30)
		must.Eq(m, tokenrole.Ready, m.client.Status())
	})
}

func TestOwnTokenThatIsBriefIsRenewedInTime(t *testing.T) {
	mint(t, func(m *minting) {
		m.put(m.MakeOwn(10 * time.Minute))
		time.Sleep(12 * time.Hour)
		must.True(m, m.Lives(m.own))
		must.Between(m, 100, m.Calls("PUT auth/token/renew-self"), 160)
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

func TestTokenFileThatIsNoSafePlace(t *testing.T) {
	for sentence, c := range map[string]struct {
		make func(name string) error
		says string
	}{
		"missing": {func(string) error { return nil }, "no such file"},
		"empty":   {func(name string) error { return os.WriteFile(name, []byte("\n"), 0o600) }, "holds no token"},
		"for others": {func(name string) error { return os.WriteFile(name, []byte("hvs.x"), 0o644) },
			"has mode 0644, which lets others in: chmod it to 0600"},
		"of another user": {func(name string) error { return chowned(name) }, "belongs to user 65534"},
		"a link":          {func(name string) error { return os.Symlink("/etc/hostname", name) }, "symbolic link"},
		"a pipe":          {func(name string) error { return syscall.Mkfifo(name, 0o600) }, "not a regular file"},
		"a folder":        {func(name string) error { return os.Mkdir(name, 0o700) }, "not a regular file"},
		"of two words": {func(name string) error { return os.WriteFile(name, []byte("hvs.a hvs.b"), 0o600) },
			"holds no token"},
		"a binary": {func(name string) error { return os.WriteFile(name, []byte("hvs.\x00"), 0o600) },
			"holds no token"},
		"readable by group": {nil, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			mint(t, func(m *minting) {
				if c.make == nil {
					must.NoError(m, os.Chmod(m.file, 0o640))
					m.end(m.open())
					return
				}
				time.Sleep(time.Minute) // until the client before is content
				must.NoError(m, os.Remove(m.file))
				must.NoError(m, c.make(m.file))
				m.reach(nil)
				m.client.Serve(func() {})
				before := m.Calls("")
				err := m.refused()
				must.ErrorIs(m, err, vault.ErrInvalid)
				must.StrContains(m, err.Error(), `read token_file of vault "default"`)
				must.StrContains(m, err.Error(), c.says)
				must.StrContains(m, m.client.Status(), c.says)
				must.Eq(m, before, m.Calls(""))
				must.NoError(m, os.RemoveAll(m.file))
				m.put(m.own)
				time.Sleep(time.Second) // a verdict holds that long
				m.end(m.open())
			})
		})
	}
}

func chowned(name string) error {
	if err := os.WriteFile(name, []byte("hvs.x"), 0o600); err != nil {
		return err
	}
	return os.Chown(name, 65534, -1)
}

// A role or token that does not work is told by its reason at once, and works as soon as it is mended.
func TestTokenRoleThatDoesNotWork(t *testing.T) {
	for sentence, c := range map[string]struct {
		breaks, mends func(*minting)
		class         error
		says          string
	}{
		"no such role": {
			func(m *minting) { m.RemoveTokenRole("nomad") }, nil, vault.ErrNotFound, `check token role "nomad": not found in Vault: there is no such role`},
		"without a period": {
			func(m *minting) { m.SetTokenRole("nomad", vaulttest.TokenRole{}) }, nil, vault.ErrInvalid, "token_period is 0"},
		"with an explicit maximum": {
			func(m *minting) {
				m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour, ExplicitMax: 24 * time.Hour})
			}, nil, vault.ErrInvalid, "token_explicit_max_ttl is set"},
		"not renewable": {
			func(m *minting) {
				m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour,
					Fixed: true})
			}, nil, vault.ErrInvalid, "renewable is false"},
		"a token that Vault does not know": {
			func(m *minting) { m.RevokeToken(m.own) }, func(m *minting) { m.put(m.MakeOwn(ownPeriod)) }, vault.ErrDenied,
			`look up the cluster's own token: denied by Vault: permission denied; invalid token (403); put a token that is valid into token_file`},
		"a policy that the role does not allow": {
			func(m *minting) {
				m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour, Disallowed: []string{"api"}})
			}, nil, vault.ErrInvalid,
			`make a token by token role "nomad" of vault "default": refused by Vault: token policy "api" is disallowed by this role (400); correct policies`},
	} {
		t.Run(sentence, func(t *testing.T) {
			for when, looked := range map[string]time.Duration{"from the first": 0, "later": 20 * time.Minute} {
				t.Run(when, func(t *testing.T) {
					mint(t, func(m *minting) {
						time.Sleep(looked)
						c.breaks(m)
						if looked > 0 && sentence != "a token that Vault does not know" &&
							sentence != "a policy that the role does not allow" {
							time.Sleep(vaultLook) // a role is looked at now and then
						}
						began := time.Now()
						err := m.refused()
						must.ErrorIs(m, err, c.class)
						must.StrContains(m, err.Error(), c.says)
						must.Less(m, 5*time.Second, time.Since(began), must.Sprint("waiting does not help"))
						if c.class != vault.ErrInvalid || !strings.Contains(c.says, "disallowed") {
							must.StrContains(m, m.client.Status(), c.says)
						}
						if c.mends == nil {
							m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour})
						} else {
							c.mends(m)
						}
						time.Sleep(time.Second)
						m.end(m.open())
						must.Eq(m, tokenrole.Ready, m.client.Status())
					})
				})
			}
		})
	}
}

const vaultLook = time.Hour

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
		must.Len(m, 0, m.heard())
		value, _, _ := s.Token()
		m.RevokeToken(value)
		time.Sleep(2 * time.Hour)
		must.Positive(m, len(m.heard()))
		must.Less(m, 3, len(m.heard()))
		m.put(m.MakeOwn(ownPeriod))
		time.Sleep(2 * time.Minute)
		must.True(m, changed(s))
		m.generation(s, 0, creds)
		m.end(s)
	})
}

func TestOwnTokenThatAProxyTellsNothingOf(t *testing.T) {
	mint(t, func(m *minting) {
		m.Break(vaulttest.Fault{Match: "GET auth/token/lookup-self", Body: "{}"})
		m.reach(nil)
		m.client.Serve(func() {})
		time.Sleep(time.Minute)
		must.StrContains(m, m.client.Status(),
			"look up the cluster's own token: Vault unavailable: the answer tells of no token")
	})
}
