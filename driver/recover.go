package driver

import (
	"errors"
	"fmt"
	"maps"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// foreign stands for the config block of a task that the built-in driver has started: nobody tells us what is in it, but none of our
// options is. The one here cannot be empty.
var foreign = map[string]any{"kill_timeout": "5s"}

// RecoverTask takes a running task over from a plugin process before this one: the same process, the same token, the same
// leases. It does not ask Vault: what Vault thinks of them is found out while the task runs. A task that the built-in driver has
// started, whose name is ours since, is taken over as one without our blocks.
func (d *Driver) RecoverTask(handle *drivers.TaskHandle) error {
	d.Serve()
	if handle == nil || handle.Config == nil {
		return errors.New("recover task: the handle has no config")
	}
	if t, known := d.task(handle.Config.ID); known {
		t.older.Store(true) // the agent was restarted, we were not
		return nil
	}
	var kept handleState
	if err := handle.GetDriverState(&kept); err != nil {
		return fmt.Errorf("decode task handle: %w", err)
	}
	if kept.JobConfig == nil {
		kept.JobConfig = foreign
	}
	cfg := handle.Config.Copy()
	if err := cfg.EncodeConcreteDriverConfig(kept.JobConfig); err != nil {
		return fmt.Errorf("encode config block: %w", err)
	}
	t, err := d.newTask(cfg, d.log(cfg))
	if err != nil {
		return err
	}
	t.older.Store(true)
	defer close(t.begun)
	if other := d.enter(t); other != nil { // the agent keeps a handle until it has the next one (taskrunner, clearDriverHandle)
		t.cancel()
		return fmt.Errorf("recover task: it has been started anew since, with ID %q", other.cfg.ID)
	}
	t.record.InnerVersion, t.record.Inner = handle.Version, handle.DriverState
	_ = t.pipes.Open() // as long as somebody reads: a log collector that sees the end of the log now may not notice the next start
	var left *left
	if err := t.guard("taking it over", func() (err error) {
		left, err = t.reattach()
		return err
	}); err != nil {
		t.warn("not taken over after the end of the plugin before: %v", err)
		t.cancel()
		t.putBack(left)
		d.forget(t)
		return err
	}
	go t.run()
	go func() { _ = t.guard("taking it over", t.takenOver) }()
	return nil
}

// takenOver holds the log pipes and says with what the task goes on, where it has something of ours. An agent that was
// restarted recovers tasks before it starts their log collectors (client/allocrunner/taskrunner/task_runner.go, Restore).
func (t *task) takenOver() error {
	for end := time.Now().Add(unreadFor); t.pipes.Open() != nil && time.Now().Before(end); {
		select {
		case <-time.After(time.Second / 2):
		case <-t.ctx.Done():
			return nil
		}
	}
	switch sessions := t.secrets.Describe(); {
	case sessions != "":
		t.say("taken over after the end of the plugin before%s", sessions)
	case len(t.conf.Blocks()) > 0:
		t.say("taken over after the end of the plugin before, which kept no session: its secrets are read anew")
	}
	return nil
}

// putBack leaves for the next start what reattach has claimed, nil where there was nothing, and with it the ends of the log pipes.
func (t *task) putBack(l *left) {
	if l == nil {
		t.pipes.Close()
		return
	}
	l.pipes = t.pipes
	t.d.leave(l, t.op.Linger)
}

// reattach finds the process and the session again. With an error, which means that there is no such process any more, it returns what it has
// claimed.
func (t *task) reattach() (*left, error) {
	old := t.d.claim(t.record.Key)
	if old != nil && old.record.TaskID == t.cfg.ID && old.record.Inner != nil { // of the present process, which we may have restarted
		t.record.InnerVersion, t.record.Inner = old.record.InnerVersion, old.record.Inner
		t.record.Delivered, t.record.Once, t.record.Unverified = old.record.Delivered, old.record.Once, old.record.Unverified
	}
	cfg, err := t.wrappedConfig()
	if err != nil { // a task goes on without its log, whatever has become of that
		t.d.logger.Warn("output of the task is lost", "task", t.record.Key, "error", err)
	}
	err = t.d.inner.RecoverTask(&drivers.TaskHandle{Version: t.record.InnerVersion, Config: cfg, DriverState: t.record.Inner})
	if err == nil {
		err = t.watch()
	}
	if err != nil {
		if old != nil {
			if unswept := t.d.sweep(old); unswept != nil {
				err = fmt.Errorf("%w; %w", err, unswept)
			}
		}
		return old, err
	}
	if old != nil {
		t.adopt(old)
	}
	t.current, t.recovered, t.tookOver = &render.Generation{Output: t.record.Once}, true, time.Now()
	t.quiet = time.After(0) // render what was rendered before: the same bytes mean that nothing happened
	return nil, nil
}

// ask is when the agent asks about the task.
func (t *task) ask() {
	t.asking.Do(func() {
		close(t.asked)
		t.remember(func(r *state.Record) { r.Unacknowledged = false })
	})
}

// unasked ends a task of which the agent does not know, because it died while the task started, and which it does not start anew either,
// because the job was stopped meanwhile. It asks about a task that it knows as soon as it has stored the answer to the start
// (client/allocrunner/taskrunner/task_runner.go, Run).
func (t *task) unasked() error {
	for waited := unclaimedAfter; ; waited += unclaimedAfter {
		select {
		case <-t.asked:
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

// remember changes what the state directory has of the task. A failure costs adoption after a crash, not the task.
func (t *task) remember(change func(*state.Record)) {
	t.saving.Lock()
	defer t.saving.Unlock()
	change(&t.record)
	store := t.d.kept()
	t.unsaved = store == nil
	if store == nil || t.over {
		return
	}
	r := t.record
	t.secrets.Save(&r)
	err := store.Save(r)
	t.unsaved = err != nil
	switch {
	case t.unsaved && !t.warned:
		t.d.logger.Warn("state is not saved", "task", r.Key, "error", err)
	case t.warned && !t.unsaved:
		t.d.logger.Info("state is saved again", "task", r.Key)
	}
	t.warned = t.unsaved
}

// save is for when a session has something new that must not be lost.
func (t *task) save() { t.remember(func(*state.Record) {}) }

// saveAgain saves the task where that has not succeeded.
func (t *task) saveAgain() {
	t.saving.Lock()
	unsaved := t.unsaved
	t.saving.Unlock()
	if unsaved {
		t.save()
	}
}

// use remembers that the process has what is in g.
func use(r *state.Record, g *render.Generation) {
	r.Delivered, r.Once, r.Unverified = maps.Clone(g.Sums), g.OnceOutputs(), false
}

// bounded returns an error where more would have to be remembered of the task with that generation than fits into a record.
func (t *task) bounded(g *render.Generation) error {
	t.saving.Lock()
	r := t.record
	t.saving.Unlock()
	use(&r, g)
	t.secrets.Save(&r)
	_, err := r.Encode()
	return err
}

// leaves returns what the run leaves for the next one. Until somebody has claimed it, what becomes of its sessions is saved.
func (t *task) leaves() *left {
	l := &left{secrets: t.secrets, save: t.saveAgain, seal: t.seal}
	t.remember(func(r *state.Record) {
		r.Ended = true
		l.record = *r
	})
	return l
}

func (t *task) seal() {
	t.saving.Lock()
	defer t.saving.Unlock()
	t.over = true
}
