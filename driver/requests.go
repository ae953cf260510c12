package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
)

type stopRequest struct {
	timeout time.Duration
	signal  string
	reply   chan error
}

type signalRequest struct {
	name  string
	reply chan error
}

// errPluginEnds answers what comes while the plugin ends. Nomad asks the next plugin process.
var errPluginEnds = errors.New("the plugin is ending")

// stop asks run to stop the task, and waits until it has ended for good: who starts it anew must find what it left.
func (t *task) stop(timeout time.Duration, signal string) error {
	request := stopRequest{timeout, signal, make(chan error, 1)}
	select {
	case t.stops <- request:
		select {
		case err := <-request.reply:
			if err != nil {
				return err
			}
		case <-t.done: // it has ended in the middle of that
			return nil
		case <-t.d.ctx.Done():
			return errPluginEnds
		}
	case <-t.done:
		return nil
	case <-t.d.ctx.Done():
		return errPluginEnds
	}
	select {
	case <-t.done:
		return nil
	case <-t.d.ctx.Done():
		return errPluginEnds
	}
}

// signal asks run to pass a signal on. Between the two processes of a restart it waits for the new one.
func (t *task) signal(name string) error {
	request := signalRequest{name, make(chan error, 1)}
	select {
	case t.signals <- request:
		select {
		case err := <-request.reply:
			return err
		case <-t.done:
			return fmt.Errorf("send %s: the task has ended", name)
		case <-t.d.ctx.Done():
			return errPluginEnds
		}
	case <-t.done:
		return fmt.Errorf("send %s: the task has ended", name)
	case <-t.d.ctx.Done():
		return errPluginEnds
	}
}

// stats forwards the statistics of one process after the other; in may be nil.
func (t *task) stats(ctx context.Context, in <-chan *drivers.TaskResourceUsage,
	out chan<- *drivers.TaskResourceUsage, interval time.Duration) {
	defer close(out)
	for {
		if in != nil && !copyAll(ctx, in, out) {
			return
		}
		select { // the process ended: until there is another, or none for good
		case <-ctx.Done():
			return
		case <-t.done:
			return
		case <-time.After(time.Second):
		}
		in, _ = t.d.inner.TaskStats(ctx, t.cfg.ID, interval)
	}
}

// copyAll forwards one stream to its end; false means that ctx ended before.
func copyAll(ctx context.Context, in <-chan *drivers.TaskResourceUsage, out chan<- *drivers.TaskResourceUsage) bool {
	for usage := range in {
		select {
		case out <- usage:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
