package stack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// A Vault is one Vault server in dev mode, set up for the stack's Nomad by `nomad-driver-vault setup`: the auth method
// jwt-nomad with the role and the policy nomad-workloads, and a KV v2 engine at kv/ beside dev mode's own at secret/;
// and with the CA of example/pki.sh, the engine pki/ and the role and the policy "hello-pki". Where the stack has
// PostgreSQL it has what example/database.sh adds: the engine database/ with the connection "postgres", and the role
// and the policy "database".
type Vault struct {
	Process
	Addr  string        // http://127.0.0.1:<port>
	Token string        // root
	API   *vault.Client // with that token

	stack *Stack
}

// startVaults starts the servers. They are set up later: the auth method wants a Nomad that answers.
func (s *Stack) startVaults(ctx context.Context) error {
	for _, name := range append([]string{"default"}, s.options.Clusters...) {
		v, err := s.newVault(name)
		if err != nil {
			return err
		}
		s.Clusters[name] = v
		if err := v.run(ctx); err != nil {
			return err
		}
		s.options.Log("Vault %q is on %s", name, v.Addr)
	}
	s.Vault = s.Clusters["default"]
	return nil
}

func (s *Stack) newVault(name string) (*Vault, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	v := &Vault{Addr: fmt.Sprintf("http://127.0.0.1:%d", port), Token: rand.Text(), stack: s}
	v.Process = Process{Name: "vault-" + name, LogFile: s.path("vault-" + name + ".log"), quit: syscall.SIGTERM}
	config := vault.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("make client of Vault: %w", config.Error)
	}
	config.Address, config.MaxRetries = v.Addr, 0
	config.AgentAddress = "" // of the shell that make dev runs in: it would come before ours
	if v.API, err = vault.NewClient(config); err != nil {
		return nil, fmt.Errorf("make client of Vault: %w", err)
	}
	v.API.SetToken(v.Token)
	v.API.ClearNamespace()
	return v, nil
}

