package driver

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"time"

	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// The way from a change to the process that knows of it: settle, render, take, and then act once.

const (
	// rerender bounds one attempt to make the next generation of a running task; there is always another.
	rerender = 30 * time.Second
	// unreadFor is how long a restart waits for somebody to read the task's log. An agent that is being restarted has its
	// log collectors back by then; nobody else starts one but a start of the task.
	unreadFor = time.Minute
)

type rendered struct {
	next *generation
	err  error
}

// Format keeps the generation out of logs, errors and panics.
func (r rendered) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[rendered: %v %v]", r.next, r.err) }

// settle delays rendering by the longest wait that a block asks for, counted from the latest change.
func (t *task) settle() {
	var least, most time.Duration
	for _, b := range t.conf.blocks {
		least, most = max(least, b.waitMin), max(most, b.waitMax)
	}
	now := time.Now()
	if t.latest.IsZero() {
		t.latest = now.Add(most)
	}
	t.quiet = time.After(min(least, max(0, t.latest.Sub(now))))
}

// render starts making the next generation, unless that is under way: then it is looked at again afterwards.
func (t *task) render() {
	t.quiet = nil
	if t.rendered != nil {
		t.quiet = time.After(time.Second)
		return
	}
	t.latest = time.Time{}
	result := make(chan rendered, 1)
	t.rendered = result
	last := t.current
	go func() {
		ctx, cancel := context.WithTimeout(t.ctx, rerender)
		defer cancel()
		next, err := t.make.render(ctx, last, false)
		result <- rendered{next, err}
	}()
}

// take makes a new generation the one on disk and plans what the process is told: what it does not know yet, so that a
// change that was taken back in time is none. Whatever fails leaves the last known good generation where it is.
func (t *task) take(r rendered) {
	t.rendered = nil
	// After trouble it is written in any case: a part of the generation that failed may be there, and the secrets be the old ones again.
	if r.err == nil && (t.trouble != "" || !maps.Equal(r.next.sums, t.current.sums)) {
		t.reached("rendered")
		r.err = t.write(r.next)
		t.reached("written")
	}
	if r.err != nil {
		t.save() // a new secret may have been read all the same
		t.stay(r.err)
		return
	}
	t.current, t.trouble = r.next, ""
	t.retry.Reset()
	t.pending = r.next.against(t.record.Told, &t.conf)
	switch {
	case t.pending.acts() && t.splay == nil:
		t.splay = time.After(t.pending.delay())
		t.save()
	case t.pending.acts():
		t.save()
	default:
		if t.pending.silent {
			t.say("rendered anew: %s; the task is not told (change_mode noop)", t.pending)
			t.event("Secrets changed: %s; noop", t.pending)
		}
		t.told(t.pending.grace())
	}
	t.reached("planned")
}

// digits are what differs when the same trouble is told twice: for how long it has lasted.
var digits = regexp.MustCompile(`[0-9]+`)

// stay keeps the generation in use and tries again later. The same trouble is told once.
func (t *task) stay(err error) {
	t.quiet = time.After(t.retry.Next())
	trouble := digits.ReplaceAllString(err.Error(), "")
	if trouble == t.trouble {
		return
	}
	t.trouble = trouble
	t.say("the last known good secrets stay in use: %v", err)
	if !vault.Transient(err) { // of an outage the session has told
		t.event("Secrets not updated: %v", err)
	}
}

// told is after the process has what it needs of the current generation. What that replaces is revoked after grace, or
// left to end when grace is negative.
func (t *task) told(grace time.Duration) {
	t.pending, t.splay = change{}, nil
	t.reached("told")
	t.current.pass.commit(grace)
	t.reached("committed")
	t.remember(func(r *record) { r.use(t.current, t.conf.blocks) })
}

// act does the one action that all changes since the last one ask for. A restart replaces every other: the new process
// reads everything anew. Otherwise each script runs, and then each signal is sent, once.
func (t *task) act() state {
	if t.pending.restart {
		return t.restart
	}
	return t.scripts(t.pending.scripts, "")
}

// scripts runs what is left of them one after the other, and then the signals are sent. A script may take its time: the
// end of the process, a stop and a signal do not wait for it.
func (t *task) scripts(rest []*ChangeScriptConfig, did string) state {
	if len(rest) == 0 {
		return func() state { return t.notify(did) }
	}
	ended := make(chan error, 1)
	go func() { ended <- t.script(rest[0]) }()
	var running state
	running = func() state {
		select {
		case <-t.d.ctx.Done():
			return nil
		case result := <-t.exit:
			return t.ended(result)
		case request := <-t.stops:
			return t.stopping(request, running)
		case request := <-t.signals:
			t.forward(request)
			return running
		case err := <-ended:
			return t.ran(rest, did, err)
		}
	}
	return running
}

