package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// Caller asks Vault with one token in one namespace. Its methods ask once, except where they say otherwise, and may be
// called by several goroutines. Their errors match the classes of this package.
type Caller struct {
	Auth
	Role      string // that the token was obtained for, as hints name it; empty: none is known
	Namespace string

	client *Client

	mu     sync.Mutex           // guards what follows
	hidden map[string]time.Time // when Vault refused to tell this token which mount serves a path
}

// As returns a Caller that asks with the token a. role is that which it was obtained for, empty where there is none.
func (c *Client) As(a Auth, role, namespace string) *Caller {
	return &Caller{Auth: a, Role: role, Namespace: namespace, client: c}
}

// Format keeps the token out of logs, errors and panics, which would look into unexported fields without asking their
// types.
func (c *Caller) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.Auth.String()) }

// api returns a client of Vault's library that uses the token over the shared transport.
func (c *Caller) api() (*api.Client, error) { return c.client.as(c.Value, c.Namespace) }

// whileUncertain repeats try, after short pauses, while a denial need not be one.
func (c *Caller) whileUncertain(ctx context.Context, try func() error) error {
	for pause := replicatedWithin / 10; ; pause *= 2 {
		err := try()
		uncertain := c.uncertain()
		if !errors.Is(err, ErrDenied) || uncertain <= 0 || !sleep(ctx, min(pause, uncertain)) {
			return err
		}
	}
}

// sleep waits for d; false means that ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ErrTokenGone is what Verdict returns for a token that was revoked or has ended.
var ErrTokenGone = errors.New("token is gone")

// Verdict tells what a denial means: ErrTokenGone, or the denial itself when the token lives and its policies are at
// fault. Vault says so since 1.15; an older one denies even what its default policy grants. Another error means that
// Vault could not be asked.
func (c *Caller) Verdict(ctx context.Context, denial error) error {
	if UnknownToken(denial) {
		return ErrTokenGone
	}
	_, err := c.LookUp(ctx, "look up token")
	switch {
	case err == nil:
		return denial
	case !errors.Is(err, ErrDenied):
		return err
	case UnknownToken(err), slices.Contains(c.Policies, "default"):
		return ErrTokenGone
	default:
		return denial
	}
}

// verdict is Verdict for an error that need not be a denial.
func (c *Caller) verdict(ctx context.Context, err error) error {
	if errors.Is(err, ErrDenied) {
		return c.Verdict(ctx, err)
	}
	return err
}

// TokenInfo is what Vault tells of a living token.
type TokenInfo struct {
	Accessor  string
	Policies  []string
	TTL       time.Duration // until its end; zero: it does not end
	Renewable bool
	Periodic  bool // each renewal grants its whole period again
}

// LookUp asks Vault what it knows of the token; op is what errors say was tried. ErrDenied means that Vault knows
// nothing. An answer without an accessor, which even a batch token has an empty one of, is none of Vault's: its missing
// TTL would make a token without an end.
func (c *Caller) LookUp(ctx context.Context, op string) (TokenInfo, error) {
	as, err := c.api()
	if err != nil {
		return TokenInfo{}, err
	}
	known, err := as.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return TokenInfo{}, c.client.fail(op, err)
	}
	if known == nil {
		return TokenInfo{}, c.client.notVault(op)
	}
	if _, has := known.Data["accessor"]; !has {
		return TokenInfo{}, c.client.notVault(op)
	}
	info := TokenInfo{Periodic: known.Data["period"] != nil}
	info.Accessor, _ = known.TokenAccessor()
	info.Policies, _ = known.TokenPolicies()
	info.TTL, _ = known.TokenTTL()
	info.Renewable, _ = known.TokenIsRenewable()
	return info, nil
}

// notVault is the error for an answer that Vault does not give.
func (c *Client) notVault(op string) error {
	return &Error{Class: ErrUnavailable, Op: op, Detail: "the answer tells of no token",
		Hint: fmt.Sprintf("is it Vault that answers at %s, or something before it?", c.cluster.Address)}
}

// Renew extends the token, whose lease is l as renewed since, and returns the new lease. op is what errors say was
// tried.
func (c *Caller) Renew(ctx context.Context, op string, l Lease) (Lease, error) {
	as, err := c.api()
	if err != nil {
		return l, err
	}
	now := time.Now()
	answer, err := as.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil {
		return l, c.hintDenied(c.client.fail(op, err), "auth/token/renew-self")
	}
	if answer == nil || answer.Auth == nil {
		return l, c.client.notVault(op)
	}
	return l.extended(span(answer.Auth.LeaseDuration), now), nil
}

