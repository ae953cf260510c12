package session

import (
	"slices"
	"time"
)

// Commit says that the reading is what the task uses from now on. What neither it nor a later reading asked is
// forgotten; a lease or a token that it replaces is revoked after grace, in which the process changes over, or left to
// end when grace is negative. A change that came between Begin and Commit makes Changed ready again.
func (r *Reading) Commit(grace time.Duration) {
	s, now := r.s, time.Now()
	var behind bool
	s.locked(func() {
		s.used = r.token.N
		for key, it := range s.items {
			r.commitItem(it, r.shown(key), now, grace)
		}
		s.retire(now, grace)
		behind = s.stale()
	})
	if behind {
		s.signalChanged()
	}
	s.chore.Wake(now)
}

// shown is the reading's answer to a question, nil when it has none.
func (r *Reading) shown(key string) *question {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.questions[key]; q != nil && q.secret != nil {
		return q
	}
	return nil
}

// commitItem makes q the answer that the task uses of an item, nil: none. Call with the session's mu held.
func (r *Reading) commitItem(it *item, q *question, now time.Time, grace time.Duration) {
	s, before := r.s, it.used
	if it.used = nil; q != nil {
		it.used = q.secret
	}
	if it.reader > r.n { // a later reading may show any answer
		return
	}
	release := func(old *item) bool {
		switch old.secret.Handle() {
		case it.used.Handle():
			return false
		case before.Handle():
			s.spend(old, now, grace)
		default: // never committed, but the process may have found it by itself
			s.spend(old, now, max(grace, 0))
		}
		return true
	}
	it.held = slices.DeleteFunc(it.held, release)
	if q == nil {
		release(it)
		delete(s.items, it.req.Key())
		delete(s.reported, it.op())
		return
	}
	it.req.Revoke = q.revoke
	if it.req.Every != q.every || it.req.Before != q.before {
		it.req.Every, it.req.Before = q.every, q.before
		it.plan(now)
	}
}
