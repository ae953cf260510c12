package operator

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

	"github.com/hashicorp/vault/api"
)

const setupAbout = `Prepares a Vault for Nomad's workload identities: a JWT auth method that trusts Nomad's keys, a role for every
job, a policy with which each job reads its own secrets, <kv>/<namespace>/<job>/..., and the KV engine where there is
none. It shows what it will do and asks. Running it again changes nothing; what others have made is not removed.

Vault is the one of VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT and the vault command's other variables.`

// setup is what the command line asks for.
type setup struct {
	path, role, policy, kv, audience string
	jwksURL, jwksCA                  string // URL, and the certificate itself
	chosen                           map[string]bool

	vault *api.Client
}

func runSetup(ctx context.Context, args []string, t Terminal) error {
	s := &setup{chosen: map[string]bool{}}
	flags := flag.NewFlagSet("setup", flag.ContinueOnError)
	flags.StringVar(&s.path, "path", "jwt-nomad", "where the JWT auth method is, or will be mounted")
	flags.StringVar(&s.role, "role", "nomad-workloads", "role of the auth method")
	flags.StringVar(&s.policy, "policy", "nomad-workloads", "policy of the role")
	flags.StringVar(&s.kv, "kv", "kv", "mount of the KV version 2 engine that has the jobs' secrets")
	flags.StringVar(&s.audience, "audience", "vault.io", "aud of the tasks' identity blocks")
	flags.StringVar(&s.jwksURL, "jwks-url", "", "Nomad's keys, as *Vault* reaches them (default \"<NOMAD_ADDR>/.well-known/jwks.json\")")
	caFile := flags.String("jwks-ca-file", "", "CA certificate (PEM) of that URL, where Vault does not know it")
	yes := flags.Bool("yes", false, "do not ask")
	destroy := flags.Bool("destroy", false, "remove what setup has made with these names, and nothing else")
	dryRun := flags.Bool("dry-run", false, "print everything that setup makes, and do not talk to Vault")
	format := flags.String("format", "vault", "of -dry-run: \"vault\", input of the vault command, or \"terraform\"")
	if err := parse(flags, setupAbout, args, t); err != nil {
		return err
	}
	flags.Visit(func(f *flag.Flag) { s.chosen[f.Name] = true })
	if err := s.complete(*caFile); err != nil {
		return err
	}
	switch {
	case *format != "vault" && *format != "terraform":
		return misuse("-format %q is unknown: use \"vault\" or \"terraform\"", *format)
	case *dryRun && *destroy:
		return misuse("-dry-run and -destroy do not go together: -destroy shows what it will do, and asks")
	case *dryRun && *format == "terraform":
		return s.printTerraform(t.Out)
	case *dryRun:
		return s.printVault(t.Out)
	case s.chosen["format"]:
		return misuse("-format is for -dry-run")
	}
	return s.run(ctx, *destroy, *yes, t)
}

// complete checks the flags and fills in what depends on others.
func (s *setup) complete(caFile string) error {
	s.path, s.kv = strings.Trim(s.path, "/"), strings.Trim(s.kv, "/")
	s.role, s.policy = strings.ToLower(s.role), strings.ToLower(s.policy) // as Vault does
	for name, value := range map[string]string{"path": s.path, "role": s.role, "policy": s.policy, "kv": s.kv, "audience": s.audience} {
		if value == "" || strings.ContainsAny(value, " \"\\\n{}*+?#") {
			return misuse("-%s %q is not a name", name, value)
		}
	}
	if s.jwksURL == "" {
		nomad := cmp.Or(os.Getenv("NOMAD_ADDR"), "http://localhost:4646")
		s.jwksURL = strings.TrimSuffix(nomad, "/") + "/.well-known/jwks.json"
	}
	if caFile == "" {
		return nil
	}
	pem, err := os.ReadFile(filepath.Clean(caFile))
	if err != nil {
		return misuse("-jwks-ca-file: %w", err)
	}
	s.jwksCA = string(pem)
	return nil
}

