package driver

import (
	"errors"
	"fmt"
	"runtime/debug"

	"nomad-driver-vault/internal/logtext"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// A panic in the work for one task ends that task with an error, and nothing else: the process of the plugin is every
// task's.

// panicError is what a panic has become, of which the agent's log has the stack. It names what was going on.
type panicError string

func (e panicError) Error() string {
	return fmt.Sprintf("internal error in %s: the agent's log has the stack", string(e))
}

// guard calls f, and returns a panicError in place of a panic.
func (d *Driver) guard(task, what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			d.logger.Error("panic", "task", task, "in", what, "panic", logtext.Panic(p), "stack", string(debug.Stack()))
			err = panicError(what)
		}
	}()
	return f()
}

// guard is that of the driver, and has the task's goroutine end the task after a panic.
func (t *task) guard(what string, f func() error) error {
	err := t.d.guard(t.record.Key, what, f)
	if errors.As(err, new(panicError)) {
		t.abort(err)
	}
	return err
}

// abort has the task's goroutine end the task with that error. It does not wait.
func (t *task) abort(err error) {
	select {
	case t.aborts <- err:
	default: // it ends already
	}
}

// step runs the task in one state. After a panic the task fails; after another one there it ends without touching the
// process.
func (t *task) step(now stateFunc) (next stateFunc) {
	err := t.d.guard(t.record.Key, "the life of the task", func() error {
		next = now()
		return nil
	})
	switch {
	case err == nil:
		return next
	case t.panicked:
		return t.ended(&drivers.ExitResult{ExitCode: -1, Err: err})
	}
	t.panicked = true
	return func() stateFunc { return t.fail(err) }
}
