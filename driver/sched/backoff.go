package sched

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the pause after a failed attempt: it doubles, is capped, and has jitter so that a thousand that failed
// together do not come back together. The zero value has no pause.
type Backoff struct {
	First, Most time.Duration

	// Jitter, in (0,1), is where in its second half each pause ends: always at the same place, so that a caller with a
	// fixed Jitter keeps its distance from the others. Zero: at a random place, each time another.
	Jitter float64

	failures int
}

// Next returns the pause after one more failure.
func (b *Backoff) Next() time.Duration {
	pause := b.First << min(b.failures, 20)
	if pause > b.Most || pause <= 0 {
		pause = b.Most
	}
	b.failures++
	if b.Jitter > 0 {
		return pause/2 + Fraction(pause/2, b.Jitter)
	}
	return pause/2 + rand.N(pause/2+1)
}

// Reset makes the next pause the first again, after a success.
func (b *Backoff) Reset() { b.failures = 0 }

// Fraction returns f times d.
func Fraction(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

// Sleep waits for d. It returns false when ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