// madeBy marks what is ours to remove: in the description of a mount, and with # before it as the first line of a policy.
const madeBy = "made by nomad-driver-vault setup"

func (s *setup) configPath() string { return "auth/" + s.path + "/config" }
func (s *setup) rolePath() string   { return "auth/" + s.path + "/role/" + s.role }

func (s *setup) configSettings() settings {
	c := settings{"jwks_url": s.jwksURL, "jwt_supported_algs": []any{"RS256", "EdDSA"}, "default_role": s.role}
	if s.jwksCA != "" {
		c["jwks_ca_pem"] = s.jwksCA
	}
	return c
}

// roleSettings are those of Nomad's own setup, with a token that is renewed for as long as the task runs: it is periodic
// and has no end of its own.
func (s *setup) roleSettings() settings {
	return settings{
		"role_type": "jwt", "bound_audiences": []any{s.audience},
		"user_claim": "/nomad_job_id", "user_claim_json_pointer": true,
		"claim_mappings": map[string]any{"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", "nomad_task": "nomad_task"},
		"token_type":     "service", "token_policies": []any{s.policy}, "token_period": 1800., "token_explicit_max_ttl": 0.,
	}
}

// rules are those of Nomad's own setup. Vault puts namespace and job of the identity into the paths.
func (s *setup) rules(accessor string) (rules []string) {
	claim := "{{identity.entity.aliases." + accessor + ".metadata."
	namespace, job := claim+"nomad_namespace}}", claim+"nomad_job_id}}"
	for _, rule := range [][2]string{{"data/" + namespace + "/" + job + "/*", "read"}, {"data/" + namespace + "/" + job, "read"},
		{"metadata/" + namespace + "/*", "list"}, {"metadata/*", "list"}} {
		rules = append(rules, fmt.Sprintf("path \"%s/%s\" {\n  capabilities = [\"%s\"]\n}\n", s.kv, rule[0], rule[1]))
	}
	return rules
}

// A step is one object in Vault and what happens to it.
type step struct {
	verb   string // create, change, delete, leave
	object string
	shows  string // what is written, or why not
	do     func(ctx context.Context) error
}

func leave(object, why string) step { return step{"leave", object, why, nil} }

// run shows the steps, asks, and takes them.
func (s *setup) run(ctx context.Context, destroy, yes bool, t Terminal) (err error) {
	if s.vault, err = connect(); err != nil {
		return err
	}
	have, err := s.look(ctx)
	if err != nil {
		return err
	}
	steps, err := s.plan(have)
	if destroy {
		steps, err = s.planDestroy(ctx, have)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(t.Out, "Vault at %s:\n", s.vault.Address())
	for _, step := range steps {
		fmt.Fprintf(t.Out, "  %-6s  %s\n%s", step.verb, step.object, prefixed("            ", step.shows))
	}
	if steps = slices.DeleteFunc(steps, func(s step) bool { return s.do == nil }); len(steps) == 0 {
		fmt.Fprintln(t.Out, "Nothing is to be done.")
		return nil
	}
	if !yes {
		if err := ask(t); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt) // what is begun is ended, or undone
	defer stop()
	for _, step := range steps {
		if err := s.take(ctx, step); err != nil {
			return err
		}
	}
	fmt.Fprintln(t.Out, "Done.")
	if !destroy {
		fmt.Fprintf(t.Out, nextSteps, s.vault.Address(), s.path, s.role, s.audience)
	}
	return nil
}

// ask returns nil when the answer is yes.
func ask(t Terminal) error {
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

func (s *setup) take(ctx context.Context, step step) error {
	err := step.do(ctx)
	if err == nil {
		return nil
	}
	err = failed(step.verb+" "+step.object, s.vault, err)
	if strings.Contains(err.Error(), "checking jwks URL") {
		err = fmt.Errorf("%w; set -jwks-url to Nomad's address as Vault reaches it", err)
	}
	return fmt.Errorf("%w; run setup again for the rest", err)
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
