package setup

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
)

// planDestroy removes what carries the mark of setup. A mount that has roles or secrets of others stays.
func (p planner) planDestroy(ctx context.Context, have existing) (steps []step, err error) {
	first, _, _ := strings.Cut(have.policy, "\n")
	ours := strings.HasPrefix(first, "# "+madeBy)
	if have.method != nil {
		steps, err = p.destroyMethod(ctx, have, ours && strings.HasSuffix(first, p.markOfRole()))
		if err != nil {
			return nil, err
		}
	}
	if have.policy != "" {
		steps = append(steps, deleteIf(ours, "policy "+p.policy, func(ctx context.Context) error {
			return p.vault.Sys().DeletePolicyWithContext(ctx, p.policy)
		}))
	}
	if have.engine != nil {
		steps = append(steps, p.destroyEngine(ctx, have.engine))
	}
	return steps, nil
}

// deleteIf is the step for an object that is there: it is deleted only if it is ours.
func deleteIf(ours bool, object string, run func(context.Context) error) step {
	if !ours {
		return leave(object, "setup has not made it")
	}
	return step{"delete", object, "", run}
}

func (p planner) destroyMethod(ctx context.Context, have existing, oursRole bool) (steps []step, err error) {
	ours := strings.HasSuffix(have.method.Description, madeBy)
	if have.role != nil {
		steps = append(steps, deleteIf(ours || oursRole, "role "+p.rolePath(), func(ctx context.Context) error {
			_, err := p.vault.Logical().DeleteWithContext(ctx, p.rolePath())
			return err
		}))
	}
	roles, err := p.vault.List(ctx, "auth/"+p.path+"/role")
	if err != nil {
		return nil, err
	}
	object := "auth method auth/" + p.path
	others := slices.DeleteFunc(roles, func(role string) bool { return role == p.role })
	if ours && len(others) > 0 {
		return append(steps, leave(object, "it has other roles: "+strings.Join(others, ", "))), nil
	}
	return append(steps, deleteIf(ours, object, func(ctx context.Context) error {
		return p.vault.Sys().DisableAuthWithContext(ctx, p.path)
	})), nil
}

func (p planner) destroyEngine(ctx context.Context, engine *api.MountOutput) step {
	object := "secrets engine " + p.kv + "/"
	ours := strings.HasSuffix(engine.Description, madeBy)
	checkEmpty := func(ctx context.Context) error {
		names, err := p.vault.List(ctx, p.kv+"/metadata")
		if err == nil && len(names) > 0 {
			err = errors.New("it has secrets")
		}
		return err
	}
	if err := checkEmpty(ctx); ours && err != nil {
		return leave(object, err.Error())
	}
	return deleteIf(ours, object, func(ctx context.Context) error {
		if err := checkEmpty(ctx); err != nil { // somebody may have written one while we asked
			return err
		}
		return p.vault.Sys().UnmountWithContext(ctx, p.kv)
	})
}
