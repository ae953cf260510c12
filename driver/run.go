package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/logpipe"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/internal/faults"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
)

const (
	// stopLinger is how long the secrets of a task that was asked to stop wait for its next start: nomad alloc restart
	// starts it at once.
	stopLinger = 2 * time.Second
	// olderLinger is the same for a task that is older than its agent or its plugin. Nomad needs some five seconds to
	// see that its executor and its log collector, which are the children of others, have ended
	// (client/allocrunner/taskrunner/logmon_hook.go, Prestart).
	olderLinger = 10 * time.Second
	// stopGrace is how much longer than its timeout a stop may take. Nomad's drivers kill the process at the timeout and
	// wait 15 seconds for its end (drivers/shared/executor/executor_linux_cgo.go, Shutdown).
	stopGrace = 30 * time.Second
	// stopTries is how long Nomad may ask again for a stop that fails. It tries five times in six minutes, and then takes
	// the task for ended (client/allocrunner/taskrunner/task_runner.go, killTask).
	stopTries = 10 * time.Minute
	// killWithin bounds the attempt to kill what a stop has not ended by then.
	killWithin = 10 * time.Second
)

// abandonAfter is how long the end of a task waits for an attempt to make a generation. One that waits for Vault or
// Nomad gives up at once; a template that does not end is left to itself, and finds nothing to ask any more.
const abandonAfter = time.Second

// task is one run of a task, from its start to its end. Only the goroutine of run acts on it, and owns the fields that
// say so. The others do not change after the start.
type task struct {
	recorder

	d           *Driver
	cfg         *drivers.TaskConfig // as Nomad gave it: without our secrets
	conf        config.Task
	op          config.Operator
	credentials *credentials.Set
	renderer    *render.Renderer
	doors       *doors
	pipes       *logpipe.Pipes
	ctx         context.Context // ended with the task: what waits for Vault, Nomad or the process gives up
	cancel      context.CancelFunc

	said    atomic.Pointer[status.Line] // the last line of the task's log
	warned  atomic.Pointer[status.Line] // the last warning there
	waiting atomic.Pointer[string]      // for what a start waits
	shown   atomic.Pointer[shown]

	starting      atomic.Bool   // the first generation is being rendered
	older         atomic.Bool   // than the agent or the plugin that serves it
	begun         chan struct{} // closed when the start, or the recovery, is over, whether it succeeded or not
	acknowledging sync.Once
	acknowledged  chan struct{} // closed when the agent has asked about the task, and so has the answer to its start

	stops   chan stopRequest
	signals chan signalRequest
	aborts  chan error    // has the error that the task is to end with, once something in it is out of order
	done    chan struct{} // closed when the task has ended for good; result is set then
	result  *drivers.ExitResult

	// Owned by the goroutine of run, and before it by that of the start or the recovery.

	exit          <-chan *drivers.ExitResult // of the present process
	current       *render.Generation         // the newest one on disk
	pending       render.Change              // what was not delivered to the process yet
	actTimer      <-chan time.Time           // fires when it is to be delivered
	renderTimer   <-chan time.Time           // fires when to render: no change has come for a while
	renderBy      time.Time                  // when to render though changes keep coming
	reminder      *time.Ticker               // of what is wrong, for the agent's log
	rendered      chan rendered              // of the attempt under way, nil when there is none
	noReaderSince time.Time                  // since when a restart waits for a log collector
	retry         sched.Backoff
	overdue       map[*config.ChangeScript]<-chan error // scripts whose timeout is over and that have not ended
	problem       problem                               // what kept the last attempt from becoming a generation
	undelivered   problem                               // what kept a change from being delivered
	panicked      bool                                  // the task ends because of that
	stopped       bool                                  // Nomad asked for the end
	stopBy        <-chan time.Time                      // fires when Nomad has given up a stop that fails; nil: none has
	forsaken      bool                                  // it ends although its process may not have ended

	tookOver  time.Time // from a plugin process before this one; zero: this one has started it
	recovered bool      // taken over from an earlier plugin process, whose death may have stalled the log collector
}

// Format keeps what the task was given out of logs, errors and panics, whatever the verb.
func (t *task) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[task %s]", t.cfg.ID) }

