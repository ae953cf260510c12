package setup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/operator"
)

// A planner finds the steps from what a Vault has to what setup makes, or back.
type planner struct {
	objects
	vault operator.Vault
}

// steps reads what is there and plans; it changes nothing.
func (p planner) steps(ctx context.Context, destroy bool) ([]step, error) {
	have, err := readExisting(ctx, p.vault, p.objects)
	switch {
	case err != nil:
		return nil, err
	case destroy:
		return p.planDestroy(ctx, have)
	default:
		return p.plan(have)
	}
}

// plan is the steps that make what is there what it should be.
func (p planner) plan(have existing) ([]step, error) {
	for _, other := range []string{"oidc_discovery_url", "jwt_validation_pubkeys", "jwks_pairs"} {
		if have.config[other] != nil {
			return nil, fmt.Errorf("%s has %s = %s, which excludes jwks_url: choose another -path",
				p.configPath(), other, toJSON(have.config[other]))
		}
	}
	role := p.merge("role "+p.rolePath(), p.rolePath(), have.role, p.roleSettings())
	return append(p.planMethod(have), p.planPolicy(have), role, p.planEngine(have)), nil
}

// planMethod is for the auth method and its configuration. Of a method that is there it changes what a flag names,
// and adds what is missing.
func (p planner) planMethod(have existing) []step {
	object, config, want := "auth method auth/"+p.path, "configuration "+p.configPath(), p.config()
	if have.method == nil {
		mount := func(ctx context.Context) error {
			return p.vault.Sys().EnableAuthWithOptionsWithContext(ctx, p.path, &api.MountInput{Type: "jwt",
				Description: "Nomad's workload identities, " + madeBy})
		}
		write := func(ctx context.Context) error {
			err := p.write(p.configPath(), want)(ctx)
			if err != nil { // a method without a configuration helps nobody
				err = errors.Join(err, p.vault.Sys().DisableAuthWithContext(context.WithoutCancel(ctx), p.path))
			}
			return err
		}
		return []step{{"create", object, "type jwt", mount}, {"create", config, want.lines(), write}}
	}
	if have.config["jwks_url"] != nil && !p.jwksURLGiven {
		delete(want, "jwks_url")
	}
	if have.config["default_role"] != nil { // logins that name no role expect that one
		delete(want, "default_role")
	}
	if have.config["jwks_url"] != nil && have.config["jwt_supported_algs"] == nil { // the method accepts all of them
		delete(want, "jwt_supported_algs")
	}
	return []step{leave(object, ""), p.merge(config, p.configPath(), have.config, want)}
}

// merge lays what is wanted over the settings that an object has. Vault replaces the settings as a whole, so the step
// writes those of others again.
func (p planner) merge(object, path string, have, want settings) step {
	merged, changes := want.mergeInto(have)
	switch {
	case len(have) == 0:
		return step{"create", object, merged.lines(), p.write(path, merged)}
	case len(changes) > 0:
		return step{"change", object, strings.Join(changes, "\n"), p.write(path, merged)}
	}
	return leave(object, "")
}

func (p planner) write(path string, data settings) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := p.vault.Logical().WriteWithContext(ctx, path, data)
		return err
	}
}

// planPolicy adds the rules that the policy lacks; rules of others stay. Rules have the accessor of the auth method:
// before there is one they are shown with a placeholder.
func (p planner) planPolicy(have existing) step {
	write := func(ctx context.Context) error {
		now, err := readExisting(ctx, p.vault, p.objects)
		if err != nil {
			return err
		}
		text := now.policy
		if text == "" {
			text = p.mark(have)
		}
		text = strings.TrimRight(text, "\n") + "\n" + p.missingRules(now.policy, now.method.Accessor)
		return p.vault.Sys().PutPolicyWithContext(ctx, p.policy, text)
	}
	accessor := "<accessor of auth/" + p.path + ">"
	if have.method != nil {
		accessor = have.method.Accessor
	}
	object, missing := "policy "+p.policy, p.missingRules(have.policy, accessor)
	switch {
	case have.policy == "":
		return step{"create", object, missing, write}
	case missing == "":
		return leave(object, "")
	}
	return step{"change", object, indent("+ ", missing), write}
}

// mark is the first line of a policy that setup made, and says whether setup made its role, too, which has no place
// for a mark of its own. A policy of somebody else gets no mark when setup adds rules to it.
func (p planner) mark(have existing) string {
	if have.role == nil {
		return "# " + madeBy + p.markOfRole()
	}
	return "# " + madeBy
}

func (p planner) markOfRole() string { return ", with " + p.rolePath() }

// planEngine makes the KV engine if nothing is mounted there, because the policy names its paths.
func (p planner) planEngine(have existing) step {
	object := "secrets engine " + p.kv + "/"
	if have.engine != nil {
		return leave(object, "")
	}
	return step{"create", object, "KV version 2", func(ctx context.Context) error {
		return p.vault.Sys().MountWithContext(ctx, p.kv, &api.MountInput{Type: "kv",
			Options: map[string]string{"version": "2"}, Description: "Secrets of Nomad's jobs, " + madeBy})
	}}
}
