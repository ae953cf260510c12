package driver

import (
	"fmt"
	"runtime/debug"

	"nomad-driver-vault/internal/logtext"

	"github.com/hashicorp/go-hclog"
)

// A panic in the work for one task ends that task with an error, and nothing else: the process of the plugin is every
// task's.

// panicError is what a panic has become, of which the agent's log has the stack. It names what was going on.
type panicError string

func (e panicError) Error() string {
	return fmt.Sprintf("internal error in %s: the agent's log has the stack", string(e))
}

// guard calls f, and returns a panicError in place of a panic.
func guard(logger hclog.Logger, task, what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			logger.Error("panic", "task", task, "in", what, "panic", logtext.Panic(p), "stack", string(debug.Stack()))
			err = panicError(what)
		}
	}()
	return f()
}
