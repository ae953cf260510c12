package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// step does all that is due for the session and returns when the next is. The scheduler runs one step of a session at a
// time; only a Reading may ask Vault beside it. The number of turns is bounded: a Vault that is slower than its leases
// last would keep a step going for ever.
func (s *Session) step(ctx context.Context) time.Time {
	s.keepToken(ctx)
	gathered := false
	for turns := 3 * s.size(); turns > 0; turns-- {
		it := s.dueItem(time.Now())
		if it == nil || ctx.Err() != nil {
			break
		}
		if s.keepItem(ctx, it) && !gathered {
			s.gather(time.Now(), it)
			gathered = true
		}
	}
	s.announce()
	s.revokeSpent(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next()
}

func (s *Session) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for range s.kept {
		n++
	}
	return n
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

// dueItem returns the item that has been due for longest.
func (s *Session) dueItem(now time.Time) *item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var first *item
	for it := range s.kept {
		if it.due(now) && (first == nil || it.at.Before(first.at)) {
			first = it
		}
	}
	return first
}

// gather makes due what would soon be due anyway, so that secrets which change together become one generation: all that
// is polled, but for what has just been found changed, and leases that are past most of their life.
func (s *Session) gather(now time.Time, changed *item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.items {
		life := it.lease.Ends.Sub(it.lease.Issued)
		near := !it.renew && it.secret.issued() && now.After(it.lease.Issued.Add(fraction(life, 0.7)))
		polled := it.secret.Kind == Polled && it != changed
		if !it.at.IsZero() && (polled || near) {
			it.at = now
		}
	}
}

// announce makes Changed ready and ends an outage, where the step has brought that about.
func (s *Session) announce() {
	s.mu.Lock()
	changed := s.news && s.behind()
	s.news = false
	down := s.downAt
	if s.reached() {
		s.downAt = time.Time{}
	} else {
		down = time.Time{}
	}
	s.mu.Unlock()
	if changed {
		s.nudge()
	}
	if !down.IsZero() {
		s.tell(Recovered, fmt.Sprintf("Vault answers again after %s", time.Since(down).Round(time.Second)))
	}
}

// reached reports that nothing waits for a Vault that cannot answer. That some other request succeeded is not enough: a
// Vault whose database is down answers all but that. Call with mu held.
func (s *Session) reached() bool {
	for it := range s.kept {
		if it.class == ErrUnavailable {
			return false
		}
	}
	return s.upkeep.class != ErrUnavailable
}

// keepToken renews the token, or replaces it when it cannot be renewed any more.
func (s *Session) keepToken(ctx context.Context) {
	s.mu.Lock()
	t, lease, doubted, due := s.token, s.lease, s.doubted, s.upkeep.due(time.Now())
	s.mu.Unlock()
	if !due {
		return
	}
	err := errTokenGone
	if doubted || lease.Renewable || t.Given {
		err = s.checkToken(ctx, t, lease)
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, errTokenGone), lease.late(time.Now()) && !t.Given:
		_, err = s.relogin(ctx, t)
	}
	if err != nil {
		s.stumble(ctx, &s.upkeep, err, lease.lastCall())
	}
}

