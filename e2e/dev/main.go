// Command dev is behind `make demo`, which tells in a minute what the plugin is for, on agents of its own, and `make
// dev`, which leaves such agents running to work with.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"nomad-driver-vault/e2e/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 || args[0] != "demo" && args[0] != "up" {
		return errors.New("usage: dev demo|up")
	}
	note("starting Vault and Nomad")
	s, err := stack.Start(ctx, stack.Options{
		AsInExamples: args[0] == "up",
		Postgres:     stack.HavePostgres(),
		Log:          note,
	})
	if err != nil {
		return err
	}
	if args[0] == "up" {
		err = up(ctx, s)
	} else {
		err = demo(ctx, s)
	}
	note("stopping everything that was started")
	return errors.Join(err, s.Close())
}

// up prints what a shell needs and waits for Ctrl-C.
func up(ctx context.Context, s *stack.Stack) error {
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	fmt.Printf(`
For another shell:

  export PATH=%s:$PATH
  export NOMAD_ADDR=%s NOMAD_TOKEN=%s
  export VAULT_ADDR=%s VAULT_TOKEN=%s

  vault kv put -mount=kv default/hello-exec/config greeting="good morning"
  nomad-driver-vault check -job example/exec.nomad.hcl
  nomad job run example/exec.nomad.hcl
  nomad alloc logs -job hello-exec
  nomad-driver-vault status -state-dir %s/state/vault-exec

`, bin, s.Nomad.Addr, s.Nomad.Token, s.Vault.Addr, s.Vault.Token, s.Dir)
	if s.Postgres != nil {
		fmt.Printf("  nomad job run -var postgres_port=%d example/database.nomad.hcl\n", s.Postgres.Port)
		fmt.Printf("  nomad job run -var postgres_port=%d example/door-database.nomad.hcl\n\n", s.Postgres.Port)
	}
	fmt.Printf("Logs are in %s. Ctrl-C stops and removes all of it.\n", s.Dir)
	<-ctx.Done()
	return nil
}

// demo tells the stories that this machine can tell.
func demo(ctx context.Context, s *stack.Stack) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	d := &story{Stack: s, ctx: ctx}
	d.tell("vault-exec: a secret in a file, and a signal when it changes", (*story).signal)
	if s.Docker {
		d.tell("vault-docker: the same in the environment of a container, which is restarted when it changes",
			(*story).restart)
	} else {
		note("(vault-docker needs Docker, which is not here)")
	}
	if s.Postgres != nil {
		d.tell("database credentials: a PostgreSQL user for as long as the task runs", (*story).database)
	} else {
		note("(database credentials need PostgreSQL, which is not here)")
	}
	return d.err
}

var begun = time.Now()

// note prints a line, with the seconds since the start.
func note(format string, args ...any) {
	fmt.Printf("%5.1fs  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
}
