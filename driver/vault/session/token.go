package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nomad-driver-vault/driver/vault"
)

// jwtPatience is how long upkeep waits for a usable identity before it tries again later.
const jwtPatience = time.Second

// token is one Vault token of a session. It does not change.
type token struct {
	N int `json:"n"` // the session's first, second ... token
	vault.Auth

	caller *vault.Caller // asks Vault with the token
}

func (s *Session) newToken(n int, a vault.Auth) *token {
	t := &token{N: n, Auth: a}
	s.attach(t)
	return t
}

// attach prepares a token, which may be from a saved state, for being asked with.
func (s *Session) attach(t *token) { t.caller = s.cluster.client.As(t.Auth, s.role, s.namespace) }

// String keeps the value out of logs and error messages.
func (t token) String() string { return fmt.Sprintf("[token %d %s]", t.N, t.Accessor) }

// GoString is String, for %#v.
func (t token) GoString() string { return t.String() }

// compareEvery is how often an external token is compared with the one in use.
const compareEvery = 5 * time.Second

// due is when a token with that lease next wants attention.
func (t *token) due(l vault.Lease, now time.Time) time.Time {
	if t.External {
		return now.Add(compareEvery)
	}
	at, _ := l.Due()
	return at
}

func (s *Session) firstToken(ctx context.Context) error {
	tell := func(why error) { s.notifyWaiting(why, s.source.WaitsFor()) }
	return retryCreate(ctx, tell, s.cluster.client.Answers, func(error) bool { return true },
		func(ctx context.Context) (err error) {
			s.token, err = s.obtain(ctx, ctx, 1)
			return err
		})
}

// obtain returns the session's token number n. It asks Vault once, and waits until patience ends for what it needs of
// the task.
func (s *Session) obtain(ctx, patience context.Context, n int) (*token, error) {
	var source TokenSource
	s.locked(func() { source = s.source })
	auth, err := source.Obtain(ctx, patience)
	if err != nil {
		return nil, err
	}
	return s.newToken(n, auth), nil
}

// refusal is a login that did not succeed. For a moment it answers all that want one: the eight secrets that miss the
// same token.
type refusal struct {
	err   error
	until time.Time
}

// relogin replaces a token that failed, unless somebody has done so already, and makes due what was read with it: those
// leases end with their token.
func (s *Session) relogin(ctx context.Context, failed *token) (*token, error) {
	if err := s.logins.lock(ctx); err != nil {
		return failed, fmt.Errorf("wait for another login: %w", err)
	}
	defer s.logins.unlock()
	s.mu.Lock()
	current, closed, refused := s.token, s.closed, s.lastRefusal
	s.mu.Unlock()
	switch {
	case closed:
		return failed, ErrClosed
	case current != failed:
		return current, nil
	case time.Now().Before(refused.until):
		return failed, refused.err
	}
	t, err := s.obtainBriefly(ctx, failed.N+1)
	s.recordLogin(err)
	if err != nil || t.Value == failed.Value {
		return failed, err
	}
	s.replaceToken(t)
	return t, nil
}

// recordLogin stores how a login went, and for how long its error answers the next ones. Where answers get lost each
// login leaves a token behind: the first few cost no time, like the leases that a budget allows, and each further one
// twice that of the one before, up to the life of a token.
func (s *Session) recordLogin(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := time.Second
	switch {
	case err == nil:
		s.lostLogins = 0
		return
	case vault.AnswerLost(err):
		if s.lostLogins++; s.lostLogins >= mintsPerLife {
			pause = max(pause, min(time.Minute<<min(s.lostLogins-mintsPerLife, 20), s.token.Lease.TTL))
		}
	}
	s.lastRefusal = refusal{err, time.Now().Add(pause)}
}

// obtainBriefly does not wait for an identity for long. After a login whose answer got lost it makes sure first that
// Vault answers at all.
func (s *Session) obtainBriefly(ctx context.Context, n int) (*token, error) {
	var missing bool
	s.locked(func() { missing = s.lostLogins > 0 })
	if missing {
		if err := s.cluster.client.Answers(ctx); vault.Unreachable(err) {
			return nil, vault.MarkNothingIssued(err)
		}
	}
	brief, cancel := context.WithTimeout(ctx, jwtPatience)
	defer cancel()
	return s.obtain(ctx, brief, n)
}

// replaceToken makes t the session's token.
func (s *Session) replaceToken(t *token) {
	s.locked(func() { s.useToken(t, time.Now()) })
	s.wake()
	s.tell(Replaced, fmt.Sprintf("logged in again, the token before had ended or could not be renewed (accessor %s)",
		t.Accessor))
}

// useToken retires the token before. Call with mu held.
func (s *Session) useToken(t *token, now time.Time) {
	if s.token.Revocable() {
		old := *s.token
		old.Lease = s.lease
		s.retired = append(s.retired, &old)
	}
	s.gather(now, nil)
	s.loseLeases(now)
	s.token, s.lease, s.unverified, s.revocationDenied = t, t.Lease, false, false
	failed, _ := about(s.lastRefusal.err)
	for op, p := range s.reported { // of logins: the notice that follows says that they work
		if p.class == errForeign || op == failed {
			delete(s.reported, op)
		}
	}
	s.upkeep.succeeded(t.due(t.Lease, now))
}

// loseLeases makes due what was read with the token, whose leases end with it. Where that was to be expected it costs
// no budget: the leases of a short-lived token are short-lived, too, whatever their TTL. Call with mu held.
func (s *Session) loseLeases(now time.Time) {
	expected := s.lease.Late(now) || !s.lease.Ends.IsZero() && !now.Before(s.lease.ReplaceAt())
	for _, it := range s.items {
		if !it.secret.Kind.EndsWithToken() {
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

// answers is nil where Vault answers to the token in use.
func (s *Session) answers(ctx context.Context) error {
	_, err := s.current().caller.LookUp(ctx, "look up token")
	return err
}

// revoke ends t and every lease that was read with it. What the policies of t deny the source of tokens may be able to
// do.
func (s *Session) revoke(ctx context.Context, t *token) error {
	err := t.caller.RevokeSelf(ctx)
	if !errors.Is(err, vault.ErrDenied) {
		return err
	}
	var source TokenSource
	s.locked(func() { source = s.source })
	return source.RevokeDenied(ctx, t.Auth, err)
}
