package tokenrole_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/tokenrole"
	"nomad-driver-vault/driver/vault/vaulttest"
	"nomad-driver-vault/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// minting is an issuer that makes tokens by the token role "nomad" with a token in a file, and its Vault.
type minting struct {
	*testing.T
	*vaulttest.Server
	issuer *tokenrole.Issuer
	file   string
	own    string
}

const ownPeriod = 6 * time.Hour

// mint runs a scenario with an issuer that serves.
func mint(t *testing.T, scenario func(*minting)) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	synctest.Test(t, func(t *testing.T) {
		m := &minting{T: t, Server: vaulttest.New(t), file: file}
		m.Makes["nomad"] = vaulttest.TokenRole{Period: time.Hour, Disallowed: []string{"nomad-server"}}
		m.put(m.MakeOwn(ownPeriod))
		m.start().Serve(func() {})
		scenario(m)
	})
}

// put writes the token file.
func (m *minting) put(own string) {
	must.NoError(m, os.WriteFile(m.file, []byte(own+"\n"), 0o600))
	m.own = own
}

// start makes an issuer as another process does.
func (m *minting) start() *tokenrole.Issuer {
	c := m.Cluster()
	c.Role, c.TokenFile = "nomad", m.file
	client, err := vault.NewClient(c, hclog.NewNullLogger())
	must.NoError(m, err)
	scheduler := sched.New()
	m.Cleanup(func() { scheduler.Close(); client.Close() })
	m.issuer, err = tokenrole.New(client, scheduler, hclog.NewNullLogger())
	must.NoError(m, err)
	return m.issuer
}

// obtain makes a token, for which it waits a minute.
func (m *minting) obtain() error {
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	source := m.issuer.Source(vault.TokenRequest{Policies: []string{"api"}, DisplayName: "a-task"})
	auth, err := source.Obtain(ctx, ctx)
	for errors.Is(err, vault.ErrNotYet) { // as a session does
		time.Sleep(time.Second)
		auth, err = source.Obtain(ctx, ctx)
	}
	if err == nil {
		must.Eq(m, []string{"default", "api"}, auth.Policies)
	}
	return err
}

// refused is the error of a token that is not made.
func (m *minting) refused() error {
	m.Helper()
	err := m.obtain()
	must.Error(m, err)
	must.StrNotContains(m, err.Error(), "\n")
	must.StrNotContains(m, err.Error(), vaulttest.Planted)
	return err
}

func TestNobodyIsAskedBeforeTheIssuerServes(t *testing.T) {
	mint(t, func(m *minting) {
		time.Sleep(time.Minute)
		before := m.Calls("")
		m.start()
		time.Sleep(2 * time.Minute)
		must.Eq(m, before, m.Calls(""))
		must.StrContains(m, m.issuer.Status(), "not looked up yet")
	})
}

// One node asks little: the token is looked after, and not watched.
func TestOwnTokenIsLookedAtSparingly(t *testing.T) {
	mint(t, func(m *minting) {
		time.Sleep(24 * time.Hour)
		must.Between(m, 24, m.Calls("PUT auth/token/renew-self"), 30)
		must.Eq(m, tokenrole.Ready, m.issuer.Status())
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
					must.NoError(m, m.obtain())
					return
				}
				time.Sleep(time.Minute) // until the issuer before is content
				must.NoError(m, os.Remove(m.file))
				must.NoError(m, c.make(m.file))
				m.start().Serve(func() {})
				before := m.Calls("")
				err := m.refused()
				must.ErrorIs(m, err, vault.ErrInvalid)
				must.StrContains(m, err.Error(), `read token_file of vault "default"`)
				must.StrContains(m, err.Error(), c.says)
				must.StrContains(m, m.issuer.Status(), c.says)
				must.Eq(m, before, m.Calls(""))
				must.NoError(m, os.RemoveAll(m.file))
				m.put(m.own)
				time.Sleep(time.Second) // a verdict holds that long
				must.NoError(m, m.obtain())
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
		"for some uses": {
			func(m *minting) { m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour, Uses: 5}) }, nil,
			vault.ErrInvalid, "token_num_uses is set"},
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
							must.StrContains(m, m.issuer.Status(), c.says)
						}
						if c.mends == nil {
							m.SetTokenRole("nomad", vaulttest.TokenRole{Period: time.Hour})
						} else {
							c.mends(m)
						}
						time.Sleep(time.Second)
						must.NoError(m, m.obtain())
						must.Eq(m, tokenrole.Ready, m.issuer.Status())
					})
				})
			}
		})
	}
}

const vaultLook = time.Hour

func TestOwnTokenThatAProxyTellsNothingOf(t *testing.T) {
	mint(t, func(m *minting) {
		m.Break(vaulttest.Fault{Match: "GET auth/token/lookup-self", Body: "{}"})
		m.start().Serve(func() {})
		time.Sleep(time.Minute)
		must.StrContains(m, m.issuer.Status(),
			"look up the cluster's own token: Vault unavailable: the answer tells of no token")
	})
}
