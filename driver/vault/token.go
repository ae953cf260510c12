package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// jwtPatience is how long a step waits for a usable identity before it leaves the worker to other sessions.
const jwtPatience = time.Second

// Login is who asks for a session, and as what.
type Login struct {
	Role      string // empty: the cluster's, or else the auth method's default role
	Namespace string // empty: the cluster's
	// JWT returns the task's current workload identity; it may wait for one until ctx ends.
	JWT func(ctx context.Context) (string, error)
	// Given, where it is not nil, returns the token that somebody else has made for the task and renews. It is used in place of a login as it
	// is, followed when it is replaced, and neither renewed nor revoked.
	Given func() (string, error)

	// Where the cluster makes tokens by a token role: the policies that the task's token is to have, and what is told of it in Vault.
	Policies    []string
	DisplayName string
	Metadata    map[string]string
}

// token is one Vault token of a session. It does not change.
type token struct {
	N        int      `json:"n"` // the session's first, second ... token
	Value    string   `json:"value"`
	Accessor string   `json:"accessor"`
	Policies []string `json:"policies"`
	Lease    Lease    `json:"lease"` // as granted; of a token that was replaced, as it was then
	Given    bool     `json:"given,omitempty"`
}

// String keeps the value out of logs and error messages.
func (t token) String() string { return fmt.Sprintf("[token %d %s]", t.N, t.Accessor) }

// GoString is String, for %#v.
func (t token) GoString() string { return t.String() }

// stays reports a token that is not revoked here, and so takes no lease with it: a batch token, which cannot be
// (https://developer.hashicorp.com/vault/docs/concepts/tokens#batch-tokens), or one that is somebody else's.
func (t *token) stays() bool { return t.Accessor == "" || t.Given }

// followEvery is how often a token that somebody else keeps is compared with the one in use.
const followEvery = 5 * time.Second

// due is when a token with that lease next wants attention.
func (t *token) due(l Lease, now time.Time) time.Time {
	if t.Given {
		return now.Add(followEvery)
	}
	at, _ := l.due()
	return at
}

// obtain returns the session's token number n: one that the cluster makes by its token role, or the one that is given, or else a new one for the
// task's current JWT, for which it waits until patience ends. It asks once.
func (s *Session) obtain(ctx, patience context.Context, n int) (*token, error) {
	s.mu.Lock()
	login := s.login
	s.mu.Unlock()
	if login.Given != nil && s.client.issuer == nil {
		return s.look(ctx, login.Given, n)
	}
	making, done := s.client.making(ctx)
	defer done()
	if issuer := s.client.issuer; issuer != nil {
		return issuer.issue(making, patience, login, n)
	}
	jwt, err := login.JWT(patience)
	if err != nil {
		return nil, err
	}
	return s.logIn(making, jwt, n)
}

// look returns the token that somebody else keeps for the task. One that Vault does not know is about to be replaced.
func (s *Session) look(ctx context.Context, given func() (string, error), n int) (*token, error) {
	value, err := given()
	if err != nil {
		return nil, err
	}
	t := &token{N: n, Value: value, Given: true}
	known, err := s.lookUp(ctx, t)
	if errors.Is(err, ErrDenied) {
		return nil, &Error{Class: errNotYet, Op: "look up the task's token", Detail: "Vault does not know it",
			Hint: fmt.Sprintf("waiting for another one; is %s the Vault that it is from?", s.client.cluster.Address)}
	}
	if err != nil {
		return nil, hush(err)
	}
	t.Accessor, _ = known.TokenAccessor()
	t.Policies, _ = known.TokenPolicies()
	t.Lease = s.remaining(known, time.Now())
	return t, nil
}

// remaining is what a look at a token says of its life.
func (s *Session) remaining(known *api.Secret, now time.Time) Lease {
	ttl, _ := known.TokenTTL()
	return newLease("", ttl, false, now, s.client.jitter())
}

// loginOp is what errors say a login is.
func (s *Session) loginOp() string {
	op := fmt.Sprintf("log in to vault %q", s.client.cluster.Name)
	if s.role != "" {
		op += fmt.Sprintf(" with role %q", s.role)
	}
	return op
}

// logIn exchanges a JWT for the session's token number n, once, without patience.
func (s *Session) logIn(ctx context.Context, jwt string, n int) (*token, error) {
	c := s.client
	op := s.loginOp()
	body := map[string]any{"jwt": jwt}
	if s.role != "" {
		body["role"] = s.role
	}
	as, err := c.as("", s.namespace)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	answer, err := as.Logical().WriteWithContext(ctx, "auth/"+c.cluster.AuthPath+"/login", body)
	if err != nil {
		return nil, s.explainLogin(c.fail(op, err))
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return nil, &Error{Class: ErrInvalid, Op: op, Detail: "the answer has no token",
			Hint: fmt.Sprintf("is auth/%s a JWT auth method?", c.cluster.AuthPath)}
	}
	t := newToken(n, answer.Auth, now, c.jitter())
	c.logger.Debug("logged in", "role", s.role, "accessor", t.Accessor, "policies", t.Policies, "ttl", t.Lease.TTL)
	return t, nil
}

