package operator

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
)

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
