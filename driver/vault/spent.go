package vault

import (
	"context"
	"errors"
	"slices"
	"time"
)

// spent is a lease or a token to revoke, not before the process that used it has had time to change over.
type spent struct {
	ID    string    `json:"id,omitempty"`    // of the lease
	Token *token    `json:"token,omitempty"` // or the token
	After time.Time `json:"after"`           // zero: when the session is closed
}

// spend notes a lease for revocation, or leaves it to end when grace is negative. Call with mu held.
func (s *Session) spend(id string, now time.Time, grace time.Duration) {
	if id == "" || grace < 0 || s.leaves || slices.ContainsFunc(s.spent, func(sp spent) bool { return sp.ID == id }) {
		return
	}
	s.spent = append(s.spent, spent{ID: id, After: now.Add(grace)})
}

// retire notes for revocation the tokens before the one in use: what was read with them has been read anew with this one.
// Their leases end with them, so a negative grace keeps them until the session is closed, and none is revoked while what is in use
// is the last known good of a lease that could not be replaced yet. Call with mu held.
func (s *Session) retire(now time.Time, grace time.Duration) {
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

// revokeSpent revokes what has been spent for long enough. What Vault cannot do now is tried again; leases are left to end
// where the policies do not grant sys/leases/revoke, as Vault's default policy does not.
func (s *Session) revokeSpent(ctx context.Context) {
	for {
		s.mu.Lock()
		i := slices.IndexFunc(s.spent, func(sp spent) bool { return !sp.After.IsZero() && !sp.After.After(time.Now()) })
		if i < 0 {
			s.mu.Unlock()
			return
		}
		sp, t := s.spent[i], s.token
		s.mu.Unlock()
		var err error
		if sp.Token != nil {
			err = s.revoke(ctx, sp.Token)
		} else {
			err = s.revokeLease(ctx, t, sp.ID)
		}
		if ctx.Err() != nil {
			return // Close does it
		}
		s.revoked(sp, err)
	}
}

// revoked takes note of the outcome.
func (s *Session) revoked(sp spent, err error) {
	s.client.logger.Debug("revoke what is not used any more", "lease", sp.ID, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case unasked(err):
		for i := range s.spent {
			if !s.spent[i].After.IsZero() {
				s.spent[i].After = later(s.spent[i].After, time.Now().Add(time.Minute))
			}
		}
	case sp.Token == nil && errors.Is(err, ErrDenied):
		s.leaves = true
		s.spent = slices.DeleteFunc(s.spent, func(sp spent) bool { return sp.Token == nil })
	default:
		s.spent = slices.DeleteFunc(s.spent, func(one spent) bool { return one.ID == sp.ID && one.Token == sp.Token })
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// revokeLease ends one lease. ErrDenied means that the policies do not grant it; a lease that Vault does not know has
// ended already.
func (s *Session) revokeLease(ctx context.Context, t *token, id string) error {
	as, err := s.client.as(t.Value, s.namespace)
	if err != nil {
		return err
	}
	err = s.client.fail("revoke lease "+id, as.Sys().RevokeWithContext(ctx, id))
	if errors.Is(err, ErrDenied) {
		err = s.verdict(ctx, t, err)
	}
	switch {
	case errors.Is(err, errTokenGone): // and the lease with it, or at the latest when its own token ends
		return nil
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrNotFound):
		return nil
	}
	return hinted(err, grant(t, s.role, "sys/leases/revoke", `"update"`))
}
