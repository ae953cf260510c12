package session

import (
	"context"
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
	s.locked(func() { u.since, u.gather = time.Time{}, false })
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
	s.locked(func() { s.broken = true })
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
	if s.gathered(time.Now()) {
		s.signalChanged()
	}
	s.report(s.recovery)
}

// gathered reports that a change was pending and all that belongs to it is there.
func (s *Session) gathered(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pending {
		return false
	}
	for _, it := range s.items {
		if it.gather && now.Before(s.pendingSince.Add(gatherWithin)) {
			return false
		}
	}
	s.pending = false
	return s.stale()
}
