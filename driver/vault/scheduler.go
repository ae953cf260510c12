package vault

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// scheduler runs what is due at one cluster, for all of its sessions: one goroutine sleeps until the earliest deadline, and each chore whose
// time has come runs in a goroutine of its own, which lives only as long as the run. Nothing bounds how many run at once, so those that hang keep
// no other waiting. A session that waits costs a heap entry.
type scheduler struct {
	mu     sync.Mutex
	queue  deadlines
	looped bool          // loop was started
	wake   chan struct{} // cap 1: the earliest deadline may have changed
	ctx    context.Context
	end    context.CancelFunc
	all    sync.WaitGroup
}

// chore is the place of one session, or of a cluster's own token, in the scheduler. Its run starts or does what is due and returns when it wants to
// run next; the zero time means not before Wake is called.
type chore struct {
	s      *scheduler
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

// newScheduler returns a scheduler without a goroutine until there is something to wait for. Clusters have one each.
func newScheduler() *scheduler {
	ctx, cancel := context.WithCancel(context.Background())
	return &scheduler{wake: make(chan struct{}, 1), ctx: ctx, end: cancel}
}

// Close cancels what runs, forgets what is due and returns when every run and every request that makes something has ended.
func (s *scheduler) Close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.all.Wait()
}

// hold has Close wait until release is called. After Close it does nothing.
func (s *scheduler) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return func() {}
	}
	s.all.Add(1)
	return s.all.Done
}

// add gives run a place; it does not run before Wake.
func (s *scheduler) add(run func(context.Context) time.Time) *chore {
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

func (s *scheduler) loop() {
	for next := s.wait(); next != nil; next = s.wait() {
		s.all.Go(func() { next.finish(next.run(next.ctx)) })
	}
}

// wait returns the chore whose time has come, nil at the end.
func (s *scheduler) wait() *chore {
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
func (s *scheduler) due() (*chore, time.Duration) {
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
func (s *scheduler) sleep(wait time.Duration) {
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

// nudge has loop look at the queue again. Call with mu held.
func (s *scheduler) nudge() {
	if !s.looped && s.ctx.Err() == nil {
		s.looped = true
		s.all.Go(s.loop)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// crowd lets as many do something at once as it has room for. Who takes longer than makesRoom is not counted any more, so that those that hang keep
// nobody out for long.
type crowd chan struct{}

// enter waits for a place. The error is that of ctx.
func (c crowd) enter(ctx context.Context) (leave func(), err error) {
	select {
	case c <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-c })
	timer := time.AfterFunc(makesRoom, free)
	return func() {
		timer.Stop()
		free()
	}, nil
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
