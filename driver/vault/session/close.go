package session

import (
	"cmp"
	"context"
	"slices"
	"time"

	"nomad-driver-vault/driver/vault"
)

// Close revokes the session's tokens, and with them every lease, and returns when nothing of the session runs any more.
// The error, when it is vault.ErrUnavailable, means that something may live on until its TTL; Close may be called
// again. It is nil where Vault does not answer but every token is past its TTL.
func (s *Session) Close(ctx context.Context) error {
	var wait bool
	s.locked(func() {
		if !s.closed {
			s.closed, s.closedAt = true, time.Now()
		}
		wait = time.Since(s.closedAt) < closing
	})
	s.chore.End()
	s.asks.Wait()
	leave, err := s.cluster.closing.Enter(ctx)
	if err != nil {
		return &vault.Error{Class: vault.ErrUnavailable, Op: "revoke token", Detail: "many others are before it"}
	}
	defer leave()
	tokens, issued := s.belongings()
	first := s.endAll(ctx, issued)
	for _, t := range tokens {
		if vault.Unreachable(first) && wait {
			break
		}
		first = cmp.Or(first, s.revoke(ctx, t))
	}
	if vault.Unreachable(first) && s.ended(tokens, time.Now()) {
		return nil
	}
	return first
}

// closing is how long the tokens of a session that is closed are kept where something else cannot be revoked at the
// moment, which takes a token. An engine that is out of order for longer does not keep the others' leases alive.
const closing = time.Minute

// ended reports that each of the session's tokens is past its end, and its leases with it.
func (s *Session) ended(tokens []*token, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(tokens, func(t *token) bool {
		lease := t.Lease
		if t == s.token {
			lease = s.lease
		}
		return !lease.Expired(now)
	})
}

// belongings is every token of the session, and of what was issued, all of which is spent now, what no token takes with
// it when it is revoked.
func (s *Session) belongings() (tokens []*token, issued []spent) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for it := range s.kept {
		if sp, _ := it.revocation(); !sp.ownLease() || !s.token.Revocable() {
			s.spend(it, now, 0)
		}
	}
	s.items = map[string]*item{}
	tokens = append([]*token{s.token}, s.retired...)
	for _, sp := range s.spent {
		switch {
		case sp.Token != nil:
			tokens = append(tokens, sp.Token)
		case !sp.ownLease(), !s.token.Revocable():
			issued = append(issued, sp)
		}
	}
	return tokens, issued
}