// run starts the server and returns when it is unsealed.
func (v *Vault) run(ctx context.Context) error {
	binary, err := v.stack.tool("VAULT_BIN", "vault")
	if err != nil {
		return err
	}
	// -dev-no-store-token: dev mode would leave a token in the home folder.
	args := []string{"server", "-dev", "-dev-no-store-token"}
	if v.stack.options.Postgres {
		dir, err := v.stack.tool("VAULT_PLUGINS", "vault-plugins")
		if err != nil {
			return err
		}
		args = append(args, "-dev-plugin-dir="+dir)
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = append(clean(v.stack.Dir),
		"VAULT_DEV_ROOT_TOKEN_ID="+v.Token, "VAULT_DEV_LISTEN_ADDRESS="+v.Addr[len("http://"):])
	if err := v.launch(cmd); err != nil {
		return err
	}
	return v.await(ctx, func() error { return answers(ctx, v.Addr+"/v1/sys/health") })
}

// Start starts the server again after Stop or Kill, at the same address, and sets it up. Dev mode keeps nothing: every
// token and secret of before is gone.
func (v *Vault) Start(ctx context.Context) error {
	if err := v.run(ctx); err != nil {
		return err
	}
	return v.setUp(ctx)
}

func (s *Stack) setUpVaults(ctx context.Context) error {
	for _, v := range s.Clusters {
		if err := v.setUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// setUp runs the very program, and scripts of example/.
func (v *Vault) setUp(ctx context.Context) error {
	if err := v.command(ctx, v.stack.path("bin/nomad-driver-vault"), "setup", "-yes"); err != nil {
		return err
	}
	scripts := []string{"pki.sh"}
	if v.stack.Postgres != nil {
		scripts = append(scripts, "database.sh")
	}
	for _, script := range scripts {
		if err := v.Script(ctx, script); err != nil {
			return err
		}
	}
	return nil
}

// Script runs a script of example/ as it stands.
func (v *Vault) Script(ctx context.Context, name string, args ...string) error {
	return v.command(ctx, "sh", append([]string{filepath.Join(v.stack.root, "example", name)}, args...)...)
}

// command runs a command as an operator does who may do everything.
func (v *Vault) command(ctx context.Context, name string, args ...string) error {
	path, err := v.toolPath()
	if err != nil {
		return err
	}
	env := []string{"VAULT_ADDR=" + v.Addr, "VAULT_TOKEN=" + v.Token, "NOMAD_ADDR=" + v.stack.Nomad.Addr,
		"NOMAD_TOKEN=" + v.stack.Nomad.Token, "PATH=" + path}
	if pg := v.stack.Postgres; pg != nil {
		env = append(env, pg.env()...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(clean(v.stack.Dir), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// toolPath is a PATH on which the scripts find the commands that we test with.
func (v *Vault) toolPath() (string, error) {
	for env, name := range map[string]string{"VAULT_BIN": "vault", "PLUGIN_BIN": "nomad-driver-vault"} {
		binary, err := v.stack.tool(env, name)
		if err != nil {
			return "", err
		}
		if err := os.Symlink(binary, v.stack.path("bin/"+name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("link %s: %w", name, err)
		}
	}
	return v.stack.path("bin") + ":" + os.Getenv("PATH"), nil
}

// Put writes data to path as it stands: a secret of a KV v2 engine goes to <engine>/data/<name>, inside a key "data".
func (v *Vault) Put(ctx context.Context, path string, data map[string]any) error {
	if _, err := v.API.Logical().WriteWithContext(ctx, path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// DatabaseRole makes the role of the database engine whose credentials, at database/creds/<name>, live for ttl at a
// time and for maxTTL in all.
func (v *Vault) DatabaseRole(ctx context.Context, name string, ttl, maxTTL time.Duration) error {
	return v.DatabaseRoleAt(ctx, "database", name, ttl, maxTTL)
}

// DatabaseRoleAt is DatabaseRole with a database engine that is mounted elsewhere.
func (v *Vault) DatabaseRoleAt(ctx context.Context, mount, name string, ttl, maxTTL time.Duration) error {
	return v.Put(ctx, mount+"/roles/"+name, map[string]any{
		"db_name":             "postgres",
		"creation_statements": `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
		"default_ttl":         ttl.String(),
		"max_ttl":             maxTTL.String(),
	})
}

// Role makes a role of the auth method jwt-nomad as nomad-workloads is, for tokens with the given policy (its rules,
// HCL), and changes it as more says: token_ttl, bound_claims and the like (Vault's JWT auth API). The policy gets the
// role's name.
func (v *Vault) Role(ctx context.Context, name, policy string, more map[string]any) error {
	if err := v.API.Sys().PutPolicyWithContext(ctx, name, policy); err != nil {
		return fmt.Errorf("write policy %s: %w", name, err)
	}
	role, err := v.API.Logical().ReadWithContext(ctx, "auth/jwt-nomad/role/nomad-workloads")
	if err != nil {
		return fmt.Errorf("read role nomad-workloads: %w", err)
	}
	role.Data["token_policies"] = []string{name}
	for k, value := range more {
		role.Data[k] = value
	}
	return v.Put(ctx, "auth/jwt-nomad/role/"+name, role.Data)
}

// Tokens returns the accessors of the living tokens that a login at jwt-nomad gave out.
func (v *Vault) Tokens(ctx context.Context) ([]string, error) {
	accessors, err := v.list(ctx, "auth/token/accessors")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(accessors, func(accessor string) bool {
		s, err := v.API.Auth().Token().LookupAccessorWithContext(ctx, accessor)
		return err != nil || s.Data["path"] != "auth/jwt-nomad/login" // An error: it has ended since the listing.
	}), nil
}

// Leases returns the ids of the living leases of credentials of a database role.
func (v *Vault) Leases(ctx context.Context, role string) ([]string, error) {
	return v.list(ctx, "sys/leases/lookup/database/creds/"+role)
}

func (v *Vault) list(ctx context.Context, path string) ([]string, error) {
	s, err := v.API.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	if s == nil { // Vault answers the list of an empty folder with 404.
		return nil, nil
	}
	listed, _ := s.Data["keys"].([]any)
	keys := make([]string, len(listed))
	for i, k := range listed {
		keys[i], _ = k.(string)
	}
	return keys, nil
}
