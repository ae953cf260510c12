package operator

import (
	"cmp"
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
	if have["jwks_url"] != nil && !s.chosen["jwks-url"] {
		delete(want, "jwks_url")
	}
	if have["default_role"] != nil { // what logs in without a role expects that one
		delete(want, "default_role")
	}
	if have["jwks_url"] != nil && have["jwt_supported_algs"] == nil { // it takes every one
		delete(want, "jwt_supported_algs")
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
