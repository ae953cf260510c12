package session

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// spent is a lease, a certificate or a token to revoke, not before the process that used it has had time to change
// over.
type spent struct {
	ID          string       `json:"id,omitempty"`          // of the lease
	Child       string       `json:"child,omitempty"`       // its namespace below the token's
	Certificate *certificate `json:"certificate,omitempty"` // or the certificate, whose serial number the ID is
	Token       *token       `json:"token,omitempty"`       // or the token
	After       time.Time    `json:"after"`                 // zero: when the session is closed
	Ends        time.Time    `json:"ends,omitzero"`         // by itself; zero: that is not known
}

// certificate is what Vault wants to see before it revokes a certificate that has no lease.
type certificate struct {
	Path string `json:"path"` // of Vault's API
	PEM  string `json:"pem"`
	Key  string `json:"key,omitempty"` // which proves that it is ours
}

// ownLease reports a lease in the token's namespace, which ends with the token at the latest. One in a child namespace
// does not on OpenBao, which looks for it in the token's namespace (vault/expiration.go, RevokeByToken).
func (sp spent) ownLease() bool { return sp.Token == nil && sp.Certificate == nil && sp.Child == "" }

// spend notes for revocation what was issued for an item. When grace is negative that is left to end, but a lease that
// no token takes with it is revoked when the session is closed. Call with mu held.
func (s *Session) spend(it *item, now time.Time, grace time.Duration) {
	sp, ok := it.revocation()
	known := slices.ContainsFunc(s.spent, func(other spent) bool { return other.ID == sp.ID })
	switch {
	case !ok, known, s.revocationDenied && sp.ownLease():
		return
	case grace >= 0:
		sp.After = now.Add(grace)
	case sp.Child == "" && sp.Token == nil:
		return
	}
	if sp.Ends = it.lease.Ends; sp.Token != nil {
		sp.Token.Lease = it.lease
		s.attach(sp.Token)
	}
	s.spent = append(s.spent, sp)
}

// forgetEnded drops what has ended by itself, long enough ago for any clock: without it the old tokens of a task that
// is never told of new ones would be kept for ever. Call with mu held.
func (s *Session) forgetEnded(now time.Time) {
	s.spent = slices.DeleteFunc(s.spent, func(sp spent) bool {
		ends := sp.Ends
		if sp.Token != nil {
			ends = sp.Token.Lease.Ends
		}
		return !ends.IsZero() && now.After(ends.Add(time.Minute))
	})
}

// spentAt is when the next of what was spent is to be revoked, zero: nothing is. Call with mu held.
func (s *Session) spentAt() (at time.Time) {
	for _, sp := range s.spent {
		at = sched.Earlier(at, sp.After)
	}
	return at
}

// retire queues superseded tokens for revocation, after grace. Every secret has been read anew with the current token,
// so the leases of the old ones may end with them. A negative grace keeps them until the session is closed. None is
// revoked while the last known good of a lease that could not be replaced yet is in use. Call with mu held.
func (s *Session) retire(now time.Time, grace time.Duration) {
	s.forgetEnded(now)
	for _, it := range s.items {
		if it.gone && it.used == it.secret {
			return
		}
	}
	s.retired = slices.DeleteFunc(s.retired, func(t *token) bool {
		if t.N >= s.used {
			return false
		}
		sp := spent{Token: t}
		if grace >= 0 {
			sp.After = now.Add(grace)
		}
		s.spent = append(s.spent, sp)
		return true
	})
}

// revokeSpent revokes what has been spent for long enough. What Vault cannot do now is tried again; leases are left to
// end where the policies do not grant sys/leases/revoke, as Vault's default policy does not.
func (s *Session) revokeSpent(ctx context.Context) {
	for {
		sp, t, any := s.firstSpent(time.Now())
		if !any {
			return
		}
		err := s.end(s.attempt(ctx, &s.revoking, time.Time{}), t, sp)
		if ctx.Err() != nil {
			return // Close does it
		}
		s.revoked(sp, err)
	}
}

