package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
)

// there is what Vault has of what setup makes: nil or empty where there is nothing.
type there struct {
	method       *api.AuthMount
	config, role settings
	policy       string
	engine       *api.MountOutput
}

// look reads what is there. A mount of another kind is an error.
func (s *setup) look(ctx context.Context) (have there, err error) {
	methods, err := s.vault.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return have, failed("list auth methods", s.vault, err)
	}
	engines, err := s.vault.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return have, failed("list secrets engines", s.vault, err)
	}
	have.method, have.engine = methods[s.path+"/"], engines[s.kv+"/"]
	if m := have.method; m != nil && m.Type != "jwt" {
		return have, fmt.Errorf("auth/%s is an auth method of type %q, not \"jwt\": choose another -path", s.path, m.Type)
	}
	if e := have.engine; e != nil && (e.Type != "kv" || e.Options["version"] != "2") {
		return have, fmt.Errorf("%s/ is a secrets engine of type %q, version %q, not KV version 2: choose another -kv", s.kv, e.Type, e.Options["version"])
	}
	if have.config, err = read(ctx, s.vault, s.configPath()); err != nil {
		return have, err
	}
	if have.role, err = read(ctx, s.vault, s.rolePath()); err != nil {
		return have, err
	}
	have.policy, err = policy(ctx, s.vault, s.policy)
	return have, err
}

// plan is what makes what is there what it should be.
func (s *setup) plan(have there) ([]step, error) {
	for _, other := range []string{"oidc_discovery_url", "jwt_validation_pubkeys", "jwks_pairs"} {
		if have.config[other] != nil {
			return nil, fmt.Errorf("%s has %s = %s, which excludes jwks_url: choose another -path", s.configPath(), other, inJSON(have.config[other]))
		}
	}
	return append(s.planMethod(have), s.planPolicy(have), s.change("role "+s.rolePath(), s.rolePath(), have.role, s.roleSettings()), s.planEngine(have)), nil
}

// planMethod is for the auth method and its configuration. Of one that is there it changes what the command line asks for, and adds what
// is missing. Vault replaces a configuration as a whole: what it has beside is written again.
func (s *setup) planMethod(have there) []step {
	object, config, want := "auth method auth/"+s.path, "configuration "+s.configPath(), s.configSettings()
	if have.method == nil {
		mount := func(ctx context.Context) error {
			return s.vault.Sys().EnableAuthWithOptionsWithContext(ctx, s.path, &api.MountInput{Type: "jwt",
				Description: "Nomad's workload identities, " + madeBy})
		}
		write := func(ctx context.Context) error {
			err := s.write(s.configPath(), want)(ctx)
			if err != nil { // a method without a configuration helps nobody
				err = errors.Join(err, s.vault.Sys().DisableAuthWithContext(context.WithoutCancel(ctx), s.path))
			}
			return err
		}
		return []step{{"create", object, "type jwt", mount}, {"create", config, want.lines(), write}}
	}
	if have.config["jwks_url"] != nil && !s.chosen["jwks-url"] {
		delete(want, "jwks_url")
	}
	if have.config["default_role"] != nil { // what logs in without a role expects that one
		delete(want, "default_role")
	}
	if have.config["jwks_url"] != nil && have.config["jwt_supported_algs"] == nil { // it takes every one
		delete(want, "jwt_supported_algs")
	}
	return []step{leave(object, ""), s.change(config, s.configPath(), have.config, want)}
}

// change lays what is wanted over what an object has.
func (s *setup) change(object, path string, have, want settings) step {
	all, changes := want.over(have)
	switch {
	case len(have) == 0:
		return step{"create", object, all.lines(), s.write(path, all)}
	case len(changes) > 0:
		return step{"change", object, strings.Join(changes, "\n"), s.write(path, all)}
	}
	return leave(object, "")
}

func (want settings) lines() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(want)) {
		fmt.Fprintf(&b, "%s = %s\n", key, inJSON(want[key]))
	}
	return b.String()
}

// planPolicy needs the accessor of the auth method. Until that is there the policy is shown without it.
func (s *setup) planPolicy(have there) step {
	write := func(ctx context.Context) error {
		now, err := s.look(ctx)
		if err != nil {
			return err
		}
		text := now.policy
		if text == "" {
			text = s.mark(have)
		}
		return s.vault.Sys().PutPolicyWithContext(ctx, s.policy, withNewline(text)+s.missing(now.policy, now.method.Accessor))
	}
	accessor := "<accessor of auth/" + s.path + ">"
	if have.method != nil {
		accessor = have.method.Accessor
	}
	object, missing := "policy "+s.policy, s.missing(have.policy, accessor)
	switch {
	case have.policy == "":
		return step{"create", object, missing, write}
	case missing == "":
		return leave(object, "")
	}
	return step{"change", object, prefixed("+ ", missing), write}
}

// missing is the rules that a policy lacks. Those that it has beside stay: somebody has put them there.
func (s *setup) missing(policy, accessor string) string {
	have := bare(policy)
	return strings.Join(slices.DeleteFunc(s.rules(accessor), func(rule string) bool { return strings.Contains(have, bare(rule)) }), "")
}

func withNewline(text string) string { return strings.TrimRight(text, "\n") + "\n" }

// mark is the first line of a policy that is ours: that it is, and whether its role is. A policy that somebody else has made does not
// become ours by a change.
func (s *setup) mark(have there) string {
	if have.role == nil {
		return "# " + madeBy + ", with " + s.rolePath()
	}
	return "# " + madeBy
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
func (s *setup) planEngine(have there) step {
	object := "secrets engine " + s.kv + "/"
	if have.engine != nil {
		return leave(object, "")
	}
	return step{"create", object, "KV version 2", func(ctx context.Context) error {
		return s.vault.Sys().MountWithContext(ctx, s.kv, &api.MountInput{Type: "kv", Options: map[string]string{"version": "2"},
			Description: "Secrets of Nomad's jobs, " + madeBy})
	}}
}

func (s *setup) write(path string, data settings) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.vault.Logical().WriteWithContext(ctx, path, data)
		return err
	}
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
		have, _ := there.(map[string]any)
		all := map[string]any{}
		maps.Copy(all, have)
		maps.Copy(all, wanted)
		return all
	}
	return wanted
}

func inJSON(v any) string {
	text, _ := json.Marshal(v) // what came from JSON, or is written here
	return string(text)
}
