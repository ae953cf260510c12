package session

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/internal/logtext"
)

// sideBySide is how many answers a session asks for at once. One that takes longer than sched.StuckAfter does not count
// any more: what hangs is not in the way of the others.
const sideBySide = 8

// step starts what is due, each in a goroutine of its own, and returns when the next is: a token that cannot be
// renewed, a lease that cannot and a secret that cannot be read do not wait for each other.
func (s *Session) step(context.Context) time.Time {
	s.announce()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.broken {
		return time.Time{}
	}
	now := time.Now()
	if s.upkeep.due(now) {
		s.begin(&s.upkeep, now, s.keepToken)
	}
	for _, it := range s.dueItems(now) {
		s.begin(&it.upkeep, now, func(ctx context.Context) { s.keepItem(ctx, it) })
	}
	if s.revoking.at = s.spentAt(); s.revoking.due(now) {
		s.begin(&s.revoking, now, s.revokeSpent)
	}
	return s.next(now)
}

// begin starts an attempt in a goroutine of its own. Call with mu held, and not once the session is closed.
func (s *Session) begin(u *upkeep, now time.Time, keep func(context.Context)) {
	u.since = now
	s.asks.Add(1)
	go func() {
		defer s.asks.Done()
		defer s.finished(u)
		defer s.recoverPanic()
		keep(s.chore.Context())
	}()
}

func (s *Session) finished(u *upkeep) {
	s.mu.Lock()
	u.since, u.gather = time.Time{}, false
	s.mu.Unlock()
	s.announce()
	s.wake()
}

// recoverPanic keeps a panic in the upkeep of one session from ending the plugin, and so every other task's upkeep. The
// stack is in the log, and the value only where it is the runtime's: another could hold a secret.
func (s *Session) recoverPanic() {
	p := recover()
	if p == nil {
		return
	}
	s.cluster.logger.Error("panic in the upkeep of a session", "panic", logtext.Panic(p), "role", s.role,
		"stack", string(debug.Stack()))
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	s.tell(Broken, "internal error: the upkeep of the Vault session has ended, the agent's log says where")
}

// dueItems returns what is to be looked at now, that first which has been due for longest. Call with mu held.
func (s *Session) dueItems(now time.Time) (due []*item) {
	for it := range s.kept {
		if it.due(now) {
			due = append(due, it)
		}
	}
	slices.SortFunc(due, func(a, b *item) int { return a.at.Compare(b.at) })
	free, _ := s.freeLanes(now)
	return due[:min(len(due), free)]
}

// freeLanes returns how many more answers may be asked for now, and when there will be another lane at the latest. Call
// with mu held.
func (s *Session) freeLanes(now time.Time) (free int, more time.Time) {
	free = sideBySide
	for it := range s.kept {
		if room := it.since.Add(sched.StuckAfter); !it.since.IsZero() && room.After(now) {
			free--
			more = sched.Earlier(more, room)
		}
	}
	return max(0, free), more
}

// attempt returns the context of one attempt at something that ends then, zero: never. It bounds each request by
// itself.
func (s *Session) attempt(ctx context.Context, u *upkeep, ends time.Time) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return vault.WithTimeout(ctx, u.limit(ends))
}

// kept yields every item and every lease that is held for one. Call with mu held.
func (s *Session) kept(yield func(*item) bool) {
	for _, it := range s.items {
		if !yield(it) {
			return
		}
		for _, old := range it.held {
			if !yield(old) {
				return
			}
		}
	}
}

// gatherWithin is how long a change waits for others that come together with it, before Changed is ready.
const gatherWithin = 2 * time.Second

// gather makes due what would soon be due anyway, so that secrets which change together become one generation: what is
// polled, except for changed itself, and leases that are past most of their life. Call with mu held.
func (s *Session) gather(now time.Time, changed *item) {
	if s.pending {
		return
	}
	s.pending, s.pendingSince = true, now
	for _, it := range s.items {
		life := it.lease.Ends.Sub(it.lease.Issued)
		near := !it.renew && it.secret.Issued() && now.After(it.lease.Issued.Add(sched.Fraction(life, 0.7)))
		polled := it.secret.Kind == vault.Polled
		if it != changed && !it.at.IsZero() && (polled || near) {
			it.at, it.gather = now, true
		}
	}
}

// announce makes Changed ready once all that was gathered has been read, or gatherWithin is over, and reports what
// works again.
func (s *Session) announce() {
	s.mu.Lock()
	now := time.Now()
	ready := s.pending && !now.Before(s.pendingSince.Add(gatherWithin))
	if s.pending && !ready {
		ready = true
		for _, it := range s.items {
			ready = ready && !it.gather
		}
	}
	changed := ready && s.stale()
	s.pending = s.pending && !ready
	s.mu.Unlock()
	if changed {
		s.signalChanged()
	}
	s.report(s.recovery)
}

// keepToken renews the token, or replaces it when it cannot be renewed any more.
func (s *Session) keepToken(ctx context.Context) {
	s.mu.Lock()
	t, lease, unverified := s.token, s.lease, s.unverified
	s.mu.Unlock()
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
	s.mu.Lock()
	source, unverified := s.source, s.unverified
	s.mu.Unlock()
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
	s.mu.Lock()
	due, renew := !it.at.IsZero() && !it.at.After(time.Now()), it.renew // a reading may have been there before
	s.mu.Unlock()
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
	s.mu.Lock()
	t, l, secret, every := s.token, it.lease, it.secret, it.req.Every
	s.mu.Unlock()
	extended, err := s.extend(s.attempt(ctx, &it.upkeep, l.Ends), t, secret, l)
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
		s.renewed(it, secret.Path, extended, err)
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
	s.mu.Lock()
	now := time.Now()
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
	s.mu.Unlock()
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
	s.mu.Lock()
	req, lease, issued, stumbled := it.req, it.lease, it.secret.Issued(), it.class == vault.ErrUnavailable
	req.Optional = it.secret.Absent() // what was there once is missed when it is gone
	wait := it.budget(time.Now())
	if wait > 0 && !it.renew {
		it.at = time.Now().Add(wait)
	}
	s.mu.Unlock()
	if wait > 0 {
		return
	}
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
	_, class := about(err)
	now := time.Now()
	s.mu.Lock()
	u.at = now.Add(u.backoff.Next())
	for _, latest := range []time.Time{l.LastCall(), l.Ends} {
		if latest.After(now) && latest.Before(u.at) {
			u.at = latest
		}
	}
	if u.failing.IsZero() {
		u.failing = u.since
	}
	if vault.TimedOut(err) {
		u.timeouts++
	}
	u.class, u.lastErr = class, err
	s.cluster.logger.Debug("try again", "in", u.at.Sub(now).String(), "accessor", s.token.Accessor, "error", err)
	s.mu.Unlock()
	s.reportOnce(err)
}
