package credentials

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/config"
)

// A task directory with the token that Nomad derived.
func derived(t *testing.T) (dir string, cfg *drivers.TaskConfig) {
	t.Helper()
	cfg = &drivers.TaskConfig{AllocDir: t.TempDir(), Name: "web", Env: map[string]string{}}
	dir = cfg.TaskDir().Dir
	for _, name := range []string{"private", "secrets"} {
		must.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	must.NoError(t, os.WriteFile(filepath.Join(dir, nomadTokenFile), []byte("hvs.derived\n"), 0o600))
	return dir, cfg
}

func TestNomadsTokenIsForTasksThatHaveNothingElse(t *testing.T) {
	implicit := config.Vault{Name: "default", Identity: "vault"}
	named, role, file := implicit, implicit, implicit
	named.Identity, role.Role, file.IdentityFile = "db", "api", "local/jwt"
	for name, c := range map[string]struct {
		block   config.Vault
		prepare func(t *testing.T, dir string, cfg *drivers.TaskConfig)
		is      bool
	}{
		"nothing else": {block: implicit, is: true},
		"a role":       {block: role},
		"an identity":  {block: named},
		"a file":       {block: file},
		"an identity's file": {block: implicit, prepare: func(t *testing.T, dir string, _ *drivers.TaskConfig) {
			must.NoError(t, os.WriteFile(filepath.Join(dir, "secrets/nomad_vault.jwt"), nil, 0o600))
		}},
		"an identity's variable": {block: implicit, prepare: func(_ *testing.T, _ string, cfg *drivers.TaskConfig) {
			cfg.Env["NOMAD_TOKEN_vault"] = "x.y.z"
		}},
		"no token of Nomad's": {block: implicit, prepare: func(t *testing.T, dir string, _ *drivers.TaskConfig) {
			must.NoError(t, os.Remove(filepath.Join(dir, nomadTokenFile)))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, cfg := derived(t)
			if c.prepare != nil {
				c.prepare(t, dir, cfg)
			}
			source := nomadToken(c.block, cfg)
			must.Eq(t, c.is, source != nil)
			if c.is {
				token, err := source()
				must.NoError(t, err)
				must.Eq(t, "hvs.derived", token)
			}
		})
	}
}

func TestNomadsTokenIsReadAsIfATaskHadMadeIt(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"a link":           func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a pipe":           func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory":      func(path string) error { return os.Mkdir(path, 0o700) },
		"nothing in it":    func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"more than a word": func(path string) error { return os.WriteFile(path, []byte("hvs.one\nhvs.two"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := derived(t)
			path := filepath.Join(dir, nomadTokenFile)
			must.NoError(t, os.Remove(path))
			must.NoError(t, replace(path))
			_, err := readNomadToken(dir)
			must.ErrorContains(t, err, "read the token that Nomad derived: ")
			must.False(t, errors.Is(err, fs.ErrNotExist))
			must.StrNotContains(t, err.Error(), "hvs.")
		})
	}
}