// RevokeSelf ends the token and every lease that was read with it. A token that Vault no longer knows is revoked
// already; one that is not Revocable is left to end. ErrDenied means that its policies do not let it. It repeats a
// denial of a token that is new.
func (c *Caller) RevokeSelf(ctx context.Context) error {
	if !c.Revocable() {
		return nil
	}
	as, err := c.api()
	if err != nil {
		return err
	}
	err = c.verdict(ctx, c.whileUncertain(ctx, func() error {
		return c.client.fail("revoke token", as.Auth().Token().RevokeSelfWithContext(ctx, ""))
	}))
	if errors.Is(err, ErrTokenGone) {
		return nil
	}
	return c.hintDenied(err, "auth/token/revoke-self")
}

// ErrLeaseGone is Vault's answer to the renewal of a lease that was revoked or has ended.
var ErrLeaseGone = errors.New("lease is gone")

// OpRenewLease is what errors say the renewal of a lease is, of what was read at path.
func OpRenewLease(path string) string { return "renew lease of " + path }

// RenewLease extends the lease l of what was read at path. The error may be ErrTokenGone or ErrLeaseGone.
func (c *Caller) RenewLease(ctx context.Context, path string, l Lease) (Lease, error) {
	as, err := c.api()
	if err != nil {
		return l, err
	}
	now, op := time.Now(), OpRenewLease(path)
	answer, err := as.Sys().RenewWithContext(ctx, l.ID, int(l.TTL/time.Second))
	err = c.client.fail(op, err)
	var e *Error
	switch {
	case errors.Is(err, ErrDenied):
		return l, c.hintDenied(c.Verdict(ctx, err), childNamespace(path, l.ID)+"sys/leases/renew")
	case errors.As(err, &e) &&
		(strings.Contains(e.Detail, "lease not found") || strings.Contains(e.Detail, "lease expired")):
		return l, ErrLeaseGone
	case err != nil:
		return l, err
	case answer == nil || answer.LeaseID == "": // of a proxy
		return l, &Error{Class: ErrUnavailable, Op: op, Detail: "the answer has no lease"}
	}
	return l.extended(span(answer.LeaseDuration), now), nil
}

// RevokeLease ends the lease with that ID, which is in a child of the token's namespace or, where child is empty, in
// that itself. op is what errors say was tried. ErrTokenGone means that the token cannot ask any more; ErrInvalid and
// ErrNotFound, that Vault does not know the lease.
func (c *Caller) RevokeLease(ctx context.Context, op, child, id string) error {
	as, err := c.api()
	if err != nil {
		return err
	}
	err = c.verdict(ctx, c.client.fail(op, as.Sys().RevokeWithContext(ctx, id)))
	return c.hintDenied(err, child+"sys/leases/revoke")
}

// RevokeCertificate has Vault revoke a certificate that has no lease, at that path of its API. key is empty, or proves
// that the certificate is ours. op is what errors say was tried. ErrTokenGone means that the token cannot ask any more.
func (c *Caller) RevokeCertificate(ctx context.Context, op, path, certificate, key string) error {
	as, err := c.api()
	if err != nil {
		return err
	}
	body := map[string]any{"certificate": certificate}
	if key != "" {
		body["private_key"] = key
	}
	_, err = as.Logical().WriteWithContext(ctx, path, body)
	return c.hintDenied(c.verdict(ctx, c.client.fail(op, err)), path)
}

// Capabilities asks what the token may do at each of the paths. op is what errors say was tried. It repeats a denial of
// a token that is new.
func (c *Caller) Capabilities(ctx context.Context, op string, paths ...string) (can map[string][]string, err error) {
	as, err := c.api()
	if err != nil {
		return nil, err
	}
	var answer *api.Secret
	err = c.whileUncertain(ctx, func() (err error) {
		answer, err = as.Logical().WriteWithContext(ctx, "sys/capabilities-self", map[string]any{"paths": paths})
		return c.client.fail(op, err)
	})
	if err != nil {
		return nil, err
	}
	if answer == nil {
		return nil, &Error{Class: ErrInvalid, Op: op, Detail: "the answer is empty"}
	}
	can = map[string][]string{}
	for _, path := range paths {
		granted, _ := answer.Data[path].([]any)
		for _, one := range granted {
			can[path] = append(can[path], fmt.Sprint(one))
		}
	}
	return can, nil
}

// hintDenied adds to a denial what a policy must have so that it does not happen again, a right to update at path.
func (c *Caller) hintDenied(err error, path string) error {
	return HintDenied(err, grant(c.Role, c.Policies, path, `"update"`))
}