func newToken(n int, a *api.SecretAuth, now time.Time, jitter float64) *token {
	return &token{N: n, Value: a.ClientToken, Accessor: a.Accessor, Policies: a.Policies,
		Lease: newLease("", span(a.LeaseDuration), a.Renewable, now, jitter)}
}

// refusals are what Vault 1.21 says when it refuses a login, what that means, and what to do about it: MOUNT, ROLE and
// CLUSTER stand for what was tried. The first that fits counts. What passes by itself, a JWT about to be replaced or a Nomad
// whose keys Vault cannot fetch at the moment, is errNotYet.
var refusals = []struct {
	says  string
	class error
	hint  string
}{
	{"fetching keys", errNotYet, "Vault must reach Nomad's keys: check jwks_url in MOUNT/config"},
	{"no known key", errNotYet, "it is not signed with a key that Vault knows: check jwks_url in MOUNT/config"},
	{"failed to verify id token signature", errNotYet, "it is not signed with a key that Vault knows: check jwks_url in MOUNT/config"},
	{"token is expired", errNotYet, "waiting for Nomad to renew the identity; compare the clocks of Nomad and Vault"},
	{"not yet valid", errNotYet, "compare the clocks of Nomad and Vault"},
	{"issued in the future", errNotYet, "compare the clocks of Nomad and Vault"},
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
func (s *Session) explainLogin(err error) error {
	var e *Error
	if !errors.As(err, &e) || e.status == 0 {
		return err
	}
	role := fmt.Sprintf("role %q", s.role)
	if s.role == "" {
		role = "the default role"
	}
	names := strings.NewReplacer("MOUNT", "auth/"+s.client.cluster.AuthPath, "ROLE", role, "CLUSTER", s.client.block())
	for _, r := range refusals {
		if strings.Contains(e.Detail, r.says) {
			e.Class, e.Hint = r.class, names.Replace(r.hint)
			break
		}
	}
	return err
}

// refusal is a login that did not succeed. For a moment it answers all that want one: the eight secrets that miss the same
// token.
type refusal struct {
	err   error
	until time.Time
}

// relogin replaces a token that failed, unless somebody has done so already, and makes due what was read with it: those
// leases end with their token.
func (s *Session) relogin(ctx context.Context, failed *token) (*token, error) {
	if err := s.logins.take(ctx); err != nil {
		return failed, fmt.Errorf("wait for another login: %w", err)
	}
	defer s.logins.pass()
	s.mu.Lock()
	current, closed, refused := s.token, s.closed, s.refused
	s.mu.Unlock()
	switch {
	case closed:
		return failed, ErrClosed
	case current != failed:
		return current, nil
	case time.Now().Before(refused.until):
		return failed, refused.err
	}
	t, err := s.logInBriefly(ctx, failed.N+1)
	s.count(err)
	if err != nil || t.Value == failed.Value {
		return failed, err
	}
	s.replaceToken(t)
	return t, nil
}

// count takes note of how a login went, and for how long its error answers the next ones. Where answers get lost each login leaves a token
// behind: the first few cost no time, like the leases that a budget allows, and each further one twice that of the one before, up to the life of
// a token.
func (s *Session) count(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := time.Second
	switch {
	case err == nil:
		s.missing = 0
		return
	case lost(err):
		if s.missing++; s.missing >= mintsPerLife {
			pause = max(pause, min(time.Minute<<min(s.missing-mintsPerLife, 20), s.token.Lease.TTL))
		}
	}
	s.refused = refusal{err, time.Now().Add(pause)}
}

// logInBriefly does not wait for an identity for long. After a login whose answer got lost it makes sure first that Vault answers at all.
func (s *Session) logInBriefly(ctx context.Context, n int) (*token, error) {
	s.mu.Lock()
	missing := s.missing > 0
	s.mu.Unlock()
	if missing {
		if err := s.client.answers(ctx); unasked(err) {
			return nil, hush(err)
		}
	}
	brief, cancel := context.WithTimeout(ctx, jwtPatience)
	defer cancel()
	return s.obtain(ctx, brief, n)
}

// replaceToken makes t the session's token.
func (s *Session) replaceToken(t *token) {
	s.mu.Lock()
	if !s.token.stays() {
		old := *s.token
		old.Lease = s.lease
		s.retired = append(s.retired, &old)
	}
	now := time.Now()
	s.gather(now, nil)
	s.loseLeases(now)
	s.token, s.lease, s.doubted, s.leaves = t, t.Lease, false, false
	for op, p := range s.told { // of logins: the notice that follows says that they work
		if p.class == errForeign || op == s.loginOp() {
			delete(s.told, op)
		}
	}
	s.upkeep.well(t.due(t.Lease, now))
	s.mu.Unlock()
	s.wake()
	s.tell(Replaced, fmt.Sprintf("logged in again, the token before had ended or could not be renewed (accessor %s)", t.Accessor))
}

// loseLeases makes due what was read with the token, whose leases end with it. Where that was to be expected it costs no
// budget: the leases of a short-lived token are short-lived, too, whatever their TTL. Call with mu held.
func (s *Session) loseLeases(now time.Time) {
	expected := s.lease.late(now) || !s.lease.Ends.IsZero() && !now.Before(s.lease.replaceAt())
	for _, it := range s.items {
		if it.secret.Kind != Leased {
			continue
		}
		if expected {
			it.minted = nil
		}
		it.hold(it.secret, it.lease, now) // a token that could not be renewed lives to its end, and its leases as long
		it.gone = true
		it.plan(now)
		it.gather = !it.at.IsZero()
	}
}

// renewToken extends t by its own right and returns its new lease.
func (s *Session) renewToken(ctx context.Context, t *token, l Lease) (Lease, error) {
	as, err := s.client.as(t.Value, s.namespace)
	if err != nil {
		return l, err
	}
	now := time.Now()
	answer, err := as.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil {
		return l, hinted(s.client.fail("renew token", err), grant(t, s.role, "auth/token/renew-self", `"update"`))
	}
	if answer == nil || answer.Auth == nil {
		return l, s.client.notVault("renew token")
	}
	return l.extended(span(answer.Auth.LeaseDuration), now), nil
}

// errTokenGone is the verdict on a token that was revoked or has ended.
var errTokenGone = errors.New("token is gone")

// verdict tells what a denial means: errTokenGone, or the denial itself when the token lives and its policies are at fault.
// Vault says so since 1.15; an older one denies even what its default policy grants. Another error means that Vault could
// not be asked.
func (s *Session) verdict(ctx context.Context, t *token, denial error) error {
	if unknown(denial) {
		return errTokenGone
	}
	_, err := s.lookUp(ctx, t)
	switch {
	case err == nil:
		return denial
	case !errors.Is(err, ErrDenied):
		return err
	case unknown(err), slices.Contains(t.Policies, "default"):
		return errTokenGone
	default:
		return denial
	}
}

func unknown(denial error) bool {
	var e *Error
	return errors.As(denial, &e) && strings.Contains(e.Detail, "invalid token")
}

// lookUp asks Vault what it knows of t; ErrDenied means nothing.
func (s *Session) lookUp(ctx context.Context, t *token) (*api.Secret, error) {
	as, err := s.client.as(t.Value, s.namespace)
	if err != nil {
		return nil, err
	}
	return s.client.lookUpSelf(ctx, as, "look up token")
}

// lookUpSelf asks Vault what it knows of the token of as. An answer without an accessor, which even a batch token has an empty one of, is none of
// Vault's: as one that tells no TTL it would stand for a token without an end.
func (c *Client) lookUpSelf(ctx context.Context, as *api.Client, op string) (*api.Secret, error) {
	known, err := as.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return nil, c.fail(op, err)
	}
	if known != nil {
		if _, has := known.Data["accessor"]; has {
			return known, nil
		}
	}
	return nil, c.notVault(op)
}