// checkToken renews the token, or asks whether it lives where it cannot be renewed. An error is errTokenGone, or means
// that Vault could not be asked; a refusal is none: the token lives until its end.
func (s *Session) checkToken(ctx context.Context, t *token, l Lease) (err error) {
	switch {
	case t.Given:
		l, err = s.follow(ctx, t, l)
	case l.Renewable:
		l, err = s.renewToken(ctx, t, l)
	default:
		_, err = s.lookUp(ctx, t)
	}
	if errors.Is(err, ErrDenied) {
		err = s.verdict(ctx, t, err)
	}
	switch {
	case err == nil:
		s.fine("renew token")
	case unasked(err), errors.Is(err, errTokenGone), ctx.Err() != nil:
		return err
	default:
		l = l.unrenewable()
		s.complain(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == t { // a reading may have replaced it meanwhile
		s.lease, s.doubted = l, false
		s.upkeep.well(t.due(l, time.Now()))
	}
	return nil
}

// follow looks whether somebody else has replaced the token, which then counts as gone, and now and then for how long it still lives.
func (s *Session) follow(ctx context.Context, t *token, l Lease) (Lease, error) {
	s.mu.Lock()
	given, doubted := s.login.Given, s.doubted
	s.mu.Unlock()
	if given != nil {
		if value, err := given(); err == nil && value != t.Value {
			return l, errTokenGone
		}
	}
	now := time.Now()
	if !doubted && (l.Ends.IsZero() || now.Before(l.renewAt())) {
		return l, nil
	}
	known, err := s.lookUp(ctx, t)
	if err != nil {
		return l, err
	}
	return remaining(known, now), nil
}

// keepItem renews or reads anew what is due and reports whether the answer changed.
func (s *Session) keepItem(ctx context.Context, it *item) (changed bool) {
	select {
	case it.asking <- struct{}{}:
		defer it.asking.pass()
	default: // a reading asks, and may have to wait for long
		s.postpone(it, time.Second)
		return false
	}
	s.mu.Lock()
	due, renew := it.due(time.Now()), it.renew
	s.mu.Unlock()
	if !due || renew && s.renewItem(ctx, it) {
		return false
	}
	return s.reissue(ctx, it)
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
	t, l, path, every := s.token, it.lease, it.secret.Path, it.req.Every
	s.mu.Unlock()
	extended, err := s.renewLease(ctx, t, path, l)
	switch {
	case errors.Is(err, errTokenGone):
		if _, err = s.relogin(ctx, t); err != nil { // otherwise the item is due again, to be issued anew
			s.stumble(ctx, &it.upkeep, err, l.lastCall())
		}
		return true
	case unasked(err):
		s.stumble(ctx, &it.upkeep, err, l.lastCall())
		return every == 0 || !l.late(time.Now())
	case ctx.Err() == nil:
		s.renewed(it, path, extended, err)
	}
	return true
}

// renewed takes note of what Vault said to a renewal. A lease that is gone is replaced at once; one that is refused is kept
// and replaced near its end.
func (s *Session) renewed(it *item, path string, extended Lease, err error) {
	s.mu.Lock()
	switch {
	case err == nil:
		it.lease = extended
	case errors.Is(err, errLeaseGone):
		it.gone, it.lease.Renewable = true, false
	default:
		it.lease = it.lease.unrenewable()
	}
	it.well(time.Time{})
	it.plan(time.Now())
	s.mu.Unlock()
	s.client.logger.Debug("renewed lease", "path", path, "ttl", time.Until(extended.Ends), "error", err)
	if err == nil {
		s.fine(opRenew(path))
	} else if !errors.Is(err, errLeaseGone) {
		s.complain(err)
	}
}

// errLeaseGone is Vault's answer to the renewal of a lease that was revoked or has ended.
var errLeaseGone = errors.New("lease is gone")

func opRenew(path string) string { return "renew lease of " + path }

// renewLease extends a lease with t. The error may be errTokenGone or errLeaseGone.
func (s *Session) renewLease(ctx context.Context, t *token, path string, l Lease) (Lease, error) {
	as, err := s.client.as(t.Value, s.namespace)
	if err != nil {
		return l, err
	}
	now := time.Now()
	answer, err := as.Sys().RenewWithContext(ctx, l.ID, int(l.TTL/time.Second))
	err = s.client.fail(opRenew(path), err)
	var e *Error
	switch {
	case errors.Is(err, ErrDenied):
		return l, hinted(s.verdict(ctx, t, err), grant(t, s.role, "sys/leases/renew", `"update"`))
	case errors.As(err, &e) && (strings.Contains(e.Detail, "lease not found") || strings.Contains(e.Detail, "lease expired")):
		return l, errLeaseGone
	case err != nil:
		return l, err
	case answer == nil:
		return l, &Error{Class: ErrInvalid, Op: opRenew(path), Detail: "empty answer"}
	}
	return l.extended(span(answer.LeaseDuration), now), nil
}

// reissue reads a secret anew and reports whether the answer changed. It keeps to the budget, and after an answer that
// got lost it first makes sure that Vault answers at all.
func (s *Session) reissue(ctx context.Context, it *item) (changed bool) {
	s.mu.Lock()
	req, issued, stumbled := it.req, it.secret.issued(), it.class == ErrUnavailable
	req.Optional = it.secret.Absent() // what was there once is missed when it is gone
	wait := it.budget(time.Now())
	if wait > 0 && !it.renew {
		it.at = time.Now().Add(wait)
	}
	s.mu.Unlock()
	if wait > 0 {
		return false
	}
	var err error
	if issued && stumbled {
		err = s.answers(ctx)
	}
	if unasked(err) {
		s.stumble(ctx, &it.upkeep, err, time.Time{})
		return false
	}
	secret, by, err := s.fetch(ctx, req)
	if err != nil {
		s.missed(req.key(), err)
		s.stumble(ctx, &it.upkeep, err, time.Time{})
		return false
	}
	return s.replace(it, secret, by)
}

// missed counts an answer that got lost as issued, and reports whether another one may be.
func (s *Session) missed(key string, err error) (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it, now := s.items[key], time.Now()
	if it == nil {
		return true
	}
	if lost(err) && it.secret.issued() {
		it.mint(now)
	}
	return it.budget(now) <= 0
}

// replace makes secret the item's newest answer.
func (s *Session) replace(it *item, secret *Secret, by *token) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.items[it.req.key()] != it { // a Commit has forgotten the question while it was asked
		s.spend(newItem(it.req, secret), time.Now(), 0)
		return false
	}
	changed = s.install(it, secret, by)
	s.news = s.news || changed
	return changed
}

// install makes what was read with a token the item's newest answer. Call with mu held.
func (s *Session) install(it *item, secret *Secret, by *token) (changed bool) {
	now := time.Now()
	changed = it.install(secret, now)
	delete(s.told, it.op())
	if by != s.token && secret.Kind == Leased { // replaced meanwhile, and the lease ends with it
		it.gone = true
		it.plan(now)
	}
	return changed
}

// stumble plans the next try after a failure, not later than a time at which something else would have to be done; zero:
// there is none. What is in hand is kept.
func (s *Session) stumble(ctx context.Context, u *upkeep, err error, latest time.Time) {
	if ctx.Err() != nil {
		return
	}
	_, class := about(err)
	now := time.Now()
	s.mu.Lock()
	u.at, u.class = now.Add(u.patient.Next()), class
	if latest.After(now) && latest.Before(u.at) {
		u.at = latest
	}
	s.client.logger.Debug("try again", "in", u.at.Sub(now), "accessor", s.token.Accessor, "error", err)
	s.mu.Unlock()
	s.complain(err)
}

// complain tells of trouble once: the beginning of an outage, and each other problem until what failed succeeds.
func (s *Session) complain(err error) {
	op, class := about(err)
	s.mu.Lock()
	known := s.told[op] == class
	if class == ErrUnavailable {
		known = !s.downAt.IsZero()
	}
	switch {
	case known:
	case class == ErrUnavailable:
		s.downAt = time.Now()
	default:
		if s.told == nil {
			s.told = map[string]error{}
		}
		s.told[op] = class
	}
	s.mu.Unlock()
	switch {
	case known:
	case class == ErrUnavailable:
		s.tell(Outage, "the last known good secrets stay in use: "+err.Error())
	default:
		s.tell(Problem, err.Error())
	}
}

// fine forgets the complaint about what has succeeded now.
func (s *Session) fine(op string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.told, op)
}

// errForeign stands for what Login.JWT returns.
var errForeign = errors.New("no identity")

// about is what an error is about and how it is classed, which stay the same when its wording does not.
func about(err error) (op string, class error) {
	var e *Error
	if errors.As(err, &e) {
		return e.Op, e.Class
	}
	return "", errForeign
}
