package e2e

import (
	"crypto/sha256"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// A host that is busy with other things makes everything here slower, while leases end as fast as ever. How slow the
// machine is, is measured while the tests run: limits, and the lifetimes of what has to outlive the restart of an
// agent, are stretched by it.

const (
	// usual is how much longer than its processor time a step takes beside our own tests: the limits allow for it as they
	// stand.
	usual = 4
	// stepTakes is the processor time of a step: some turns at the processor, of which the first comes at once on a busy
	// machine, too.
	stepTakes = 20 * time.Millisecond
)

// machine measures how busy this machine is.
var machine busyness

type busyness struct {
	mean, peak float64      // of how much longer than its processor time a step takes
	percent    atomic.Int64 // of what is usual; 0: not known yet
}

// watch measures for as long as the tests run.
func (b *busyness) watch() {
	runtime.LockOSThread() // its processor time is the step's
	for ; ; time.Sleep(time.Second) {
		b.look()
	}
}

// look makes a step.
func (b *busyness) look() {
	b.mean += (delay() - b.mean) / 5  // a single one may be unlucky
	b.peak = max(b.mean, 0.98*b.peak) // who begins in a quiet moment goes on in the next one, which may not be
	b.percent.Store(int64(100 * b.peak / usual))
}

// stretch returns d for such a machine, and never less than d.
func (b *busyness) stretch(d time.Duration) time.Duration {
	return d * time.Duration(max(100, b.percent.Load())) / 100
}

// delay makes a step, and returns how many times as long as its processor time it has taken.
func delay() float64 {
	began, used := time.Now(), processorTime()
	for processorTime()-used < stepTakes {
		sha256.Sum256(make([]byte, 64<<10))
	}
	return float64(time.Since(began)) / float64(processorTime()-used)
}

// processorTime is that of this thread.
func processorTime() time.Duration {
	var used unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used); err != nil {
		panic(err) // Linux has had this clock since 2.6.12.
	}
	return time.Duration(used.Nano())
}

// stretched is d on a machine that is as busy as this one is, or was a moment ago.
func stretched(d time.Duration) time.Duration { return machine.stretch(d) }

// TestLimitsFollowTheMachine: on one processor, so as not to disturb who is beside.
func TestLimitsFollowTheMachine(t *testing.T) {
	t.Parallel()
	measured := make(chan time.Duration)
	var over atomic.Bool
	var one unix.CPUSet
	one.Set(0)
	alone := func(do func()) {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			panic(err)
		}
		do()
	}
	for range 5 * usual {
		go alone(func() {
			for !over.Load() {
			}
		})
	}
	go alone(func() {
		var busy busyness
		for range 5 {
			busy.look()
		}
		measured <- busy.stretch(time.Minute)
	})
	limit := <-measured
	over.Store(true)
	must.Between(t, 2*time.Minute, limit, time.Hour)
	var idle busyness
	must.Eq(t, time.Minute, idle.stretch(time.Minute), must.Sprint("what is usual, or not known yet"))
}
