package session

import (
	"context"
	"errors"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// keepToken renews the token, or replaces it when it cannot be renewed any more.
func (s *Session) keepToken(ctx context.Context) {
	var t *token
	var lease vault.Lease
	var unverified bool
	s.locked(func() { t, lease, unverified = s.token, s.lease, s.unverified })
	err := vault.ErrTokenGone
	if unverified || lease.Renewable || t.External {
		err = s.checkToken(s.attempt(ctx, &s.upkeep, lease.Ends), t, lease)
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, vault.ErrTokenGone), lease.Late(time.Now()) && !t.External:
		_, err = s.relogin(s.attempt(ctx, &s.upkeep, time.Time{}), t)
	}
	if err != nil {
		s.retryLater(ctx, &s.upkeep, err, lease)
	}
}

// checkToken renews the token, or asks whether it lives where it cannot be renewed. An error is vault.ErrTokenGone, or
// means that Vault could not be asked; a refusal is none: the token lives until its end.
func (s *Session) checkToken(ctx context.Context, t *token, l vault.Lease) (err error) {
	switch {
	case t.External:
		l, err = s.compareExternal(ctx, t, l)
	case l.Renewable:
		l, err = t.caller.Renew(ctx, "renew token", l)
	default:
		_, err = t.caller.LookUp(ctx, "look up token")
	}
	if errors.Is(err, vault.ErrDenied) {
		err = t.caller.Verdict(ctx, err)
	}
	switch {
	case err == nil:
		s.clearReport("renew token")
	case vault.Unreachable(err), errors.Is(err, vault.ErrTokenGone), ctx.Err() != nil:
		return err
	default:
		l = l.Unrenewable()
		s.reportOnce(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == t { // a reading may have replaced it meanwhile
		s.lease, s.unverified = l, false
		s.upkeep.succeeded(t.due(l, time.Now()))
	}
	return nil
}

// compareExternal returns vault.ErrTokenGone when the owner of an external token has replaced it. Now and then it asks
// Vault how long the token still lives, and returns its lease.
func (s *Session) compareExternal(ctx context.Context, t *token, l vault.Lease) (vault.Lease, error) {
	var source TokenSource
	var unverified bool
	s.locked(func() { source, unverified = s.source, s.unverified })
	if source.Superseded(t.Auth) {
		return l, vault.ErrTokenGone
	}
	now := time.Now()
	if !unverified && (l.Ends.IsZero() || now.Before(l.RenewAt())) {
		return l, nil
	}
	known, err := t.caller.LookUp(ctx, "look up token")
	if err != nil {
		return l, err
	}
	return remaining(s.cluster.client, known, now), nil
}

// keepItem renews or reads anew what is due.
func (s *Session) keepItem(ctx context.Context, it *item) {
	select {
	case it.asking <- struct{}{}:
		defer it.asking.unlock()
	default: // a reading asks, and may have to wait for long
		s.postpone(it, time.Second)
		return
	}
	var due, renew bool
	s.locked(func() { // a reading may have been there before
		due, renew = !it.at.IsZero() && !it.at.After(time.Now()), it.renew
	})
	if due && !(renew && s.renewItem(ctx, it)) {
		s.reissue(ctx, it)
	}
}

func (s *Session) postpone(it *item, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it.at = time.Now().Add(wait)
}

// renewItem extends a lease and reports whether that is all to be done for it now. It is not where Vault cannot say and
// the end is near: then another one has to be issued.
func (s *Session) renewItem(ctx context.Context, it *item) (done bool) {
	var t *token
	var before item
	s.locked(func() { t, before = s.token, *it })
	l, every := before.lease, before.req.Every
	extended, err := s.extend(s.attempt(ctx, &it.upkeep, l.Ends), t, before.secret, l)
	switch {
	case errors.Is(err, vault.ErrTokenGone):
		// otherwise the item is due again, to be issued anew
		if _, err = s.relogin(s.attempt(ctx, &it.upkeep, time.Time{}), t); err != nil {
			s.retryLater(ctx, &it.upkeep, err, l)
		}
		return true
	case vault.Unreachable(err):
		s.retryLater(ctx, &it.upkeep, err, l)
		return every == 0 || !l.Late(time.Now())
	case ctx.Err() == nil:
		s.renewed(it, before.secret.Path, extended, err)
	}
	return true
}

// extend renews the lease l of a secret as t, or that of a token as itself, which Vault's default policy lets it.
func (s *Session) extend(ctx context.Context, t *token, secret *vault.Secret, l vault.Lease) (vault.Lease, error) {
	if secret.Auth == nil {
		return t.caller.RenewLease(ctx, secret.Path, l)
	}
	own := s.newToken(0, *secret.Auth).caller
	extended, err := own.Renew(ctx, vault.OpRenewLease(secret.Path), l)
	if errors.Is(err, vault.ErrDenied) {
		err = own.Verdict(ctx, err)
	}
	if errors.Is(err, vault.ErrTokenGone) {
		err = vault.ErrLeaseGone
	}
	return extended, err
}

// renewAgain is how soon a lease is renewed once more that was renewed in the last part of its life: where its end has
// come meanwhile, Vault may be about to revoke it all the same.
const renewAgain = 2 * time.Second

// renewed takes note of what Vault said to a renewal. A lease that is gone is replaced at once; one that is refused is
// kept and replaced near its end.
func (s *Session) renewed(it *item, path string, extended vault.Lease, err error) {
	s.locked(func() { it.renewed(time.Now(), extended, err) })
	if err == nil {
		s.cluster.logger.Debug("renewed lease", "path", path, "ttl", time.Until(extended.Ends).String())
		s.clearReport(vault.OpRenewLease(path))
		return
	}
	s.cluster.logger.Debug("lease is not renewed", "path", path, "error", err)
	if !errors.Is(err, vault.ErrLeaseGone) {
		s.reportOnce(err)
	}
}

// renewed takes note of it. Call with the session's mu held.
func (it *item) renewed(now time.Time, extended vault.Lease, err error) {
	late := it.lease.Late(now)
	switch {
	case err == nil:
		it.lease = extended
	case errors.Is(err, vault.ErrLeaseGone):
		it.gone, it.lease.Renewable = true, false
	default:
		it.lease = it.lease.Unrenewable()
	}
	it.succeeded(time.Time{})
	it.plan(now)
	if late && err == nil && it.renew {
		it.at = sched.Earlier(it.at, now.Add(renewAgain))
	}
}

// fetch asks Vault once, and returns the token that it was asked with. A token that Vault no longer knows is replaced
// and the request made again.
func (s *Session) fetch(ctx context.Context, req vault.Request) (*vault.Secret, *token, error) {
	t := s.current()
	secret, err := t.caller.Ask(ctx, req)
	if !errors.Is(err, vault.ErrDenied) {
		return secret, t, err
	}
	if err = t.caller.Verdict(ctx, err); !errors.Is(err, vault.ErrTokenGone) {
		return nil, t, err
	}
	if t, err = s.relogin(ctx, t); err != nil {
		return nil, t, err
	}
	secret, err = t.caller.Ask(ctx, req)
	return secret, t, err
}

// reissue reads a secret anew. It keeps to the budget, and after an answer that got lost it first makes sure that Vault
// answers at all.
func (s *Session) reissue(ctx context.Context, it *item) {
	var before item
	var wait time.Duration
	s.locked(func() {
		if wait = it.budget(time.Now()); wait > 0 && !it.renew {
			it.at = time.Now().Add(wait)
		}
		before = *it
	})
	if wait > 0 {
		return
	}
	req, lease, issued, stumbled := before.req, before.lease, before.secret.Issued(), before.class == vault.ErrUnavailable
	req.Optional = before.secret.Absent() // what was there once is missed when it is gone
	attempt := s.attempt(ctx, &it.upkeep, time.Time{})
	var err error
	if issued && stumbled {
		err = s.answers(attempt)
	}
	if vault.Unreachable(err) {
		s.retryLater(ctx, &it.upkeep, err, lease)
		return
	}
	secret, by, err := s.fetch(attempt, req)
	if err != nil {
		s.countLostAnswer(req.Key(), err)
		s.retryLater(ctx, &it.upkeep, err, lease)
		return
	}
	s.replace(it, secret, by)
}

// countLostAnswer counts an answer that got lost as issued, and reports whether another one may be.
func (s *Session) countLostAnswer(key string, err error) (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it, now := s.items[key], time.Now()
	if it == nil {
		return true
	}
	if vault.AnswerLost(err) && it.secret.Issued() {
		it.mint(now)
	}
	return it.budget(now) <= 0
}

// replace makes secret the item's newest answer.
func (s *Session) replace(it *item, secret *vault.Secret, by *token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.items[it.req.Key()] != it { // a Commit has forgotten the question while it was asked
		s.spend(newItem(it.req, secret), time.Now(), 0)
		return
	}
	if s.install(it, secret, by) {
		s.gather(time.Now(), it)
	}
}

// install makes what was read with a token the item's newest answer. Call with mu held.
func (s *Session) install(it *item, secret *vault.Secret, by *token) (changed bool) {
	now := time.Now()
	changed = it.install(secret, now)
	s.clearReportLocked(it.op())
	if by != s.token && secret.Kind.EndsWithToken() { // replaced meanwhile, and the lease ends with it
		it.gone = true
		it.plan(now)
	}
	return changed
}

// retryLater plans the next attempt with back-off after one that failed with err, but no later than the last call and
// the end of the lease l. What the session has stays in use.
func (s *Session) retryLater(ctx context.Context, u *upkeep, err error, l vault.Lease) {
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	s.locked(func() {
		u.failed(now, err, l)
		s.cluster.logger.Debug("try again", "in", u.at.Sub(now).String(), "accessor", s.token.Accessor, "error", err)
	})
	s.reportOnce(err)
}
