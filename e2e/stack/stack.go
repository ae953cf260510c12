// Package stack starts the real parts that the end-to-end tests and `make demo` run on: Vault, a Nomad agent that
// serves the plugin, and on request PostgreSQL, all on free loopback ports and in a temporary folder of their own.
// Docker is the machine's own engine. What Start has started, Close stops and removes; where the process dies without a
// Close, a guard process does it.
package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Options say what to start.
type Options struct {
	Plugins  []Plugin // what the agent serves; nil: vault-exec, vault-docker and vault-raw_exec, as Plugin describes them
	Agent    string   // more configuration of the agents, server and client (HCL), read after our own
	Clusters []string // Vault clusters beside "default", by the name that the plugin's configuration gives them
	Postgres bool     // start PostgreSQL too, and Vault's database engine for it
	App      bool     // build the test application (package e2e/app), which tasks find at AppPath

	// Proxies are put before the Vault of the cluster "default" (see Proxy), by the name of a cluster in the plugin's
	// configuration: a name of their own, or "default" itself. It says whether the proxy speaks TLS.
	Proxies map[string]bool

	// Blocks are more vault blocks of the plugins' configuration, for the Vault of the cluster "default": by name, what
	// stands in the block beside the address.
	Blocks map[string]string

	// NomadsOwn lets the vault and template blocks of Nomad itself work beside ours: the agents' Vault is the plugins'
	// cluster "default", and so the proxy of that name where there is one.
	NomadsOwn bool

	// Faults builds the plugin in the way that lets Fault end it.
	Faults bool

	// OnlyDocker starts no more than the Docker engine, for a test that needs Image in it.
	OnlyDocker bool

	// AsInExamples configures the plugins by example/agent.hcl in place of Plugins: for a stack that a person works with.
	AsInExamples bool

	// Log is told each step; nil is nobody.
	Log func(format string, args ...any)
}

// A Plugin is one driver that the agent serves from the binary under test.
type Plugin struct {
	Name   string   // the file in plugin_dir and the label of its plugin block, for example vault-exec
	Args   []string // more arguments
	Config string   // HCL inside config {}, beside what the stack sets: vault "<cluster>" blocks, state_dir
}

// A Stack is what Start has started.
type Stack struct {
	Dir      string            // the temporary folder
	Vault    *Vault            // the cluster "default"
	Clusters map[string]*Vault // every cluster, by name
	Proxies  map[string]*Proxy // those asked for, by name
	Nomad    *Nomad
	Postgres *Postgres // nil unless asked for
	Docker   bool      // whether there is a Docker engine

	options   Options
	root      string // the repository
	docker    *Process
	imageLock *os.File
	guard     io.Closer
}

// Missing names what this machine lacks to start a whole stack: nothing where it is empty.
func Missing() []string {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	if _, err := exec.LookPath("dockerd"); err != nil && !dockerAnswers(context.Background()) {
		missing = append(missing, "Docker")
	}
	if _, err := staticBusybox(); err != nil {
		missing = append(missing, "a static busybox")
	}
	if !HavePostgres() {
		missing = append(missing, "PostgreSQL")
	}
	if cniPath() == "" {
		missing = append(missing, "the CNI plugins")
	}
	return missing
}

