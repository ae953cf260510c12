package vault

import (
	"context"
	"errors"
	"sync"
	"time"
)

// createGrace is how long a request that creates something goes on when nobody waits for its answer any more.
const createGrace = 5 * time.Second

const (
	// FirstTimeout is how long Vault may take to answer before a connection that may have gone silent is given up for
	// another one.
	FirstTimeout = 8 * time.Second
	// longestTimeout is the most that a request may take.
	longestTimeout = time.Minute
	// ShortestTimeout is what a request has in any case, however near the end of what it is about.
	ShortestTimeout = 2 * time.Second
	// createFactor is how many times as long a request that creates something may take: what Vault creates for one that is
	// given up is lost.
	createFactor = 3
)

// Timeout is how long a request may take after so many attempts in a row that got no answer in time: twice as long
// after each, since there are Vaults that are slow, but a minute at most.
func Timeout(slow int) time.Duration { return min(FirstTimeout<<min(slow, 6), longestTimeout) }

type (
	waiterKey struct{} // of the context of who waits for a request that creates something
	limitKey  struct{} // of how long a request may take
)

// WithTimeout returns a context in which each request may take that long, once it is sent.
func WithTimeout(ctx context.Context, each time.Duration) context.Context {
	return context.WithValue(ctx, limitKey{}, each)
}

// detachForCreate returns a context for a request that creates something: a login, dynamic credentials. The request
// outlives ctx by up to createGrace, since Vault forgets the database user that it has just created when the request is
// cut off, and nobody revokes that user then. It is sent once. The client's Close waits until done is called, which is
// when the request has returned.
func (c *Client) detachForCreate(ctx context.Context) (creating context.Context, done func()) {
	release := c.creating.begin()
	end, bounded := ctx.Deadline()
	if !bounded {
		end = time.Now().Add(farAway * time.Second)
	}
	creating, cut := context.WithDeadline(context.WithValue(context.WithoutCancel(ctx), waiterKey{}, ctx),
		end.Add(createGrace))
	if each, has := ctx.Value(limitKey{}).(time.Duration); has {
		creating = WithTimeout(creating, min(createFactor*each, longestTimeout))
	}
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			time.AfterFunc(createGrace, cut)
		}
	})
	return creating, func() {
		stop()
		cut()
		release()
	}
}

// creations are the requests under way that create something.
type creations struct {
	all sync.WaitGroup

	mu    sync.Mutex // guards ended
	ended bool
}

// begin has end wait until done is called. After end it does nothing.
func (c *creations) begin() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return func() {}
	}
	c.all.Add(1)
	return c.all.Done
}

// end returns when none is under way.
func (c *creations) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.all.Wait()
}
