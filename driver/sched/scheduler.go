// Package sched runs what is due: a Scheduler keeps deadlines, Lanes bound how much is done at once without letting
// what hangs keep the rest waiting, and Backoff paces retries. It knows nothing of what it runs.
package sched

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Scheduler runs chores when they are due. One goroutine sleeps until the earliest deadline; each chore whose time has
// come runs in a goroutine of its own, which lives only as long as the run. Nothing bounds how many run at once, so a
// chore that hangs delays no other. A chore that waits costs a heap entry.
type Scheduler struct {
	ctx  context.Context
	end  context.CancelFunc
	wake chan struct{}  // has room for one: the earliest deadline may have changed
	all  sync.WaitGroup // the loop and every run

	mu     sync.Mutex // guards what follows
	queue  deadlines
	looped bool // the loop was started
}

// Chore is something that a Scheduler runs again and again. Its run function does what is due and returns when it wants
// to run next; the zero time means: not before Wake is called.
type Chore struct {
	s      *Scheduler
	run    func(context.Context) time.Time
	ctx    context.Context
	cancel context.CancelFunc

	// The scheduler's mu guards what follows.
	at      time.Time
	index   int           // in the scheduler's queue, -1 when not queued
	running chan struct{} // closed when the present run has ended, nil when none runs
	again   time.Time     // the earliest time that Wake asked for during the present run
	ended   bool
}

// New returns a scheduler. It has no goroutine until there is something to wait for.
func New() *Scheduler {
	ctx, cancel := context.WithCancel(context.Background())
	return &Scheduler{wake: make(chan struct{}, 1), ctx: ctx, end: cancel}
}

// Close cancels what runs, forgets what is due and returns when every run has ended. It may be called again.
func (s *Scheduler) Close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.all.Wait()
}

// Add returns a chore for run, which first runs when Wake has been called.
func (s *Scheduler) Add(run func(context.Context) time.Time) *Chore {
	ctx, cancel := context.WithCancel(s.ctx)
	return &Chore{s: s, run: run, ctx: ctx, cancel: cancel, index: -1}
}

// Context is the chore's own: End and the scheduler's Close cancel it.
func (c *Chore) Context() context.Context { return c.ctx }

// Wake has the chore run at that time or earlier.
func (c *Chore) Wake(at time.Time) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	switch {
	case c.ended:
	case c.running != nil:
		c.again = Earlier(c.again, at)
	case c.index < 0:
		c.at = at
		heap.Push(&c.s.queue, c)
	case at.Before(c.at):
		c.at = at
		heap.Fix(&c.s.queue, c.index)
	}
	c.s.nudge()
}

// End cancels the run under way, waits for it, and never runs the chore again.
func (c *Chore) End() {
	c.cancel()
	c.s.mu.Lock()
	c.ended = true
	if c.index >= 0 {
		heap.Remove(&c.s.queue, c.index)
	}
	running := c.running
	c.s.mu.Unlock()
	if running != nil {
		<-running
	}
}

func (s *Scheduler) loop() {
	for next := s.wait(); next != nil; next = s.wait() {
		s.all.Go(func() { next.finish(next.run(next.ctx)) })
	}
}

// wait returns the chore whose time has come, nil at the end.
func (s *Scheduler) wait() *Chore {
	for s.ctx.Err() == nil {
		next, pause := s.due()
		if next != nil {
			return next
		}
		s.sleep(pause)
	}
	return nil
}

// due takes the chore whose time has come out of the queue; without one it says how long to wait, negative for ever.
func (s *Scheduler) due() (*Chore, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return nil, -1
	}
	if pause := time.Until(s.queue[0].at); pause > 0 {
		return nil, pause
	}
	c := heap.Pop(&s.queue).(*Chore)
	c.running = make(chan struct{})
	return c, 0
}

// sleep waits for that long, negative: for ever, and is cut short when the queue changes or the scheduler is closed.
func (s *Scheduler) sleep(wait time.Duration) {
	var alarm <-chan time.Time
	if wait >= 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-alarm:
	case <-s.wake:
	case <-s.ctx.Done():
	}
}

// finish ends a run and queues the next one.
func (c *Chore) finish(next time.Time) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	close(c.running)
	c.running = nil
	next = Earlier(next, c.again)
	c.again = time.Time{}
	if c.ended || next.IsZero() {
		return
	}
	c.at = next
	heap.Push(&c.s.queue, c)
	c.s.nudge()
}

// nudge has loop look at the queue again. Call with mu held.
func (s *Scheduler) nudge() {
	if !s.looped && s.ctx.Err() == nil {
		s.looped = true
		s.all.Go(s.loop)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Earlier returns the earlier of two times. The zero time means never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// Later returns the later of two times.
func Later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// deadlines is a min-heap of chores by time.
type deadlines []*Chore

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *deadlines) Push(x any) {
	c := x.(*Chore)
	c.index = len(*d)
	*d = append(*d, c)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	c := (*d)[last]
	(*d)[last], *d = nil, (*d)[:last]
	c.index = -1
	return c
}
