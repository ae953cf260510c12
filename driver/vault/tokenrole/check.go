package tokenrole

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nomad-driver-vault/driver/vault"
)

// makeAnother is the advice for a token of the cluster's own that ends.
const makeAnother = "make one with vault token create -orphan -period=72h"

// advise logs once what is not wrong but could be better. Only the chore's run calls it.
func (i *Issuer) advise(text string) {
	if !i.advised[text] {
		i.advised[text] = true
		i.logger.Warn(text)
	}
}

// check renews the cluster's own token, and checks its rights and the token role.
func (i *Issuer) check(ctx context.Context, own string) (vault.Lease, error) {
	as := i.as(own)
	lease, err := i.renew(ctx, as)
	if err == nil {
		err = i.checkRights(ctx, as)
	}
	if err == nil {
		err = i.checkRole(ctx, as)
	}
	return lease, err
}

func (i *Issuer) renew(ctx context.Context, as *vault.Caller) (vault.Lease, error) {
	now := time.Now()
	known, err := as.LookUp(ctx, "look up the cluster's own token")
	if err != nil {
		return vault.Lease{}, i.explainDenial(err, "auth/token/lookup-self", "read")
	}
	lease := vault.NewLease("", known.TTL, known.Renewable, now, i.client.Jitter())
	switch {
	case known.TTL == 0: // a root token
		return lease, nil
	case !known.Renewable:
		i.advise("the cluster's own token is not renewable, and ends with its TTL: " + makeAnother)
		return lease, nil
	case !known.Periodic:
		i.advise("the cluster's own token is not periodic, and ends with its maximum TTL: " + makeAnother)
	}
	renewed, err := as.Renew(ctx, "renew the cluster's own token", lease)
	switch {
	case vault.Unreachable(err):
		return vault.Lease{}, err
	case err != nil:
		i.advise(i.explainDenial(err, "auth/token/renew-self", "update").Error())
	default:
		lease = vault.NewLease("", renewed.Ends.Sub(renewed.Renewed), true, now, lease.Jitter)
	}
	return lease, nil
}

// explainDenial adds to a denial of what was asked with the cluster's own token what to do.
func (i *Issuer) explainDenial(err error, path, capability string) error {
	if vault.UnknownToken(err) {
		return vault.HintDenied(err, fmt.Sprintf("put a token that is valid into %s of %s",
			tokenField(i.cluster), i.cluster.Block()))
	}
	return vault.HintDenied(err,
		fmt.Sprintf("a policy of the cluster's own token must have: path %q { capabilities = [%q] }", path, capability))
}

// checkRights asks whether the token may do what it is for. A token that may not even ask that finds out when it is
// used.
func (i *Issuer) checkRights(ctx context.Context, as *vault.Caller) error {
	const byAccessor = "auth/token/revoke-accessor"
	create := i.createPath()
	can, err := as.Capabilities(ctx, "look up the rights of the cluster's own token", create, byAccessor)
	if vault.Unreachable(err) {
		return err
	}
	if err != nil {
		return nil
	}
	if !mayUpdate(can[create]) {
		return i.explainDenial(&vault.Error{Class: vault.ErrDenied, Op: i.client.CreateOp(i.cluster.Role),
			Detail: "the cluster's own token has no right to"},
			create, "update")
	}
	if !mayUpdate(can[byAccessor]) {
		i.advise(fmt.Sprintf("tokens that may not revoke themselves will end with their TTL: "+
			"%q is not granted to the cluster's own token", byAccessor))
	}
	return nil
}

func mayUpdate(capabilities []string) bool {
	return slices.Contains(capabilities, "update") || slices.Contains(capabilities, "root")
}

func (i *Issuer) createPath() string { return "auth/token/create/" + i.cluster.Role }

// checkRole returns an error where the role's tokens would not live as long as tasks do.
func (i *Issuer) checkRole(ctx context.Context, as *vault.Caller) error {
	name := i.cluster.Role
	op, path := fmt.Sprintf("check token role %q", name), "auth/token/roles/"+name
	role, err := as.ReadTokenRole(ctx, op, name)
	if err != nil {
		return i.explainDenial(err, path, "read")
	}
	if role == nil {
		return &vault.Error{Class: vault.ErrNotFound, Op: op, Detail: "there is no such role",
			Hint: fmt.Sprintf("vault write %s token_period=72h orphan=true disallowed_policies=..., "+
				"or correct create_from_role in %s", path, i.cluster.Block())}
	}
	wrong := func(detail, hint string) error {
		return &vault.Error{Class: vault.ErrInvalid, Op: op, Detail: detail,
			Hint: fmt.Sprintf("vault write %s %s", path, hint)}
	}
	switch {
	case role.Period <= 0:
		return wrong("token_period is 0: its tokens would end while tasks run", "token_period=72h")
	case role.ExplicitMax > 0:
		return wrong("token_explicit_max_ttl is set: its tokens would end while tasks run", "token_explicit_max_ttl=0")
	case role.Counted:
		return wrong("token_num_uses is set: its tokens would end while tasks run", "token_num_uses=0")
	case !role.Renewable:
		return wrong("renewable is false: its tokens would end while tasks run", "renewable=true")
	}
	if !role.Orphan {
		i.advise(fmt.Sprintf("token role %q has orphan = false: "+
			"when the cluster's own token ends, the tokens of all tasks end with it", name))
	}
	return nil
}