// firstSpent returns what has been spent for long enough, if anything, and the token in use.
func (s *Session) firstSpent(now time.Time) (sp spent, t *token, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.spent, func(sp spent) bool { return !sp.After.IsZero() && !sp.After.After(now) })
	if i < 0 {
		return sp, nil, false
	}
	return s.spent[i], s.token, true
}

// end revokes what was spent, as t where it is no token.
func (s *Session) end(ctx context.Context, t *token, sp spent) error {
	switch {
	case sp.Token != nil:
		return s.revoke(ctx, sp.Token)
	case sp.Certificate != nil:
		return s.revokeCertificate(ctx, t, sp.Certificate)
	default:
		return s.revokeLease(ctx, t, sp)
	}
}

// revoked takes note of the outcome.
func (s *Session) revoked(sp spent, err error) {
	s.cluster.logger.Debug("revoke what is not used any more", "id", sp.ID, "error", err)
	gone := errors.Is(err, vault.ErrTokenGone)
	if !sp.ownLease() && sp.Token == nil && err != nil && !gone && !vault.Unreachable(err) {
		s.reportOnce(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if gone { // and nobody has noticed: the next one asks again
		s.unverified, s.upkeep.at = true, time.Now()
	}
	switch {
	case gone, vault.Unreachable(err):
		for i := range s.spent {
			if !s.spent[i].After.IsZero() {
				s.spent[i].After = sched.Later(s.spent[i].After, time.Now().Add(time.Minute))
			}
		}
	case sp.ownLease() && errors.Is(err, vault.ErrDenied):
		s.revocationDenied = true
		s.spent = slices.DeleteFunc(s.spent, spent.ownLease)
	default:
		s.forget(sp)
	}
}

// forget is for what has been revoked, or never will be. Call with mu held.
func (s *Session) forget(sp spent) {
	s.spent = slices.DeleteFunc(s.spent, func(one spent) bool { return one.ID == sp.ID && one.Token == sp.Token })
}

// endAll revokes what was issued, for the last time, and returns the first error. Where Vault cannot be asked the rest
// is left for another time.
func (s *Session) endAll(ctx context.Context, issued []spent) (first error) {
	for _, sp := range issued {
		err := s.end(ctx, s.current(), sp)
		if errors.Is(err, vault.ErrTokenGone) {
			err = &vault.Error{Class: vault.ErrDenied, Op: sp.op(), Detail: "the token that could is gone"}
		}
		if first = cmp.Or(first, err); vault.Unreachable(err) {
			break
		}
		s.locked(func() { s.forget(sp) })
	}
	return first
}

// op is what errors say was tried.
func (sp spent) op() string {
	if sp.Certificate != nil {
		return "revoke certificate with " + sp.Certificate.Path
	}
	return "revoke lease of " + sp.Child + path.Dir(sp.ID)
}

// revokeLease ends one lease. ErrDenied means that the policies do not grant it; a lease that Vault does not know has
// ended already. The error is vault.ErrTokenGone where t cannot ask any more and the lease lives on.
func (s *Session) revokeLease(ctx context.Context, t *token, sp spent) error {
	err := t.caller.RevokeLease(ctx, sp.op(), sp.Child, sp.ID)
	switch {
	// the lease ended with it, or ends at the latest when its own token does
	case errors.Is(err, vault.ErrTokenGone) && sp.ownLease():
		return nil
	case errors.Is(err, vault.ErrInvalid), errors.Is(err, vault.ErrNotFound):
		return nil
	case err == nil:
		s.clearReport(sp.op())
	}
	return err
}

// revokeCertificate revokes one that has no lease and would outlive its token. The error is vault.ErrTokenGone where t
// cannot ask any more.
func (s *Session) revokeCertificate(ctx context.Context, t *token, c *certificate) error {
	op := spent{Certificate: c}.op()
	err := t.caller.RevokeCertificate(ctx, op, c.Path, c.PEM, c.Key)
	if err == nil {
		s.clearReport(op)
	}
	return err
}