// notVault is for an answer that Vault does not give.
func (c *Client) notVault(op string) error {
	return &Error{Class: ErrUnavailable, Op: op, Detail: "the answer tells of no token",
		Hint: fmt.Sprintf("is it Vault that answers at %s, or something before it?", c.cluster.Address)}
}

// answers is nil where Vault answers to the token in use.
func (s *Session) answers(ctx context.Context) error {
	_, err := s.lookUp(ctx, s.current())
	return err
}

// revoke ends t and every lease that was read with it. A token that Vault no longer knows is revoked already; a batch
// token cannot be revoked and ends by itself. What the policies of t deny may be granted to the cluster's own token.
func (s *Session) revoke(ctx context.Context, t *token) error {
	if t.stays() {
		return nil
	}
	as, err := s.client.as(t.Value, s.namespace)
	if err != nil {
		return err
	}
	err = t.whileFresh(ctx, func() error {
		return s.client.fail("revoke token", as.Auth().Token().RevokeSelfWithContext(ctx, ""))
	})
	if errors.Is(err, ErrDenied) {
		err = s.verdict(ctx, t, err)
	}
	if errors.Is(err, errTokenGone) {
		return nil
	}
	if issuer := s.client.issuer; issuer != nil && errors.Is(err, ErrDenied) {
		return issuer.revoke(ctx, t.Accessor)
	}
	return hinted(err, grant(t, s.role, "auth/token/revoke-self", `"update"`))
}

// hinted adds what to do to a denial.
func hinted(err error, hint string) error {
	var e *Error
	if errors.As(err, &e) && e.Class == ErrDenied {
		e.Hint = hint
	}
	return err
}

// grant says what a policy must have so that a denial does not happen again.
func grant(t *token, role, path, capabilities string) string {
	owner := "the token has"
	if role != "" {
		owner = fmt.Sprintf("role %q grants", role)
	}
	return fmt.Sprintf("%s the policies [%s]; what is missing in one of them is: path %q { capabilities = [%s] }",
		owner, strings.Join(t.Policies, " "), path, capabilities)
}
