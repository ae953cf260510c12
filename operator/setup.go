package operator

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
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
	for name, value := range map[string]*string{"path": &s.path, "role": &s.role, "policy": &s.policy, "kv": &s.kv, "audience": &s.audience} {
		if *value = strings.Trim(*value, "/ "); *value == "" || strings.ContainsAny(*value, " \"\\\n{}*+?#") {
			return misuse("-%s %q is not a name", name, *value)
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

func (s *setup) rolePath() string { return "auth/" + s.path + "/role/" + s.role }

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
func (s *setup) rules(accessor string) string {
	claim := "{{identity.entity.aliases." + accessor + ".metadata."
	namespace, job := claim+"nomad_namespace}}", claim+"nomad_job_id}}"
	var b strings.Builder
	for _, rule := range [][2]string{{"data/" + namespace + "/" + job + "/*", "read"}, {"data/" + namespace + "/" + job, "read"},
		{"metadata/" + namespace + "/*", "list"}, {"metadata/*", "list"}} {
		fmt.Fprintf(&b, "path \"%s/%s\" {\n  capabilities = [\"%s\"]\n}\n", s.kv, rule[0], rule[1])
	}
	return b.String()
}

// over returns have with what is wanted laid over it, and what of have that changes.
func (want settings) over(have settings) (all settings, changes []string) {
	all = settings{}
	maps.Copy(all, have)
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if all[key] = joined(have[key], want[key]); !reflect.DeepEqual(all[key], have[key]) {
			changes = append(changes, fmt.Sprintf("%s: %s -> %s", key, inJSON(have[key]), inJSON(all[key])))
		}
	}
	return all, changes
}

// joined is what is wanted, and of lists and maps what others have added to them.
func joined(there, wanted any) any {
	switch wanted := wanted.(type) {
	case []any:
		have, _ := there.([]any)
		missing := slices.DeleteFunc(slices.Clone(wanted), func(v any) bool { return slices.Contains(have, v) })
		return append(slices.Clone(have), missing...)
	case map[string]any:
		all, _ := there.(map[string]any)
		all = maps.Clone(all)
		if all == nil {
			return wanted
		}
		maps.Copy(all, wanted)
		return all
	}
	return wanted
}

func inJSON(v any) string {
	text, _ := json.Marshal(v) // what came from JSON, or is written here
	return string(text)
}

// A step is one object in Vault and what happens to it.
type step struct {
	verb   string // create, change, delete, leave
	object string
	shows  string // what is written, or why not
	do     func(ctx context.Context) error
}

// run shows the steps, asks, and takes them.
func (s *setup) run(ctx context.Context, destroy, yes bool, t Terminal) (err error) {
	if s.vault, err = connect(); err != nil {
		return err
	}
	plan := s.plan
	if destroy {
		plan = s.planDestroy
	}
	steps, err := plan(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(t.Out, "Vault at %s:\n", s.vault.Address())
	todo := 0
	for _, step := range steps {
		fmt.Fprintf(t.Out, "  %-6s  %s\n", step.verb, step.object)
		for line := range strings.Lines(step.shows) {
			fmt.Fprintf(t.Out, "            %s\n", strings.TrimRight(line, "\n"))
		}
		if step.do != nil {
			todo++
		}
	}
	if todo == 0 {
		fmt.Fprintln(t.Out, "Nothing is to be done.")
		return nil
	}
	if !yes {
		fmt.Fprint(t.Out, "Shall this be done? [y/N] ")
		answer, err := bufio.NewReader(t.In).ReadString('\n')
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "y", "yes":
		case "":
			if err != nil {
				return errors.New("there is nobody to ask: use -yes; nothing was changed")
			}
			fallthrough
		default:
			return errors.New("nothing was changed")
		}
	}
	for _, step := range steps {
		if step.do == nil {
			continue
		}
		if err := step.do(ctx); err != nil {
			err = failed(step.verb+" "+step.object, s.vault, err)
			if strings.Contains(err.Error(), "checking jwks URL") {
				err = fmt.Errorf("%w; set -jwks-url to Nomad's address as Vault reaches it", err)
			}
			return fmt.Errorf("%w; run setup again for the rest", err)
		}
	}
	if destroy {
		fmt.Fprintln(t.Out, "Done.")
		return nil
	}
	fmt.Fprintf(t.Out, nextSteps, s.vault.Address(), s.path, s.role, s.audience)
	return nil
}

const nextSteps = `Done. In the agents' plugin blocks:

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

// plan compares Vault with what it should have.
func (s *setup) plan(ctx context.Context) ([]step, error) {
	method, accessor, err := s.planMethod(ctx)
	if err != nil {
		return nil, err
	}
	role, err := s.planRole(ctx)
	if err != nil {
		return nil, err
	}
	policy, err := s.planPolicy(ctx, accessor, role.verb == "create")
	if err != nil {
		return nil, err
	}
	engine, err := s.planEngine(ctx)
	return append(method, policy, role, engine), err
}

// method returns the mount of the auth method, nil where there is none.
func (s *setup) method(ctx context.Context) (*api.AuthMount, error) {
	methods, err := s.vault.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return nil, failed("list auth methods", s.vault, err)
	}
	method := methods[s.path+"/"]
	if method != nil && method.Type != "jwt" {
		return nil, fmt.Errorf("auth/%s is an auth method of type %q, not \"jwt\": choose another -path", s.path, method.Type)
	}
	return method, nil
}

// planMethod is for the auth method and its configuration, and returns its accessor where it is there.
func (s *setup) planMethod(ctx context.Context) (steps []step, accessor string, err error) {
	method, err := s.method(ctx)
	if err != nil {
		return nil, "", err
	}
	object, config := "auth method auth/"+s.path, "auth/"+s.path+"/config"
	if method == nil {
		mount := func(ctx context.Context) error {
			return s.vault.Sys().EnableAuthWithOptionsWithContext(ctx, s.path, &api.MountInput{Type: "jwt",
				Description: "Nomad's workload identities, " + madeBy})
		}
		write := func(ctx context.Context) error {
			err := s.write(config, s.configSettings())(ctx)
			if err != nil { // a method without a configuration helps nobody
				err = errors.Join(err, s.vault.Sys().DisableAuthWithContext(context.WithoutCancel(ctx), s.path))
			}
			return err
		}
		return []step{{"create", object, "type jwt", mount},
			{"create", "configuration " + config, s.configSettings().lines(), write}}, "", nil
	}
	have, err := read(ctx, s.vault, config)
	if err != nil {
		return nil, "", err
	}
	changed, err := s.planConfig(config, have)
	return []step{{"leave", object, "", nil}, changed}, method.Accessor, err
}

// planConfig changes of a configuration what the command line asks for, and adds what is missing. Vault replaces it as a
// whole: what it has beside is written again.
func (s *setup) planConfig(path string, have settings) (step, error) {
	for _, other := range []string{"oidc_discovery_url", "jwt_validation_pubkeys", "jwks_pairs"} {
		if have[other] != nil {
			return step{}, fmt.Errorf("%s has %s = %s, which excludes jwks_url: choose another -path", path, other, inJSON(have[other]))
		}
	}
	want := s.configSettings()
	for key, flag := range map[string]string{"jwks_url": "jwks-url", "default_role": "", "jwt_supported_algs": ""} {
		if have["jwks_url"] != nil && !s.chosen[flag] && (have[key] != nil || key == "jwt_supported_algs") {
			delete(want, key)
		}
	}
	all, changes := want.over(have)
	return s.change("configuration "+path, path, have, all, changes), nil
}

func (s *setup) planRole(ctx context.Context) (step, error) {
	have, err := read(ctx, s.vault, s.rolePath())
	if err != nil {
		return step{}, err
	}
	all, changes := s.roleSettings().over(have)
	return s.change("role "+s.rolePath(), s.rolePath(), have, all, changes), nil
}

// change is the step from have to all.
func (s *setup) change(object, path string, have, all settings, changes []string) step {
	switch {
	case len(have) == 0:
		return step{"create", object, all.lines(), s.write(path, all)}
	case len(changes) > 0:
		return step{"change", object, strings.Join(changes, "\n"), s.write(path, all)}
	}
	return step{"leave", object, "", nil}
}

func (want settings) lines() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(want)) {
		fmt.Fprintf(&b, "%s = %s\n", key, inJSON(want[key]))
	}
	return b.String()
}

// planPolicy needs the accessor of the auth method. Until that is there the policy is shown without it.
func (s *setup) planPolicy(ctx context.Context, accessor string, withRole bool) (step, error) {
	have, err := s.vault.Sys().GetPolicyWithContext(ctx, s.policy)
	if err != nil {
		return step{}, failed("read policy "+s.policy, s.vault, err)
	}
	write := func(ctx context.Context) error {
		method, err := s.method(ctx)
		if err != nil {
			return err
		}
		return s.vault.Sys().PutPolicyWithContext(ctx, s.policy, mark(have, withRole, s.rolePath())+s.rules(method.Accessor))
	}
	object, want := "policy "+s.policy, s.rules(cmp.Or(accessor, "<accessor of auth/"+s.path+">"))
	switch {
	case have == "":
		return step{"create", object, want, write}, nil
	case bare(have) == bare(want):
		return step{"leave", object, "", nil}, nil
	}
	return step{"change", object, prefixed("- ", have) + prefixed("+ ", want), write}, nil
}

// mark is the first line of a policy: that it is ours, and whether its role is. A policy that somebody else has made does not
// become ours by a change.
func mark(have string, withRole bool, role string) string {
	first, _, _ := strings.Cut(have, "\n")
	switch {
	case strings.HasPrefix(first, "# "+madeBy):
		return first + "\n"
	case have != "":
		return ""
	case withRole:
		return "# " + madeBy + ", with " + role + "\n"
	}
	return "# " + madeBy + "\n"
}

// bare is a policy without comments and spacing.
func bare(policy string) string {
	var b strings.Builder
	for line := range strings.Lines(policy) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			b.WriteString(strings.Join(strings.Fields(line), ""))
		}
	}
	return b.String()
}

func prefixed(prefix, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(prefix + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

// planEngine makes the KV engine where nothing is mounted, because the policy speaks of it.
func (s *setup) planEngine(ctx context.Context) (step, error) {
	engine, err := s.engine(ctx)
	object := "secrets engine " + s.kv + "/"
	switch {
	case err != nil:
		return step{}, err
	case engine == nil:
		return step{"create", object, "KV version 2", func(ctx context.Context) error {
			return s.vault.Sys().MountWithContext(ctx, s.kv, &api.MountInput{Type: "kv", Options: map[string]string{"version": "2"},
				Description: "Secrets of Nomad's jobs, " + madeBy})
		}}, nil
	case engine.Type != "kv" || engine.Options["version"] != "2":
		return step{}, fmt.Errorf("%s/ is a secrets engine of type %q, version %q, not KV version 2: choose another -kv",
			s.kv, engine.Type, engine.Options["version"])
	}
	return step{"leave", object, "", nil}, nil
}

func (s *setup) engine(ctx context.Context) (*api.MountOutput, error) {
	engines, err := s.vault.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return nil, failed("list secrets engines", s.vault, err)
	}
	return engines[s.kv+"/"], nil
}

func (s *setup) write(path string, data settings) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.vault.Logical().WriteWithContext(ctx, path, data)
		return err
	}
}

// planDestroy removes what carries our mark. A mount that others use by now stays.
func (s *setup) planDestroy(ctx context.Context) ([]step, error) {
	method, err := s.method(ctx)
	if err != nil {
		return nil, err
	}
	policy, err := s.vault.Sys().GetPolicyWithContext(ctx, s.policy)
	if err != nil {
		return nil, failed("read policy "+s.policy, s.vault, err)
	}
	first, _, _ := strings.Cut(policy, "\n")
	ours := strings.HasPrefix(first, "# "+madeBy)
	var steps []step
	if method != nil {
		more, err := s.destroyMethod(ctx, method, ours && strings.HasSuffix(first, ", with "+s.rolePath()))
		if err != nil {
			return nil, err
		}
		steps = more
	}
	if policy != "" {
		steps = append(steps, remove(ours, "policy "+s.policy, func(ctx context.Context) error {
			return s.vault.Sys().DeletePolicyWithContext(ctx, s.policy)
		}))
	}
	engine, err := s.engine(ctx)
	if err != nil || engine == nil {
		return steps, err
	}
	return append(steps, s.destroyEngine(ctx, engine)), nil
}

// remove is the step for an object that is there, and ours or not.
func remove(ours bool, object string, do func(context.Context) error) step {
	if !ours {
		return step{"leave", object, "setup has not made it", nil}
	}
	return step{"delete", object, "", do}
}

func (s *setup) destroyMethod(ctx context.Context, method *api.AuthMount, oursRole bool) ([]step, error) {
	roles, err := list(ctx, s.vault, "auth/"+s.path+"/role")
	if err != nil {
		return nil, err
	}
	ours := strings.HasSuffix(method.Description, madeBy)
	var steps []step
	if slices.Contains(roles, s.role) {
		steps = append(steps, remove(ours || oursRole, "role "+s.rolePath(), func(ctx context.Context) error {
			_, err := s.vault.Logical().DeleteWithContext(ctx, s.rolePath())
			return err
		}))
	}
	object := "auth method auth/" + s.path
	others := slices.DeleteFunc(roles, func(role string) bool { return role == s.role })
	if ours && len(others) > 0 {
		return append(steps, step{"leave", object, "it has other roles: " + strings.Join(others, ", "), nil}), nil
	}
	return append(steps, remove(ours, object, func(ctx context.Context) error { return s.vault.Sys().DisableAuthWithContext(ctx, s.path) })), nil
}

func (s *setup) destroyEngine(ctx context.Context, engine *api.MountOutput) step {
	object := "secrets engine " + s.kv + "/"
	ours := strings.HasSuffix(engine.Description, madeBy)
	empty := func(ctx context.Context) error {
		names, err := list(ctx, s.vault, s.kv+"/metadata")
		if err == nil && len(names) > 0 {
			err = errors.New("it has secrets")
		}
		return err
	}
	if err := empty(ctx); ours && err != nil {
		return step{"leave", object, err.Error(), nil}
	}
	return remove(ours, object, func(ctx context.Context) error {
		if err := empty(ctx); err != nil { // somebody has written one while we asked
			return err
		}
		return s.vault.Sys().UnmountWithContext(ctx, s.kv)
	})
}
