package vault

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// LoginOp is what errors say a login is, with a role that may be empty.
func (c *Client) LoginOp(role string) string {
	op := fmt.Sprintf("log in to vault %q", c.cluster.Name)
	if role != "" {
		op += fmt.Sprintf(" with role %q", role)
	}
	return op
}

// Login exchanges a JWT for a token. An empty role is the auth method's default role. It asks once, in a request that
// outlives ctx for a moment (detachForCreate). ErrNotYet means that Vault may accept another JWT, or this one later.
func (c *Client) Login(ctx context.Context, role, namespace, jwt string) (Auth, error) {
	creating, done := c.detachForCreate(ctx)
	defer done()
	op := c.LoginOp(role)
	body := map[string]any{"jwt": jwt}
	if role != "" {
		body["role"] = role
	}
	as, err := c.as("", namespace)
	if err != nil {
		return Auth{}, err
	}
	now := time.Now()
	answer, uses, err := logIn(creating, as, "auth/"+c.cluster.AuthPath+"/login", body)
	if err != nil {
		return Auth{}, c.explainLogin(c.fail(op, err), role)
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return Auth{}, &Error{Class: ErrInvalid, Op: op, Detail: "the answer has no token",
			Hint: fmt.Sprintf("is auth/%s a JWT auth method?", c.cluster.AuthPath)}
	}
	auth := newAuth(answer.Auth, now, c.Jitter())
	if uses > 0 {
		c.logger.Debug("revoke a token that cannot be renewed", "error", c.As(auth, role, namespace).RevokeSelf(creating))
		return Auth{}, &Error{Class: errRefused, Op: op,
			Detail: fmt.Sprintf("its tokens can be used %d times, and end then", uses),
			Hint:   fmt.Sprintf("set token_num_uses of the role in auth/%s to 0", c.cluster.AuthPath)}
	}
	c.logger.Debug("logged in", "role", role, "accessor", auth.Accessor, "policies", auth.Policies,
		"ttl", auth.Lease.TTL.String())
	return auth, nil
}

// logIn makes the request, and returns the answer with how often its token can be used, zero: always. The Vault API's
// own type does not have that.
func logIn(ctx context.Context, as *api.Client, path string, body map[string]any) (*api.Secret, int, error) {
	var more struct {
		Auth struct {
			NumUses int `json:"num_uses"`
		} `json:"auth"`
	}
	look := func(answer *api.Response) {
		data, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		_ = json.Unmarshal(data, &more) // the library tells what is wrong with it
		answer.Body = io.NopCloser(io.MultiReader(bytes.NewReader(data), failing{err}))
	}
	secret, err := as.WithResponseCallbacks(look).Logical().WriteWithContext(ctx, path, body)
	return secret, more.Auth.NumUses, err
}

// failing is what follows what was read of an answer: its end, or why there is no more.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, cmp.Or(f.err, io.EOF) }

// refusals are what Vault 1.21 says when it refuses a login, what that means, and what to do about it: MOUNT, ROLE and
// CLUSTER stand for what was tried. The first that fits counts. What passes by itself, a JWT about to be replaced or a
// Nomad whose keys Vault cannot fetch at the moment, is ErrNotYet.
var refusals = []struct {
	says  string
	class error
	hint  string
}{
	{"fetching keys", ErrNotYet, "Vault must reach Nomad's keys: check jwks_url in MOUNT/config"},
	{"no known key", ErrNotYet, "it is not signed with a key that Vault knows: check jwks_url in MOUNT/config"},
	{"failed to verify id token signature", ErrNotYet,
		"it is not signed with a key that Vault knows: check jwks_url in MOUNT/config"},
	{"token is expired", ErrNotYet, "waiting for Nomad to renew the identity; compare the clocks of Nomad and Vault"},
	{"not yet valid", ErrNotYet, "compare the clocks of Nomad and Vault"},
	{"issued in the future", ErrNotYet, "compare the clocks of Nomad and Vault"},
	{"audience", ErrDenied, "make aud of the task's identity block one of bound_audiences of ROLE"},
	{"(iss) claim", ErrDenied, "correct bound_issuer in MOUNT/config"},
	{"(sub) claim", ErrDenied, "ROLE of MOUNT does not admit this job: see its bound_subject"},
	{"not found in token", ErrDenied, "correct user_claim and claim_mappings of ROLE of MOUNT"},
	{"claim ", ErrDenied, "ROLE of MOUNT does not admit this job: see its bound_claims"},
	{"missing role", ErrNotFound, "set role in the task's vault block, or create_from_role in CLUSTER"},
	{"could not be found", ErrNotFound, "correct role in the task's vault block, or create ROLE of MOUNT"},
	{"could not load configuration", ErrInvalid, "configure it: vault write MOUNT/config jwks_url=..."},
	{"alias name", ErrInvalid, "is MOUNT a JWT auth method? correct jwt_auth_backend_path in CLUSTER"},
	{"permission denied", ErrDenied, "there is no JWT auth method at MOUNT (correct jwt_auth_backend_path in CLUSTER), " +
		"or token_bound_cidrs of ROLE keep this node out"},
}

// explainLogin adds to a refused login what to do.
func (c *Client) explainLogin(err error, role string) error {
	var e *Error
	if !errors.As(err, &e) || e.status == 0 {
		return err
	}
	named := fmt.Sprintf("role %q", role)
	if role == "" {
		named = "the default role"
	}
	names := strings.NewReplacer("MOUNT", "auth/"+c.cluster.AuthPath, "ROLE", named, "CLUSTER", c.cluster.Block())
	for _, r := range refusals {
		if strings.Contains(e.Detail, r.says) {
			e.Class, e.Hint = r.class, names.Replace(r.hint)
			break
		}
	}
	return err
}
