package vault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// What follows is for an operator's look at a Vault, not for a task.

// Answers returns nil when the cluster can be reached and answers, sealed or not.
func (c *Client) Answers(ctx context.Context) error { return c.answers(ctx) }

// At returns a client that reaches the same Vault in the same way, with the JWT auth method at another path.
func (c *Client) At(authPath string) *Client {
	cluster := c.cluster
	cluster.AuthPath = authPath
	return &Client{cluster: cluster, base: c.base, sched: c.sched, logger: c.logger, ahead: c.ahead, revoking: c.revoking, jitter: c.jitter}
}

// Probe logs in with a JWT that is well formed and signed by nobody, and returns nil when Vault refuses it for its signature:
// it then has the auth method and the role, and has got the keys that it checks signatures with. Any other outcome is the
// error that a task's login would meet, too. An empty role or namespace is the cluster's.
func (c *Client) Probe(ctx context.Context, role, namespace string) error {
	s := c.newSession(Options{Login: Login{Role: role, Namespace: namespace}})
	defer s.chore.End()
	t, err := s.logIn(ctx, unsigned(), 1)
	var e *Error
	switch {
	case err == nil:
		return errors.Join(s.revoke(ctx, t), &Error{Class: ErrInvalid, Op: "log in with a JWT that nobody signed",
			Detail: "Vault accepts it", Hint: fmt.Sprintf("auth/%s checks no signatures: make it anew", c.cluster.AuthPath)})
	case errors.As(err, &e) && (strings.Contains(e.Detail, "no known key") || strings.Contains(e.Detail, "failed to verify id token signature")):
		return nil
	}
	return err
}

// unsigned is a JWT as Nomad makes them since 1.7, but for its signature. Its key's id is a new one each time: Vault then asks
// for the keys again instead of looking at those it has.
func unsigned() string {
	part := base64.RawURLEncoding.EncodeToString
	now := time.Now().Unix()
	return part([]byte(`{"alg":"RS256","typ":"JWT","kid":"`+rand.Text()+`"}`)) + "." +
		part(fmt.Appendf(nil, `{"sub":"nomad-driver-vault check","iat":%d,"exp":%d}`, now, now+60)) + "." + part(make([]byte, 256))
}

// A Place is where Vault has what a request asks for. Without an Engine nothing is mounted there, or the token may not know.
type Place struct {
	Path   string // as Vault's API has it
	Mount  string // with a slash at its end
	Engine string // "kv", "database", ...
	V2     bool   // KV version 2
}

// Locate returns the place of a request as far as a token may know it.
func (c *Client) Locate(ctx context.Context, token, namespace string, req Request) (Place, error) {
	as, err := c.as(token, namespace)
	if err != nil {
		return Place{}, err
	}
	req.Path = clean(req.Path)
	if err := CheckPath(req.Path); err != nil {
		return Place{}, err
	}
	m, known := c.mounts.find(namespace, req.Path)
	if !known {
		if m, err = c.askMount(ctx, as, namespace, req); refused(err) {
			err = nil
		}
	}
	return Place{m.apiPath(req.Op, req.Path), m.path, m.engine, m.v2}, err
}

// Capable logs in as a task does and returns what Vault lets that token do at each path. The token is revoked at once.
func (c *Client) Capable(ctx context.Context, l Login, paths []string) (can map[string][]string, err error) {
	s := c.newSession(Options{Login: l})
	t, err := s.obtain(ctx, ctx, 1)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.revoke(context.WithoutCancel(ctx), t)) }()
	as, err := c.as(t.Value, s.namespace)
	if err != nil {
		return nil, err
	}
	can = map[string][]string{}
	for _, path := range paths {
		err := t.whileFresh(ctx, func() (err error) {
			can[path], err = as.Sys().CapabilitiesSelfWithContext(ctx, path)
			return c.fail("ask for capabilities at "+path, err)
		})
		if err != nil {
			return nil, err
		}
	}
	return can, nil
}

// Capabilities are those of which a policy must grant one for the operation.
func (o Op) Capabilities() []string {
	return map[Op][]string{Read: {"read"}, Write: {"create", "update"}, List: {"list"}}[o]
}

// Grant says what is missing in the policies of a role, for a request that is denied.
func Grant(role string, policies []string, path string, op Op) string {
	return grant(&token{Policies: policies}, role, path, `"`+strings.Join(op.Capabilities(), `", "`)+`"`)
}

// Said is what Vault or the network answered, on one line and without credentials.
func Said(err error) string {
	var answer *api.ResponseError
	if errors.As(err, &answer) {
		return message(answer)
	}
	return bare(err)
}