// Start starts everything, and returns when the agent can place jobs. The error says which part did not come up, with
// the end of its log.
func Start(ctx context.Context, o Options) (_ *Stack, err error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	s := &Stack{options: o, Clusters: map[string]*Vault{}, Proxies: map[string]*Proxy{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	steps := []func(context.Context) error{s.makeDir, s.makeRoot, s.buildApp, s.startEngine}
	if !o.OnlyDocker {
		steps = append(steps, s.startPostgres, s.startVaults, s.startProxies, s.startNomad, s.setUpVaults)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("start stack: %w", err)
		}
	}
	return s, nil
}

func (s *Stack) makeDir(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, as a Nomad client does")
	}
	var err error
	if s.root, err = repository(); err != nil {
		return err
	}
	// A short name: the paths of task sockets, some way down, must fit into the 108 bytes of a socket address.
	if s.Dir, err = os.MkdirTemp("", "ndv"); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.Chmod(s.Dir, 0o755); err != nil { // PostgreSQL and the tasks run as other users.
		return fmt.Errorf("make folder: %w", err)
	}
	for _, name := range []string{"bin", "tmp"} {
		if err := os.Mkdir(s.path(name), 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	s.guard, err = startGuard(s.Dir)
	return err
}

// path is a file of the stack.
func (s *Stack) path(name string) string { return filepath.Join(s.Dir, name) }

// startProxies starts a proxy for each name asked for. Their cluster is the default one, whose Vault runs already.
func (s *Stack) startProxies(context.Context) error {
	for name, secure := range s.options.Proxies {
		ca := ""
		if secure {
			ca = s.path("proxy-" + name + ".pem")
		}
		p, err := newProxy(s.Vault.Addr, ca)
		if err != nil {
			return err
		}
		s.Proxies[name] = p
		if err := p.listen(false); err != nil {
			return err
		}
		s.options.Log("a proxy of Vault, %q, is on %s", name, p.Addr)
	}
	return nil
}

// Close stops the jobs, then what Start has started, and removes every trace of it. It reports what did not go well,
// and goes on.
func (s *Stack) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	if s.Nomad != nil {
		errs = append(errs, s.Nomad.stopJobs(ctx), s.Nomad.Stop(), s.Nomad.server.Stop())
	}
	for _, p := range s.Proxies {
		p.stop()
	}
	for _, v := range s.Clusters {
		errs = append(errs, v.Stop())
	}
	if s.Postgres != nil {
		errs = append(errs, s.Postgres.Stop())
	}
	if s.imageLock != nil {
		errs = append(errs, s.imageLock.Close())
	}
	if s.Dir != "" {
		errs = append(errs, sweep(s.Dir))
	}
	if s.docker != nil {
		errs = append(errs, s.docker.Stop())
	}
	if s.guard != nil {
		errs = append(errs, s.guard.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close stack: %w", err)
	}
	return nil
}

// buildApp builds the test application, static, so that it runs in any container.
func (s *Stack) buildApp(ctx context.Context) error {
	if !s.options.App {
		return nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", s.path("bin/app"), "./e2e/app")
	build.Dir = s.root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build e2e/app: %w: %s", err, out)
	}
	return nil
}

// faultDir is where the plugin looks for faults (package faults).
const faultDir = "faults"

// plugin is the binary under test.
func (s *Stack) plugin() (string, error) {
	if !s.options.Faults {
		return s.tool("PLUGIN_BIN", "nomad-driver-vault")
	}
	if err := os.Mkdir(s.path(faultDir), 0o700); err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	build := exec.Command("go", "build", "-trimpath", "-tags=faults", "-o", s.path("nomad-driver-vault"), ".")
	build.Dir = s.root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the plugin with faults: %w: %s", err, out)
	}
	return s.path("nomad-driver-vault"), nil
}

// Fault has the plugin end, as by kill -9, the next time when the task comes to a step of its life.
func (s *Stack) Fault(task, step string) error {
	return os.WriteFile(filepath.Join(s.path(faultDir), task+"."+step), nil, 0o600)
}

// Faulted reports whether that has happened.
func (s *Stack) Faulted(task, step string) bool {
	_, err := os.Stat(filepath.Join(s.path(faultDir), task+"."+step))
	return errors.Is(err, os.ErrNotExist)
}

// repository is the folder of our go.mod: this one, or one above it.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find repository: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("find repository: no go.mod in this folder or above it")
}

// tool is the path of what make puts into bin/, unless the environment variable env names another one.
func (s *Stack) tool(env, built string) (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	path := filepath.Join(s.root, "bin", built)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run `make build tools`, or name an installed one in %s", err, env)
	}
	return path, nil
}