// stateFunc is a state of the task, run by its goroutine. It returns the next state, nil at the end.
type stateFunc func() stateFunc

func (t *task) run() {
	t.reminder = time.NewTicker(remindEvery)
	defer t.reminder.Stop()
	for next := t.running; next != nil; {
		t.show()
		next = t.step(next)
	}
	t.giveUp()
	if t.d.ctx.Err() == nil {
		_ = t.guard("its end", func() error { // the log has it
			t.finish()
			return nil
		})
	}
}

// giveUp ends what waits for Vault, Nomad or the process.
func (t *task) giveUp() {
	t.cancel()
	if t.rendered == nil {
		return
	}
	select {
	case <-t.rendered:
	case <-time.After(abandonAfter):
	}
}

// running waits for whatever comes first. It never waits for Vault: rendering has a goroutine of its own.
func (t *task) running() stateFunc {
	select {
	case <-t.d.ctx.Done():
		return nil
	case result := <-t.exit:
		return t.ended(result)
	case request := <-t.stops:
		return t.stopping(request, t.running)
	case <-t.stopBy:
		return t.forsake
	case request := <-t.signals:
		t.forward(request)
	case <-t.credentials.Changed():
		t.save()
		t.debounce()
	case <-t.renderTimer:
		t.render(false)
	case <-t.doors.current:
		if !t.problem.is() && len(t.credentials.Problems()) == 0 {
			t.doors.use(t.current)
		}
	case r := <-t.doors.rereads:
		t.doors.ask(r)
		t.readForDoors()
	case <-t.doors.idled:
		t.doors.retireIdle()
	case r := <-t.rendered:
		t.handleRendered(r)
	case <-t.actTimer:
		return t.act
	case err := <-t.aborts:
		return t.fail(err)
	case <-t.reminder.C:
		t.remind()
	}
	return t.running
}

// failpoint marks a step of the task's life for tests: see package faults.
func (t *task) failpoint(step string) { faults.Point(t.record.Key, step) }

// stopping does what Nomad asked. After an error the task stays in the state that it was in, and Nomad asks again.
func (t *task) stopping(request stopRequest, back stateFunc) stateFunc {
	t.failpoint("stopping")
	overdue := time.After(request.timeout + stopGrace)
	over := make(chan error, 1)
	go func() { over <- t.stopProcess(request.timeout, request.signal) }()
	select {
	case err := <-over:
		if err != nil {
			if t.stopBy == nil {
				t.stopBy = time.After(stopTries)
			}
			request.reply <- err
			return back
		}
	case <-overdue:
		return t.forsake
	case <-t.d.ctx.Done():
		return nil
	}
	t.stopped = true
	request.reply <- nil
	select {
	case result := <-t.exit:
		return t.ended(result)
	case <-overdue:
		return t.forsake
	case <-t.d.ctx.Done():
		return nil
	}
}

// stopProcess asks the wrapped driver to stop the process. It returns when that has ended, or when it was killed.
func (t *task) stopProcess(timeout time.Duration, signal string) error {
	return t.guard("stopping the process", func() error {
		return ignoreUnknown(t.d.inner.StopTask(t.cfg.ID, timeout, signal))
	})
}

// forsake ends a task that the wrapped driver has not ended long after it was to be stopped. Its process is killed
// where that can be found. The credentials are given up whatever comes of it.
func (t *task) forsake() stateFunc {
	t.stopped, t.forsaken = true, true
	killed := make(chan error, 1)
	go func() { killed <- t.guard("killing the process", func() error { return t.d.parking.kill(t.cfg) }) }()
	outcome := "and was killed"
	select {
	case err := <-killed:
		if err != nil {
			outcome = fmt.Sprintf("and may be left running: %v", err)
		}
	case <-time.After(killWithin):
		outcome = fmt.Sprintf("and may be left running as %s of allocation %s: the wrapped driver does not answer",
			t.cfg.Name, t.cfg.AllocID)
	case <-t.d.ctx.Done():
		return nil
	}
	err := fmt.Errorf("the process has not ended long after its kill_timeout %s", outcome)
	t.speak(hclog.Error, err.Error()+"; its credentials are revoked now")
	return t.ended(&drivers.ExitResult{ExitCode: -1, Err: err})
}

