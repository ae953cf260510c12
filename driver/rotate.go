package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/logpipe"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// The way from a change to the process that knows of it: debounce, render, handleRendered, and then act once.

const (
	// rerender bounds one attempt to make the next generation of a running task; there is always another.
	rerender = 30 * time.Second
	// logReaderTimeout is how long a restart waits for a log collector until that is reported. An agent
	// that is being restarted has its log collectors back by then; nobody else starts one but a start of the task.
	logReaderTimeout = time.Minute
	// apiWithin is how long an agent may take, after a task was taken over, to make the socket of the task API anew,
	// and apiEvery how often that is looked at. It recovers the task before
	// (client/allocrunner/taskrunner/task_runner.go, Restore).
	apiWithin, apiEvery = 15 * time.Second, time.Second / 2
)

// rendered is the result of one attempt to render.
type rendered struct {
	next  *render.Generation
	err   error
	fresh bool // secrets without a lease were read anew
}

// Format keeps the generation out of logs, errors and panics.
func (r rendered) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[rendered: %v %v]", r.next, r.err) }

// debounce delays the next render by the longest wait of any block, counted from the latest change. Changes that keep
// coming do not delay it beyond the longest maximum.
func (t *task) debounce() {
	var least, most time.Duration
	for _, b := range t.conf.Blocks() {
		least, most = max(least, b.Common().WaitMin), max(most, b.Common().WaitMax)
	}
	now := time.Now()
	if t.renderBy.IsZero() {
		t.renderBy = now.Add(most)
	}
	t.renderTimer = time.After(min(least, max(0, t.renderBy.Sub(now))))
}

// render starts to render the next generation. While another attempt is under way it is put off. With fresh set,
// secrets without a lease are read anew.
func (t *task) render(fresh bool) {
	t.renderTimer = nil
	if t.rendered != nil {
		t.renderTimer = time.After(time.Second)
		return
	}
	t.renderBy = time.Time{}
	result := make(chan rendered, 1)
	t.rendered = result
	last := t.current
	go func() {
		ctx, cancel := context.WithTimeout(t.ctx, rerender)
		defer cancel()
		r := rendered{fresh: fresh}
		r.err = t.guard("rendering", func() (err error) {
			r.next, err = t.renderer.Render(ctx, last, fresh)
			return err
		})
		result <- r
	}()
}

// handleRendered writes a new generation and plans what the process is told of it: what differs from what was
// delivered, so that a change that was taken back in time is none. After an error the last known good generation
// stays.
func (t *task) handleRendered(r rendered) {
	t.rendered = nil
	defer t.answerDoors(r.fresh)
	// After a problem it is written in any case: a part of the generation that failed may be there, and the secrets be
	// the old ones again.
	if r.err == nil && (t.problem.is() || !maps.Equal(r.next.Sums, t.current.Sums)) {
		t.failpoint("rendered")
		r.err = t.write(r.next)
		t.failpoint("written")
	}
	if r.err != nil {
		t.save() // a new secret may have been read all the same
		t.keepLastGood(r.err)
		return
	}
	was := t.problem
	t.current, t.problem = r.next, problem{}
	t.doors.use(t.current)
	t.retry.Reset()
	t.pending = r.next.Diff(t.record.Delivered)
	switch {
	case t.pending.Acts() && t.actTimer == nil:
		t.actTimer = time.After(t.pending.Delay())
		t.save()
	case t.pending.Acts():
		t.save()
	default:
		switch {
		case t.pending.Silent:
			t.say("rendered anew: %s; the task is not told (change_mode noop)", t.pending)
			t.event("Secrets changed: %s; noop", t.pending)
		case t.pending.Doors:
			t.say("rendered anew: %s; used from the next call on", t.pending)
			t.event("Secrets changed: %s; used from the next call on", t.pending)
		default:
			t.solved(was)
			t.solved(t.undelivered)
		}
		t.commitDelivered(t.pending.Grace())
	}
	t.failpoint("planned")
}

// answerDoors answers the doors that wait for what is read anew, once it was.
func (t *task) answerDoors(fresh bool) {
	if fresh {
		t.doors.answer()
		return
	}
	t.readForDoors()
}

// readForDoors reads anew what doors wait for, unless an attempt is under way: that may not read it, and answerDoors
// comes after it.
func (t *task) readForDoors() {
	if t.rendered == nil && len(t.doors.waiting) > 0 {
		t.doors.readAt = time.Now()
		t.render(true)
	}
}

// keepLastGood keeps the generation in use and tries again later. The same error is reported once.
func (t *task) keepLastGood(err error) {
	if errors.Is(err, taskapi.ErrUnavailable) && time.Since(t.tookOver) < apiWithin {
		t.renderTimer = time.After(apiEvery)
		return
	}
	t.renderTimer = time.After(t.retry.Next())
	if !t.problem.isNew("the last known good secrets stay in use: " + err.Error()) {
		return
	}
	t.warn("%s", t.problem.text)
	if !vault.Transient(err) { // the session has reported the outage
		t.event("Secrets not updated: %v", err)
		t.problem.event = true
	}
}

