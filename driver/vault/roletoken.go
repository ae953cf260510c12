package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/vault/api"
)

// What only the cluster's own token does, which makes the tokens of tasks by a token role
// (https://developer.hashicorp.com/vault/docs/concepts/tokens#token-roles).

// TokenRequest is what a token that is made by a token role shall have.
type TokenRequest struct {
	Policies    []string
	DisplayName string
	Metadata    map[string]string
}

// CreateOp is what errors say the making of a token by a token role is.
func (c *Client) CreateOp(role string) string {
	return fmt.Sprintf("make a token by token role %q of vault %q", role, c.cluster.Name)
}

// CreateToken makes a token by a token role. It asks once, in a request that outlives ctx for a moment
// (detachForCreate).
func (c *Caller) CreateToken(ctx context.Context, role string, req TokenRequest) (Auth, error) {
	as, err := c.api()
	if err != nil {
		return Auth{}, err
	}
	creating, done := c.client.detachForCreate(ctx)
	defer done()
	op, now := c.client.CreateOp(role), time.Now()
	answer, err := as.Auth().Token().CreateWithRoleWithContext(creating, &api.TokenCreateRequest{Policies: req.Policies,
		DisplayName: req.DisplayName, Metadata: req.Metadata}, role)
	if err != nil {
		return Auth{}, c.client.fail(op, err)
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return Auth{}, &Error{Class: ErrInvalid, Op: op, Detail: "the answer has no token"}
	}
	auth := newAuth(answer.Auth, now, c.client.Jitter())
	c.client.logger.Debug("made a token", "role", role, "accessor", auth.Accessor, "policies", auth.Policies,
		"ttl", auth.Lease.TTL.String())
	return auth, nil
}

// A TokenRole is what is known of a token role of Vault.
type TokenRole struct {
	Period      time.Duration // zero: its tokens end with their TTL
	ExplicitMax time.Duration // zero: no bound
	Renewable   bool
	Counted     bool // its tokens can be used so many times only
	Orphan      bool // its tokens outlive the token that makes them
}

// ReadTokenRole returns a token role, nil where there is none of that name. op is what errors say was tried.
func (c *Caller) ReadTokenRole(ctx context.Context, op, name string) (*TokenRole, error) {
	as, err := c.api()
	if err != nil {
		return nil, err
	}
	role, err := as.Logical().ReadWithContext(ctx, "auth/token/roles/"+name)
	if err != nil || role == nil {
		return nil, c.client.fail(op, err)
	}
	seconds := func(field string) time.Duration {
		number, _ := role.Data[field].(json.Number)
		n, _ := number.Int64()
		return span(int(n))
	}
	return &TokenRole{Period: seconds("token_period") + seconds("period"),
		ExplicitMax: seconds("token_explicit_max_ttl") + seconds("explicit_max_ttl"),
		Counted:     number(role.Data["token_num_uses"]) > 0,
		Renewable:   role.Data["renewable"] != false, Orphan: role.Data["orphan"] != false}, nil
}

// RevokeAccessor ends the token with that accessor. ErrInvalid and ErrNotFound mean that Vault does not know it.
func (c *Caller) RevokeAccessor(ctx context.Context, accessor string) error {
	as, err := c.api()
	if err != nil {
		return err
	}
	return c.client.fail("revoke token by accessor", as.Auth().Token().RevokeAccessorWithContext(ctx, accessor))
}
