// Package setup prepares a Vault for the workload identities of a Nomad: a JWT auth method that trusts Nomad's keys,
// its role, the role's policy and a KV engine. It changes what is there to what it should be, prints it, or removes
// it.
package setup

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"nomad-driver-vault/operator"
)

const about = `Prepares a Vault for Nomad's workload identities: a JWT auth method that trusts Nomad's keys, a role for
every job, a policy with which each job reads its own secrets, <kv>/<namespace>/<job>/..., and the KV engine where
there is none. It shows what it will do and asks. Running it again changes nothing; what others have made is not
removed.

Vault is the one of VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT and the vault command's other variables.`

// Command returns the subcommand.
func Command() operator.Command {
	return operator.Command{Name: "setup", Summary: "prepare a Vault for Nomad's workload identities", About: about,
		Flags: flags}
}

// options are what the command line asks for.
type options struct {
	objects
	caFile               string
	yes, destroy, dryRun bool
	format               string
}

func flags(flags *flag.FlagSet) operator.Run {
	o := new(options)
	flags.StringVar(&o.path, "path", "jwt-nomad", "where the JWT auth method is, or will be mounted")
	flags.StringVar(&o.role, "role", "nomad-workloads", "role of the auth method")
	flags.StringVar(&o.policy, "policy", "nomad-workloads", "policy of the role")
	flags.StringVar(&o.kv, "kv", "kv", "mount of the KV version 2 engine that has the jobs' secrets")
	flags.StringVar(&o.audience, "audience", "vault.io", "aud of the tasks' identity blocks")
	flags.StringVar(&o.jwksURL, "jwks-url", "",
		"Nomad's keys, as *Vault* reaches them (default \"<NOMAD_ADDR>/.well-known/jwks.json\")")
	flags.StringVar(&o.caFile, "jwks-ca-file", "",
		"`file` with the CA certificate (PEM) of that URL, where Vault does not know it")
	flags.BoolVar(&o.yes, "yes", false, "do not ask")
	flags.BoolVar(&o.destroy, "destroy", false, "remove what setup has made with these names, and nothing else")
	flags.BoolVar(&o.dryRun, "dry-run", false, "print everything that setup makes, and do not talk to Vault")
	flags.StringVar(&o.format, "format", "vault", "of -dry-run: \"vault\", input of the vault command, or \"terraform\"")
	return func(ctx context.Context, _ []string, t operator.Terminal) error {
		given := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		if err := o.check(given); err != nil {
			return err
		}
		return o.run(ctx, t)
	}
}

func (o *options) run(ctx context.Context, t operator.Terminal) error {
	switch {
	case o.dryRun && o.format == "terraform":
		return o.printTerraform(t.Out)
	case o.dryRun:
		return o.printVault(t.Out)
	default:
		return o.change(ctx, t)
	}
}

// check says which of the flags given do not go together, and fills in what depends on others.
func (o *options) check(given map[string]bool) error {
	o.jwksURLGiven = given["jwks-url"]
	switch {
	case o.format != "vault" && o.format != "terraform":
		return operator.Usagef("-format %q is unknown: use \"vault\" or \"terraform\"", o.format)
	case o.dryRun && o.destroy:
		return operator.Usagef("-dry-run and -destroy do not go together: -destroy shows what it will do, and asks")
	case given["format"] && !o.dryRun:
		return operator.Usagef("-format is for -dry-run")
	}
	return o.complete()
}

// complete checks the names and reads the certificate.
func (o *options) complete() error {
	o.path, o.kv = strings.Trim(o.path, "/"), strings.Trim(o.kv, "/")
	o.role, o.policy = strings.ToLower(o.role), strings.ToLower(o.policy) // as Vault does
	for _, f := range [][2]string{{"path", o.path}, {"role", o.role}, {"policy", o.policy}, {"kv", o.kv},
		{"audience", o.audience}} {
		if f[1] == "" || strings.ContainsAny(f[1], " \"\\\n{}*+?#") {
			return operator.Usagef("-%s %q is not a name", f[0], f[1])
		}
	}
	if o.jwksURL == "" {
		nomad := cmp.Or(os.Getenv("NOMAD_ADDR"), "http://localhost:4646")
		o.jwksURL = strings.TrimSuffix(nomad, "/") + "/.well-known/jwks.json"
	}
	if o.caFile == "" {
		return nil
	}
	pem, err := os.ReadFile(filepath.Clean(o.caFile))
	if err != nil {
		return operator.Usagef("-jwks-ca-file: %w", err)
	}
	o.jwksCA = string(pem)
	return nil
}

// change shows the steps, asks, and takes them.
func (o options) change(ctx context.Context, t operator.Terminal) error {
	vault, err := operator.ConnectVault()
	if err != nil {
		return err
	}
	p := planner{o.objects, vault}
	steps, err := p.steps(ctx, o.destroy)
	if err != nil {
		return err
	}
	fmt.Fprintf(t.Out, "Vault at %s:\n", vault.Address())
	for _, s := range steps {
		fmt.Fprintf(t.Out, "  %-6s  %s\n%s", s.verb, s.object, indent("            ", s.detail))
	}
	if steps = slices.DeleteFunc(steps, func(s step) bool { return s.run == nil }); len(steps) == 0 {
		fmt.Fprintln(t.Out, "Nothing is to be done.")
		return nil
	}
	if !o.yes {
		if err := confirm(t); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt) // a step that has begun is finished or undone
	defer stop()
	for _, s := range steps {
		if err := s.take(ctx, vault); err != nil {
			return err
		}
	}
	fmt.Fprintln(t.Out, "Done.")
	if !o.destroy {
		fmt.Fprintf(t.Out, nextSteps, vault.Address(), o.path, o.role, o.audience)
	}
	return nil
}

// confirm asks and returns nil if the answer is yes.
func confirm(t operator.Terminal) error {
	fmt.Fprint(t.Out, "Shall this be done? [y/N] ")
	answer, err := bufio.NewReader(t.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	case "":
		if err != nil {
			return errors.New("there is nobody to ask: use -yes; nothing was changed")
		}
	}
	return errors.New("nothing was changed")
}

const nextSteps = `In the agents' plugin blocks:

  vault "default" {
    address               = "%s"
    jwt_auth_backend_path = "%s"
    create_from_role      = "%s"
  }

In the tasks:

  identity {
    name = "vault"
    aud  = ["%s"]
    file = true
    ttl  = "1h"
  }
`
