package vault

import "time"

// replaceFraction of its life is when a lease that cannot be extended is replaced: late enough to use what was granted,
// early enough that a slow Vault and a task's own restart fit before its end.
const replaceFraction = 0.85

// Lease is how long Vault said that something is good, a token or a secret, and whether asking can extend it.
type Lease struct {
	ID        string        `json:"id,omitempty"` // empty for a token and for a secret that merely expires
	TTL       time.Duration `json:"ttl"`          // as first granted, which a full renewal grants again
	Issued    time.Time     `json:"issued"`
	Renewed   time.Time     `json:"renewed"` // Issued, or the last renewal
	Ends      time.Time     `json:"ends"`    // zero: does not end
	Renewable bool          `json:"renewable"`
	Jitter    float64       `json:"jitter"` // in [0,1), drawn once: tasks started together do not renew together
}

// NewLease starts a lease now. jitter is in [0,1). A ttl of zero does not end, as Vault means it for root tokens and
// leases without a TTL.
func NewLease(id string, ttl time.Duration, renewable bool, now time.Time, jitter float64) Lease {
	l := Lease{ID: id, TTL: ttl, Issued: now, Renewed: now, Renewable: renewable && ttl > 0, Jitter: jitter}
	if ttl > 0 {
		l.Ends = now.Add(ttl)
	}
	return l
}

// extended returns the lease after a renewal that granted ttl. A grant noticeably shorter than the first one means that
// Vault has begun to cut at the maximum TTL, which no renewal moves: the lease counts as no longer renewable.
func (l Lease) extended(ttl time.Duration, now time.Time) Lease {
	l.Renewed, l.Ends = now, now.Add(ttl)
	l.Renewable = ttl >= l.TTL-l.TTL/20
	return l
}

// Unrenewable returns the lease after Vault refused to extend it: the last grant is all the life it has.
func (l Lease) Unrenewable() Lease {
	l.Issued, l.Renewable = l.Renewed, false
	return l
}

// Resumed returns the lease as a process must see it that reads it from a saved state. How often it was renewed after
// it was saved is not known: until Vault is asked, a lease that can be renewed counts as just renewed.
func (l Lease) Resumed(now time.Time) Lease {
	if l.Renewable {
		l.Renewed, l.Ends = now, now.Add(l.TTL)
	}
	if l.Jitter < 0 || l.Jitter >= 1 {
		l.Jitter = 0
	}
	return l
}

// RenewAt is between half and two thirds of what the last grant gave.
func (l Lease) RenewAt() time.Time {
	return l.Renewed.Add(fraction(l.Ends.Sub(l.Renewed), 0.5+l.Jitter/6))
}

// ReplaceAt is at 85 % of the whole life, give or take three.
func (l Lease) ReplaceAt() time.Time {
	return l.Issued.Add(fraction(l.Ends.Sub(l.Issued), replaceFraction-0.03+0.06*l.Jitter))
}

// ReplaceBefore is that long before the end, or up to a tenth of that more, but not in the first half of the life.
func (l Lease) ReplaceBefore(d time.Duration) time.Time {
	half := l.Issued.Add(fraction(l.Ends.Sub(l.Issued), 0.5))
	if at := l.Ends.Add(-fraction(d, 1+l.Jitter/10)); at.After(half) {
		return at
	}
	return half
}

// Due is when the lease next wants attention and whether that is a renewal; the zero time means never.
func (l Lease) Due() (at time.Time, renew bool) {
	switch {
	case l.Ends.IsZero():
		return time.Time{}, false
	case l.Renewable:
		return l.RenewAt(), true
	default:
		return l.ReplaceAt(), false
	}
}

// LastCall is when the lease is so near its end that waiting for a renewal to succeed is no longer safe; zero: never.
// What counts is the last grant: a lease renewed for years is not old.
func (l Lease) LastCall() time.Time {
	if l.Ends.IsZero() {
		return time.Time{}
	}
	return l.Renewed.Add(fraction(l.Ends.Sub(l.Renewed), replaceFraction))
}

// Late reports that LastCall is over.
func (l Lease) Late(now time.Time) bool { return !l.Ends.IsZero() && !now.Before(l.LastCall()) }

// Expired reports that the lease is past its end.
func (l Lease) Expired(now time.Time) bool { return !l.Ends.IsZero() && !now.Before(l.Ends) }

func fraction(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

// farAway bounds the seconds that an answer can tell to what a time.Duration holds.
const farAway = 1 << 32

// span is a duration that Vault tells in seconds.
func span(seconds int) time.Duration {
	return time.Duration(max(0, min(seconds, farAway))) * time.Second
}
