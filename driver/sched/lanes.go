package sched

import (
	"context"
	"sync"
	"time"
)

// StuckAfter is how long something that is under way takes up a lane. What takes longer may hang, and keeps nothing
// else waiting.
const StuckAfter = time.Second

// Lanes bounds how many do something at once. Whoever takes longer than StuckAfter is no longer counted.
type Lanes chan struct{}

// NewLanes returns n free lanes.
func NewLanes(n int) Lanes { return make(Lanes, n) }

// Enter waits for a free lane; call leave when done. The error is that of ctx.
func (l Lanes) Enter(ctx context.Context) (leave func(), err error) {
	select {
	case l <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-l })
	timer := time.AfterFunc(StuckAfter, free)
	return func() {
		timer.Stop()
		free()
	}, nil
}
