package template

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// What templates of one task take is bounded together, however many there are, and all tasks of the node share a small
// pool of places in which templates execute. One that waits for Vault or Nomad, or for what is slow, has no place
// meanwhile.

const (
	maxOutputs = 2 * MaxOutput    // of all templates of a task
	maxCode    = 1 << 20          // bytes within delimiters of all templates of a task: see actions
	maxText    = 2 * MaxOutput    // of their texts
	maxBusy    = 20 * time.Second // that the templates of a task execute, once each
	// turn is how long a template executes before another one that waits has its place.
	turn = 10 * time.Millisecond
)

var (
	errAllOutput = fmt.Errorf("the templates of the task have results of more than the %d bytes allowed: give them less",
		maxOutputs)
	errAllCode = fmt.Errorf("the task's templates have more than %d bytes in their actions: give them less", maxCode)
	errAllText = fmt.Errorf("the task's templates have more than %d bytes of text: give them less", maxText)
	errAllTime = fmt.Errorf("the task's templates execute for more than %s: give them less", maxBusy)
)

// places has the templates that execute.
var places = make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))

// slowCalls has the calls that take seconds. One whose template has been given up stays there until it ends.
var slowCalls = make(chan struct{}, 1)

// Begin is called before the templates of the task are executed once more.
func (b *Budget) Begin() {
	b.turn <- struct{}{}
	b.made, b.out, b.busy = 0, 0, 0
	<-b.turn
}

// admit takes what a template's own text needs.
func (b *Budget) admit(s Spec) error {
	b.code += actions(s)
	b.text += len(s.Data)
	switch {
	case b.code > maxCode:
		return errAllCode
	case b.text > maxText:
		return errAllText
	}
	return nil
}

// A place is that of one template in the pool.
type place struct {
	budget *Budget
	since  time.Time // zero while it has none
}

// enter waits for the place.
func (p *place) enter(ctx context.Context) error {
	select {
	case p.budget.turn <- struct{}{}:
	case <-ctx.Done():
		return &failed{err: ctx.Err()}
	}
	if err := p.queue(ctx); err != nil {
		<-p.budget.turn
		return err
	}
	return nil
}

func (p *place) queue(ctx context.Context) error {
	select {
	case places <- struct{}{}:
		p.since = time.Now()
		return nil
	case <-ctx.Done():
		return &failed{err: ctx.Err()}
	}
}

// leave gives it up. A template whose time is over may have none.
func (p *place) leave() {
	if !p.since.IsZero() {
		p.pause()
		<-p.budget.turn
	}
}

func (p *place) pause() {
	p.budget.busy += time.Since(p.since)
	p.since = time.Time{}
	<-places
}

// over is an error once there is no time left. Until then it lets others have their turn, too.
func (p *place) over(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return &failed{err: err}
	}
	if p.since.IsZero() || time.Since(p.since) < turn {
		return nil
	}
	p.pause()
	if p.budget.busy > maxBusy {
		<-p.budget.turn
		return &failed{err: errAllTime}
	}
	if err := p.queue(ctx); err != nil { // waiters are served in their order
		<-p.budget.turn
		return err
	}
	return nil
}

// outside calls what waits for others, without a place.
func outside[A any](x *execution, ask func() (A, error)) (A, error) {
	if x.place.since.IsZero() { // its time is over
		return ask()
	}
	x.place.leave()
	answer, err := ask()
	if again := x.place.enter(x.ctx); err == nil {
		err = again
	}
	return answer, err
}
