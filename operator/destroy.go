package operator

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
)

// planDestroy removes what carries our mark. A mount that others use by now stays.
func (s *setup) planDestroy(ctx context.Context, have there) (steps []step, err error) {
	first, _, _ := strings.Cut(have.policy, "\n")
	ours := strings.HasPrefix(first, "# "+madeBy)
	if have.method != nil {
		if steps, err = s.destroyMethod(ctx, have, ours && strings.HasSuffix(first, ", with "+s.rolePath())); err != nil {
			return nil, err
		}
	}
	if have.policy != "" {
		steps = append(steps, remove(ours, "policy "+s.policy, func(ctx context.Context) error {
			return s.vault.Sys().DeletePolicyWithContext(ctx, s.policy)
		}))
	}
	if have.engine != nil {
		steps = append(steps, s.destroyEngine(ctx, have.engine))
	}
	return steps, nil
}

// remove is the step for an object that is there, and ours or not.
func remove(ours bool, object string, do func(context.Context) error) step {
	if !ours {
		return leave(object, "setup has not made it")
	}
	return step{"delete", object, "", do}
}

func (s *setup) destroyMethod(ctx context.Context, have there, oursRole bool) (steps []step, err error) {
	ours := strings.HasSuffix(have.method.Description, madeBy)
	if have.role != nil {
		steps = append(steps, remove(ours || oursRole, "role "+s.rolePath(), func(ctx context.Context) error {
			_, err := s.vault.Logical().DeleteWithContext(ctx, s.rolePath())
			return err
		}))
	}
	roles, err := list(ctx, s.vault, "auth/"+s.path+"/role")
	object, others := "auth method auth/"+s.path, slices.DeleteFunc(roles, func(role string) bool { return role == s.role })
	if ours && len(others) > 0 {
		return append(steps, leave(object, "it has other roles: "+strings.Join(others, ", "))), err
	}
	return append(steps, remove(ours, object, func(ctx context.Context) error { return s.vault.Sys().DisableAuthWithContext(ctx, s.path) })), err
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
		return leave(object, err.Error())
	}
	return remove(ours, object, func(ctx context.Context) error {
		if err := empty(ctx); err != nil { // somebody has written one while we asked
			return err
		}
		return s.vault.Sys().UnmountWithContext(ctx, s.kv)
	})
}