// commitDelivered records that the process now uses the current generation, and has the leases that it replaced
// revoked after grace. They are left to end by their TTL when grace is negative, or when a script has failed and it
// is not known whether the process still uses them.
func (t *task) commitDelivered(grace time.Duration) {
	if t.record.Unverified {
		grace = -1
	}
	t.pending, t.actTimer, t.noReaderSince, t.undelivered = render.Change{}, nil, time.Time{}, problem{}
	t.failpoint("told")
	t.doors.retireLater(t.current.Snapshot, grace)
	t.failpoint("committed")
	t.remember(func(r *state.Record) { use(r, t.current) })
}

// act takes the one action that all changes since the last one ask for. A restart replaces every other: the new
// process reads everything anew. Otherwise each script runs, and then each signal is sent, once.
func (t *task) act() stateFunc {
	if t.pending.Restart {
		return t.restart
	}
	return t.runActions(t.pending.Actions(), progress{level: hclog.Info})
}

// progress is what has come of the actions so far.
type progress struct {
	did    []string      // for the log
	failed []string      // those of them that are to be tried again
	undone render.Change // the scripts and signals of these
	level  hclog.Level   // of the line about it: a script that failed needs a person
}

// runActions runs the actions that are left, one after the other. Each may take its time: the end of the process, a
// stop and a signal do not wait for it.
func (t *task) runActions(rest []render.Action, so progress) stateFunc {
	if len(rest) == 0 {
		return func() stateFunc { return t.actionsDone(so) }
	}
	ended := make(chan error, 1)
	go func() { ended <- t.guard("telling the task", func() error { return t.runAction(rest[0]) }) }()
	var telling stateFunc
	telling = func() stateFunc {
		select {
		case <-t.d.ctx.Done():
			return nil
		case result := <-t.exit:
			return t.ended(result)
		case request := <-t.stops:
			return t.stopping(request, telling)
		case <-t.stopBy:
			return t.forsake
		case request := <-t.signals:
			t.forward(request)
			return telling
		case err := <-ended:
			return t.actionDone(rest, so, err)
		}
	}
	return telling
}

// actionDone runs after the first of the actions. A script that ran is not run again, however it ended: what it did
// before it failed may not bear that. Whether the process uses what is new is then not known.
func (t *task) actionDone(rest []render.Action, so progress, err error) stateFunc {
	a := rest[0]
	if err == nil {
		so.did = append(so.did, a.Done())
		return t.runActions(rest[1:], so)
	}
	failed := fmt.Sprintf("%s failed: %v", a, err)
	if a.Script != nil && a.Script.FailOnError {
		t.report(hclog.Warn, failed)
		return t.fail(fmt.Errorf("%s: %w", a, err))
	}
	so.did = append(so.did, failed)
	if so.level = hclog.Warn; errors.As(err, new(scriptError)) {
		t.remember(func(r *state.Record) { r.Unverified = true })
		return t.runActions(rest[1:], so)
	}
	so.failed, so.undone = append(so.failed, failed), so.undone.Join(a.Change())
	return t.runActions(rest[1:], so)
}

// actionsDone runs after every action was attempted. Those that did not reach the process are tried again, and until
// they succeed the old leases are kept, because the process may still use them. The same failure is reported once.
func (t *task) actionsDone(so progress) stateFunc {
	did := strings.Join(so.did, ", ")
	if !so.undone.Acts() {
		t.report(so.level, did)
		t.commitDelivered(t.pending.Grace())
		return t.running
	}
	if t.undelivered.isNew(strings.Join(so.failed, ", ")) {
		t.report(so.level, did+"; trying again")
		t.undelivered.event = true
	}
	t.remember(func(r *state.Record) { r.Delivered = t.current.DeliveredExcept(so.undone, r.Delivered) })
	t.pending = t.current.Diff(t.record.Delivered)
	t.actTimer = time.After(t.retry.Next())
	return t.running
}

// report says what has come of a change.
func (t *task) report(level hclog.Level, did string) {
	t.speak(level, fmt.Sprintf("%s changed; %s", t.pending, did))
	t.event("Secrets changed: %s; %s", t.pending, did)
}

// runAction runs a script or sends a signal. An error other than a scriptError means that it did not reach the
// process.
func (t *task) runAction(a render.Action) error {
	if a.Script != nil {
		return t.script(a.Script)
	}
	return t.d.inner.SignalTask(t.cfg.ID, a.Signal)
}

// scriptError says how a script failed that did run.
type scriptError string

func (e scriptError) Error() string { return string(e) }

