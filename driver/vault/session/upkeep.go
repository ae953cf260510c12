package session

import (
	"context"
	"errors"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// mintsPerLife bounds how often a lease may be issued anew within the life of one: a renewal that always fails must not
// become a stream of new database users (consul-template #2165 mints ten a second).
const mintsPerLife = 4

// upkeep is when a token or a secret next wants attention, and how the last attempts went. The session's mu guards it.
type upkeep struct {
	at       time.Time // zero: never
	since    time.Time // when the attempt under way began, zero: there is none
	backoff  sched.Backoff
	timeouts int       // how many attempts in a row got no answer in time
	failing  time.Time // when the first of those attempts began that have failed in a row; zero: the last one succeeded
	class    error     // of the last failure, nil after a success
	lastErr  error     // the last failure
	dead     bool      // it was reported that it ended while it could not be renewed
	gather   bool      // something else has changed, and this is read before Changed is ready
}

// newUpkeep retries at the pace of a task that runs with what it has.
func newUpkeep() upkeep { return upkeep{backoff: sched.Backoff{First: time.Second, Most: time.Minute}} }

func (u *upkeep) due(now time.Time) bool {
	return u.since.IsZero() && !u.at.IsZero() && !u.at.After(now)
}

// next is when an attempt is to begin, zero where one is under way.
func (u *upkeep) next() time.Time {
	if !u.since.IsZero() {
		return time.Time{}
	}
	return u.at
}

// succeeded records a success, and when the next attempt is due.
func (u *upkeep) succeeded(at time.Time) {
	if time.Since(u.since) < vault.FirstTimeout/2 {
		u.timeouts = 0
	}
	u.at, u.class, u.lastErr, u.failing, u.dead = at, nil, nil, time.Time{}, false
	u.backoff.Reset()
}

// failed records a failure, and plans the next attempt: with back-off, but no later than the last call and the end of
// the lease l.
func (u *upkeep) failed(now time.Time, err error, l vault.Lease) {
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
	_, u.class = about(err)
	u.lastErr = err
}

// limit is how long each request of the next attempt may take for something that ends then, zero: never.
func (u *upkeep) limit(ends time.Time) time.Duration {
	most := vault.Timeout(u.timeouts)
	if left := time.Until(ends); !ends.IsZero() && left > 0 {
		most = min(most, max(left, vault.ShortestTimeout))
	}
	return most
}

// errForeign stands for what Login.JWT returns.
var errForeign = errors.New("no identity")

// about is what an error is about and how it is classed, which stay the same when its wording does not.
func about(err error) (op string, class error) {
	var e *vault.Error
	switch {
	case errors.As(err, &e):
		return e.Op, e.Class
	case errors.Is(err, context.DeadlineExceeded): // it waited for somebody else's attempt
		return "", vault.ErrUnavailable
	}
	return "", errForeign
}
