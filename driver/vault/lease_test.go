package vault

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(d time.Duration) time.Time { return t0.Add(d) }

func lease(ttl time.Duration, renewable bool, jitter float64) Lease {
	l := NewLease("id", ttl, renewable, t0, 0.5)
	l.Jitter = jitter
	return l
}

func TestLeaseDue(t *testing.T) {
	for name, test := range map[string]struct {
		lease Lease
		at    time.Duration // negative: never
		renew bool
	}{
		"a lease without an end is never due":              {lease(0, true, 0), -1, false},
		"a renewable lease is renewed after half its life": {lease(time.Hour, true, 0), 30 * time.Minute, true},
		"jitter delays it to two thirds at most":           {lease(time.Hour, true, 1), 40 * time.Minute, true},
		"a fixed lease is replaced at 85 % less three": {lease(100*time.Second, false, 0), 82 * time.Second,
			false},
		"jitter delays that by six": {lease(100*time.Second, false, 1), 88 * time.Second,
			false},
		"a renewal moves the next one": {lease(time.Hour, true, 0).extended(time.Hour,
			at(time.Hour)), 90 * time.Minute, true},
		"a grant a little short is still one": {lease(time.Hour, true, 0).extended(58*time.Minute,
			t0), 29 * time.Minute, true},
		"a grant cut by the maximum is the last": {lease(100*time.Second, true,
			0).extended(60*time.Second, at(40*time.Second)), 82 * time.Second, false},
		"a grant of nothing ends it": {lease(100*time.Second, true, 0).extended(0,
			at(50*time.Second)), 41 * time.Second, false},
		"a refused renewal leaves the last grant": {lease(100*time.Second, true,
			0).extended(100*time.Second, at(time.Hour)).Unrenewable(), time.Hour + 82*time.Second, false},
		"a resumed lease counts as just renewed": {lease(time.Hour, true, 0).Resumed(at(24 * time.Hour)),
			24*time.Hour + 30*time.Minute, true},
		"one that could not be renewed has not been": {lease(100*time.Second, false,
			0).Resumed(at(24 * time.Hour)), 82 * time.Second, false},
		"a resumed lease with jitter of its own has none": {Lease{TTL: time.Hour, Renewable: true,
			Jitter: 1e300}.Resumed(t0), 30 * time.Minute, true},
		"a resumed lease without an end has none":                   {lease(0, false, 0).Resumed(at(time.Hour)), -1, false},
		"a TTL of zero is no end even where Vault calls it renewed": {NewLease("id", 0, true, t0, 0.5), -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			due, renew := test.lease.Due()
			must.Eq(t, test.renew, renew)
			if test.at < 0 {
				must.True(t, due.IsZero())
				return
			}
			must.Eq(t, test.at, due.Sub(t0).Round(time.Millisecond))
		})
	}
}

func TestLeaseLateAndExpired(t *testing.T) {
	l := lease(100*time.Second, true, 0.5)
	for name, test := range map[string]struct {
		lease         Lease
		at            time.Duration
		late, expired bool
	}{
		"before its last call": {l, 84 * time.Second, false, false},
		"at its last call":     {l, 85 * time.Second, true, false},
		"at its end":           {l, 100 * time.Second, true, true},
		"renewed at its end":   {l.extended(100*time.Second, at(99*time.Second)), 100 * time.Second, false, false},
		"renewed for years, and late": {l.extended(100*time.Second, at(100000*time.Second)), 100086 * time.Second, true,
			false},
		"without an end": {lease(0, false, 0), 1 << 60, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, test.late, test.lease.Late(at(test.at)))
			must.Eq(t, test.expired, test.lease.Expired(at(test.at)))
		})
	}
}

func TestLeaseJitterSpreads(t *testing.T) {
	seen := map[time.Time]bool{}
	for range 100 {
		due, _ := NewLease("", time.Hour, true, t0, rand.Float64()).Due()
		must.Between(t, 30*time.Minute, due.Sub(t0), 40*time.Minute)
		seen[due] = true
	}
	must.Greater(t, 90, len(seen))
}

func TestKindDue(t *testing.T) {
	const every = 40 * time.Second
	for name, test := range map[string]struct {
		kind  Kind
		lease Lease
		every time.Duration
		at    time.Duration // negative: never
		renew bool
	}{
		"a leased secret is renewed": {Leased, lease(time.Hour, true, 0), every, 30 * time.Minute,
			true},
		"even when it is to be read once": {Leased, lease(time.Hour, true, 0), 0, 30 * time.Minute, true},
		"one that cannot be renewed is replaced": {Leased, lease(100*time.Second, false, 0), every,
			82 * time.Second, false},
		"but not when it is to be read once": {Leased, lease(100*time.Second, false, 0), 0, -1, false},
		"a lease without an end stays":       {Leased, lease(0, false, 0), every, -1, false},
		"a lease of a moment is replaced after a second": {Leased, lease(time.Second, false, 0), every, time.Second,
			false},
		"a certificate is replaced": {Expiring, lease(100*time.Second, false, 0), every,
			82 * time.Second, false},
		"a certificate that is to be read once is not": {Expiring, lease(100*time.Second, false, 0), 0, -1, false},
		"a static role is read after the rotation": {Rotating, lease(30*time.Second, false, 0), every,
			30 * time.Second, false},
		"and not by all in the same second": {Rotating, lease(30*time.Second, false, 0.8), every,
			34 * time.Second, false},
		"and polled, for a rotation before its time": {Rotating, lease(time.Hour, false, 0.5), every,
			40 * time.Second, false},
		"KV is polled at its interval":                      {Polled, lease(0, false, 0.5), every, 40 * time.Second, false},
		"less a tenth":                                      {Polled, lease(0, false, 0), every, 36 * time.Second, false},
		"never more than once in a second":                  {Polled, lease(0, false, 0), 1, time.Second, false},
		"an interval that a saved state made up is none":    {Polled, lease(0, false, 0), -5, -1, false},
		"KV that is to be read once is not":                 {Polled, lease(0, false, 0), 0, -1, false},
		"what a write answered is not asked for again":      {Fixed, lease(0, false, 0), every, -1, false},
		"a kind that a saved state made up wants no upkeep": {Kind("nonsense"), lease(time.Hour, false, 0), every, -1, false},
		"nor does one without any":                          {Kind(""), lease(time.Hour, true, 0), every, -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			due, renew := test.kind.Due(test.lease, test.every)
			must.Eq(t, test.renew, renew)
			if test.at < 0 {
				must.True(t, due.IsZero(), must.Sprint(due))
				return
			}
			must.Eq(t, test.at, due.Sub(t0))
		})
	}
}