// forward passes a signal on. It does not wait for the wrapped driver, which may hang.
func (t *task) forward(request signalRequest) {
	go func() {
		request.reply <- t.guard("sending a signal", func() error { return t.d.inner.SignalTask(t.cfg.ID, request.name) })
	}()
}

// forwardOrDefer sends a signal to a process that is about to end. Where that one is gone already, it reports false
// and keeps the signal for the next process.
func (t *task) forwardOrDefer(request signalRequest) bool {
	if t.d.inner.SignalTask(t.cfg.ID, request.name) == nil {
		request.reply <- nil
		return true
	}
	go func() { request.reply <- t.signal(request.name) }()
	return false
}

func (t *task) ended(result *drivers.ExitResult) stateFunc {
	t.result = result
	return nil
}

// fail ends the task with an error of ours.
func (t *task) fail(err error) stateFunc {
	t.warn("ended: %v", err)
	_ = t.destroyProcess() // there may be no process any more; what is left is said, and swept later
	return t.ended(&drivers.ExitResult{ExitCode: -1, Err: err})
}

// finish gives up what belongs to this run and publishes the result. The log pipes are closed before, so that Nomad's
// log collector sees the end of the log. The credentials are parked for the next run.
func (t *task) finish() {
	defer close(t.done)
	t.failpoint("ended")
	t.doors.closeAll()
	t.credentials.Pause()
	if t.shares() {
		t.say("ended; what it has put into alloc/ is kept current until no task of the allocation runs")
	}
	t.removeMoved()
	t.pipes.Close()
	defer t.failpoint("left")
	if t.shares() {
		err := t.hold()
		if err == nil {
			return
		}
		t.d.logger.Warn("what a task has left for others does not stay", "task", t.record.Key, "error", err)
	}
	linger := t.op.Linger
	switch {
	case t.forsaken:
		linger = 0
	case t.stopped && t.older.Load():
		linger = min(linger, olderLinger)
	case t.stopped:
		linger = min(linger, stopLinger)
	}
	t.d.parking.park(t.parkedRun(), linger)
}

// removeMoved removes the files that Nomad may move to the next allocation as soon as this one has ended: local/ and,
// of all tasks, alloc/data/ (client/allocdir/alloc_dir.go, Move). The next run of the same task writes its files anew
// before anything runs. Where the task ended by itself, another task of the allocation may still read alloc/data/.
// Of a run that is held the others need nothing else.
func (t *task) removeMoved() {
	moved := slices.DeleteFunc(t.renderer.Paths(), func(p string) bool {
		switch {
		case strings.HasPrefix(p, "alloc/data/"):
			return !t.stopped
		case strings.HasPrefix(p, t.cfg.Name+"/local/"):
			return false
		}
		return shared(p) || !t.shares()
	})
	root, err := os.OpenRoot(t.cfg.AllocDir)
	if err != nil {
		return // the allocation is gone, and its files with it
	}
	defer root.Close()
	if err := template.Remove(root, t.cfg.Name, moved); err != nil {
		t.d.logger.Warn("rendered files are left behind", "task", t.record.Key, "error", err)
	}
}

// acknowledge notes that the agent has asked about the task, and so knows of it.
func (t *task) acknowledge() {
	t.acknowledging.Do(func() {
		close(t.acknowledged)
		t.remember(func(r *state.Record) { r.Unacknowledged = false })
	})
}

// reapUnacknowledged ends a task that the agent does not know: it died while the task started, and does not start the
// task again because the job was stopped meanwhile. Of a task that it knows the agent asks as soon as it has stored
// the answer to the start (client/allocrunner/taskrunner/task_runner.go, Run).
func (t *task) reapUnacknowledged() error {
	for waited := unclaimedAfter; ; waited += unclaimedAfter {
		select {
		case <-t.acknowledged:
			return nil
		case <-t.d.ctx.Done():
			return nil
		case <-time.After(unclaimedAfter):
		}
		if waited < claimedWithin && !gone(t.cfg.AllocDir) {
			continue
		}
		t.warn("ended: the agent has not asked about the task since its start")
		err := t.d.destroy(t, t.conf.KillAfter, t.conf.KillSignal)
		if err == nil {
			return nil
		}
		t.d.logger.Warn("a process may be left behind", "task", t.record.Key, "error", err)
	}
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
