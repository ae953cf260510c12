package vault

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Scheduler runs what is due, for every session of the plugin: one goroutine sleeps until the earliest deadline and hands
// the work to a bounded number of others, which live only while there is work. A task that waits costs a heap entry.
type Scheduler struct {
	mu    sync.Mutex
	queue deadlines
	wake  chan struct{} // cap 1: the earliest deadline may have changed
	slots chan struct{} // one token for each worker that may run at once
	ctx   context.Context
	end   context.CancelFunc
	all   sync.WaitGroup
}

// chore is the place of one session, or of a cluster's own token, in the scheduler. Its run does all that is due and returns when it wants to run next;
// the zero time means not before Wake is called.
type chore struct {
	s      *Scheduler
	run    func(context.Context) time.Time
	ctx    context.Context
	cancel context.CancelFunc

	// guarded by s.mu
	at      time.Time
	index   int           // in s.queue, -1 when not queued
	running chan struct{} // closed when the present run has ended, nil when none runs
	again   time.Time     // asked for while running
	ended   bool
}

// NewScheduler starts a scheduler with that many workers at most. A Vault that hangs holds workers for a minute each, so
// clusters that shall not wait for each other have a scheduler each.
func NewScheduler(workers int) *Scheduler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Scheduler{wake: make(chan struct{}, 1), slots: make(chan struct{}, workers), ctx: ctx, end: cancel}
	s.all.Go(s.loop)
	return s
}

// Close cancels what runs, forgets what is due and returns when every worker and every request that makes something has ended.
func (s *Scheduler) Close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.all.Wait()
}

// hold has Close wait until release is called. After Close it does nothing.
func (s *Scheduler) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return func() {}
	}
	s.all.Add(1)
	return s.all.Done
}

// add gives run a place; it does not run before Wake.
func (s *Scheduler) add(run func(context.Context) time.Time) *chore {
	ctx, cancel := context.WithCancel(s.ctx)
	return &chore{s: s, run: run, ctx: ctx, cancel: cancel, index: -1}
}

// Wake asks that the chore runs at that time or earlier.
func (c *chore) Wake(at time.Time) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	switch {
	case c.ended:
	case c.running != nil:
		c.again = earlier(c.again, at)
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
func (c *chore) End() {
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

// loop takes a worker first and then the chore: one that waited for a worker could not be ended before it got one.
func (s *Scheduler) loop() {
	for s.worker() {
		next := s.wait()
		if next == nil {
			return
		}
		s.all.Go(func() {
			next.finish(next.run(next.ctx))
			<-s.slots
		})
	}
}

// worker waits for one to be free; false means the end.
func (s *Scheduler) worker() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// wait returns the chore whose time has come, nil at the end.
func (s *Scheduler) wait() *chore {
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
func (s *Scheduler) due() (*chore, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return nil, -1
	}
	if pause := time.Until(s.queue[0].at); pause > 0 {
		return nil, pause
	}
	c := heap.Pop(&s.queue).(*chore)
	c.running = make(chan struct{})
	return c, 0
}

// sleep waits for that long, for a changed queue, or for the end.
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
func (c *chore) finish(next time.Time) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	close(c.running)
	c.running = nil
	next = earlier(next, c.again)
	c.again = time.Time{}
	if c.ended || next.IsZero() {
		return
	}
	c.at = next
	heap.Push(&c.s.queue, c)
	c.s.nudge()
}

func (s *Scheduler) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// earlier returns the earlier of two times, of which a zero one means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// deadlines is a min-heap of chores by time.
type deadlines []*chore

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *deadlines) Push(x any) {
	c := x.(*chore)
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