// ran is after the first of the scripts has ended.
func (t *task) ran(rest []*ChangeScriptConfig, did string, err error) state {
	s := rest[0]
	if err == nil {
		return t.scripts(rest[1:], did+", ran "+s.Command)
	}
	t.say("change_script %q: %v", s.Command, err)
	if !s.FailOnError {
		return t.scripts(rest[1:], fmt.Sprintf("%s, change_script %q failed: %v", did, s.Command, err))
	}
	t.event("Secrets changed: %s; change_script %q failed: %v", t.pending, s.Command, err)
	return t.fail(fmt.Errorf("change_script %q: %w", s.Command, err))
}

// script runs a change_script in the task, and leaves it running when its timeout is over. The timeout is ours: of the wrapped
// drivers docker waits for the end of the output all the same, and exec's executor panics when the script ends later, which
// ends the task (Nomad v1.11.3: drivers/docker/handle.go, Exec; drivers/shared/executor/executor_linux_cgo.go, handleExecWait).
func (t *task) script(s *ChangeScriptConfig) error {
	const unlimited = 24 * time.Hour
	ended := make(chan error, 1)
	go func() {
		result, err := t.d.inner.ExecTask(t.cfg.ID, append([]string{s.Command}, s.Args...), unlimited)
		if err == nil && !result.ExitResult.Successful() {
			err = fmt.Errorf("exit code %d", result.ExitResult.ExitCode)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(s.timeout):
		return fmt.Errorf("it did not end within its timeout of %s", s.timeout)
	}
}

// notify sends the signals, after which the process has been told of the current generation. did is what was done before.
func (t *task) notify(did string) state {
	for _, name := range t.pending.signals {
		if err := t.d.inner.SignalTask(t.cfg.ID, name); err != nil {
			t.say("send %s: %v", name, err)
			did += fmt.Sprintf(", send %s failed: %v", name, err)
			continue
		}
		did += ", sent " + name
	}
	did = did[len(", "):]
	t.say("%s changed; %s", t.pending, did)
	t.event("Secrets changed: %s; %s", t.pending, did)
	t.told(t.pending.grace())
	return t.running
}

// restart stops the process and starts it with the current generation. Nomad does not notice: the task runs on, its log
// stays open, and no restart attempt is spent.
func (t *task) restart() state {
	c := t.pending
	if err := t.pipes.hold(); err != nil {
		return t.unread(err)
	}
	t.unreadAt = time.Time{}
	select {
	case result := <-t.exit: // it has ended by itself, which is for Nomad to judge
		return t.ended(result)
	default:
	}
	t.reached("restarting")
	result, err := t.halt()
	t.reached("halted")
	if err != nil {
		return t.fail(fmt.Errorf("restart: %w", err))
	}
	if t.recovered && t.pipes.unread("restarting: "+c.String()+" changed", unreadWithin) {
		return t.fail(fmt.Errorf("restart: %w", errNotRead))
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
	if err := ignoreUnknown(t.d.inner.DestroyTask(t.cfg.ID, true)); err != nil {
		return t.fail(fmt.Errorf("restart: %w", err))
	}
	t.reached("destroyed")
	if _, err := t.launch(); err != nil {
		return t.fail(fmt.Errorf("restart: %w", err))
	}
	t.say("%s changed; restarted", c)
	t.event("Secrets changed: %s; restarted by %s", c, t.d.name)
	t.told(c.grace())
	return t.running
}

// unread is when nobody reads the task's log: the new process would hang at its first lines. The agent may be about to
// start a log collector, and so the restart is tried again for a while.
func (t *task) unread(err error) state {
	switch {
	case t.unreadAt.IsZero():
		t.unreadAt = time.Now()
	case time.Since(t.unreadAt) > unreadFor:
		return t.fail(fmt.Errorf("restart: %w", err))
	}
	t.splay = time.After(time.Second)
	return t.running
}

// halt ends the process, by force where it does not stop, and returns its result; nil when the plugin ends.
func (t *task) halt() (*drivers.ExitResult, error) {
	if err := ignoreUnknown(t.d.inner.StopTask(t.cfg.ID, t.conf.killTimeout, t.conf.KillSignal)); err != nil {
		t.say("stop for a restart: %v", err)
		if err := ignoreUnknown(t.d.inner.DestroyTask(t.cfg.ID, true)); err != nil {
			return nil, fmt.Errorf("stop: %w", err)
		}
	}
	select {
	case result := <-t.exit:
		return result, nil
	case <-t.d.ctx.Done():
		return nil, nil
	}
}