// script runs a change_script in the task. One that exceeds its timeout is left running, and is not started again
// before it has ended. Actions run one at a time, so nobody else uses overdue.
//
// The timeout is ours: docker waits for the end of the output all the same, and the executor of exec panics when the
// script ends later, which ends the task (Nomad v1.11.3: drivers/docker/handle.go, Exec;
// drivers/shared/executor/executor_linux_cgo.go, handleExecWait).
func (t *task) script(s *config.ChangeScript) error {
	select {
	case <-t.overdue[s]: //nolint:errcheck // how it ended was said when its timeout was over
	default:
		if t.overdue[s] != nil {
			return errors.New("the last one is still running")
		}
	}
	delete(t.overdue, s)
	ended := make(chan error, 1)
	go func() { ended <- t.guard("change_script", func() error { return t.exec(s) }) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(s.Limit):
		t.overdue[s] = ended
		return scriptError(fmt.Sprintf("it did not end within its timeout of %s", s.Limit))
	}
}

// exec runs a change_script to its end.
func (t *task) exec(s *config.ChangeScript) error {
	const unlimited = 24 * time.Hour
	result, err := t.d.inner.ExecTask(t.cfg.ID, append([]string{s.Command}, s.Args...), unlimited)
	if err == nil && !result.ExitResult.Successful() {
		err = scriptError(fmt.Sprintf("exit code %d", result.ExitResult.ExitCode))
	}
	return err
}

// restart stops the process and starts it with the current generation. Nomad does not notice: the task runs on, its
// log stays open, and no restart attempt is spent.
func (t *task) restart() stateFunc {
	if err := t.pipes.Open(); err != nil {
		return t.waitForLogReader(err)
	}
	select {
	case result := <-t.exit: // it has ended by itself, which is for Nomad to judge
		return t.ended(result)
	default:
	}
	t.failpoint("restarting")
	return t.halt()
}

// waitForLogReader puts a restart off while the task has no log collector: the new process would block on its first
// lines of output. The old process goes on with the last known good secrets. The restart is tried again without end,
// since the agent may be about to start a log collector.
func (t *task) waitForLogReader(err error) stateFunc {
	if t.noReaderSince.IsZero() {
		t.noReaderSince = time.Now()
	}
	if time.Since(t.noReaderSince) > logReaderTimeout && t.undelivered.isNew(fmt.Sprintf("the restart waits: %v", err)) {
		t.report(hclog.Warn, t.undelivered.text)
		t.undelivered.event = true
	}
	t.actTimer = time.After(time.Second)
	return t.running
}

// halt ends the process, by force where it does not stop. The job's kill_timeout has no bound, and nobody waits for
// it but the restart: Nomad's own stop comes with its own timeout, and a signal goes to the process that is there.
func (t *task) halt() stateFunc {
	over := make(chan error, 1)
	go func() { over <- t.stopProcess(t.conf.KillAfter, t.conf.KillSignal) }()
	signals := t.signals
	var exit <-chan *drivers.ExitResult // looked at once StopTask is over
	var halting stateFunc
	halting = func() stateFunc {
		select {
		case <-t.d.ctx.Done():
			return nil
		case request := <-t.stops:
			return t.stopping(request, halting)
		case <-t.stopBy:
			return t.forsake
		case request := <-signals:
			if !t.forwardOrDefer(request) {
				signals = nil // it is going: the others are for the new process too
			}
			return halting
		case err := <-over:
			exit = t.exit
			return t.halted(err, halting)
		case result := <-exit:
			t.failpoint("halted")
			return t.startAgain(result)
		}
	}
	return halting
}

// halted runs after the process was asked to stop.
func (t *task) halted(err error, next stateFunc) stateFunc {
	if err == nil {
		return next
	}
	t.warn("stop for a restart: %v", err)
	if err := ignoreUnknown(t.d.inner.DestroyTask(t.cfg.ID, true)); err != nil {
		return t.fail(fmt.Errorf("restart: stop: %w", err))
	}
	return next
}

// startAgain runs after the process has ended with that result.
func (t *task) startAgain(result *drivers.ExitResult) stateFunc {
	if t.recovered && t.pipes.Stalled("restarting: "+t.pending.String()+" changed", logpipe.ReaderTimeout) {
		return t.fail(fmt.Errorf("restart: %w", logpipe.ErrStalled))
	}
	t.recovered = false
	select {
	case <-t.d.ctx.Done():
		return nil
	case request := <-t.stops: // there is nothing more to stop
		t.stopped = true
		request.reply <- nil
		return t.ended(result)
	default:
	}
	if err := t.relaunch(); err != nil {
		return t.fail(fmt.Errorf("restart: %w", err))
	}
	t.say("%s changed; restarted", t.pending)
	t.event("Secrets changed: %s; restarted by %s", t.pending, t.d.name)
	t.commitDelivered(t.pending.Grace())
	return t.running
}

// relaunch starts a process in place of the one that has ended.
func (t *task) relaunch() error {
	if err := ignoreUnknown(t.d.inner.DestroyTask(t.cfg.ID, true)); err != nil {
		return err
	}
	t.failpoint("destroyed")
	_, err := t.launch()
	return err
}
