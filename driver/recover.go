package driver

import (
	"errors"
	"fmt"
	"time"

	"nomad-driver-vault/driver/render"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// RecoverTask takes over a running task from an earlier plugin process: the same process, the same token, the same
// leases. It does not ask Vault, whose opinion is found out while the task runs. A task that the built-in driver
// started under our name is taken over as one without our blocks.
func (d *Driver) RecoverTask(handle *drivers.TaskHandle) error {
	d.Serve()
	if handle == nil || handle.Config == nil {
		return errors.New("recover task: the handle has no config")
	}
	if t, known := d.task(handle.Config.ID); known {
		t.older.Store(true) // the agent was restarted, we were not
		return nil
	}
	// The agent has the handle of a task that is dead until the allocation ends, and asks at each of its starts.
	if d.parking.holds(taskKey(handle.Config)) {
		return errors.New("recover task: it has ended, and only what it has left for other tasks is kept")
	}
	t, err := d.fromHandle(handle)
	if err != nil {
		return err
	}
	t.older.Store(true)
	defer close(t.begun)
	// The agent keeps a handle until it has the next one (taskrunner, clearDriverHandle).
	if other := d.enter(t); other != nil {
		t.cancel()
		return fmt.Errorf("recover task: it has been started anew since, with ID %q", other.cfg.ID)
	}
	t.record.InnerVersion, t.record.Inner = handle.Version, handle.DriverState
	// As long as somebody reads: a log collector that sees the end of the log now may not notice the next start.
	_ = t.pipes.Open()
	var left *parkedRun
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

// takenOver opens the log pipes and says with what the task goes on. An agent that was restarted recovers tasks
// before it starts their log collectors (client/allocrunner/taskrunner/task_runner.go, Restore).
func (t *task) takenOver() error {
	for end := time.Now().Add(logReaderTimeout); t.pipes.Open() != nil && time.Now().Before(end); {
		select {
		case <-time.After(time.Second / 2):
		case <-t.ctx.Done():
			return nil
		}
	}
	switch sessions := t.credentials.Describe(); {
	case sessions != "":
		t.say("taken over after the end of the plugin before%s", sessions)
	case len(t.conf.Blocks()) > 0:
		t.say("taken over after the end of the plugin before, which kept no session: its secrets are read anew")
	}
	return nil
}

// putBack parks what reattach has claimed, nil where there was nothing, with the ends of the log pipes, for the next
// start.
func (t *task) putBack(l *parkedRun) {
	if l == nil {
		t.pipes.Close()
		return
	}
	l.pipes = t.pipes
	t.d.parking.park(l, t.op.Linger)
}

// reattach finds the process and the sessions again. An error means that there is no such process any more; what was
// claimed is returned with it.
func (t *task) reattach() (*parkedRun, error) {
	old := t.d.parking.claim(t.record.Key)
	// The record has the handle of the present process, which we may have restarted.
	if old != nil && old.record.TaskID == t.cfg.ID && old.record.Inner != nil {
		t.record.InnerVersion, t.record.Inner = old.record.InnerVersion, old.record.Inner
		t.record.Delivered, t.record.Once, t.record.Unverified = old.record.Delivered, old.record.Once, old.record.Unverified
		t.record.Generation, t.record.Since = old.record.Generation, old.record.Since
		if old.record.DoorSecrets != nil {
			t.record.DoorSecrets, t.renderer.DoorSecrets = old.record.DoorSecrets, old.record.DoorSecrets
		}
		if owner := old.record.Owner; len(owner) == 2 {
			t.record.Owner = owner
			t.renderer.Own(nil, owner[0], owner[1])
		}
	}
	cfg, err := t.wrappedConfig()
	if err != nil { // a task goes on without its log, whatever has become of that
		t.d.logger.Warn("output of the task is lost", "task", t.record.Key, "error", err)
	}
	err = t.d.inner.RecoverTask(&drivers.TaskHandle{Version: t.record.InnerVersion, Config: cfg,
		DriverState: t.record.Inner})
	if err == nil {
		err = t.watch()
	}
	if err != nil {
		if old != nil {
			if unswept := t.d.parking.sweep(old); unswept != nil {
				err = fmt.Errorf("%w; %w", err, unswept)
			}
		}
		return old, err
	}
	if old != nil {
		t.adopt(old)
	}
	for _, closed := range t.doors.openAll(t.record) { // the task goes on, and does not get through there
		t.warn("%v", closed)
	}
	t.current, t.recovered, t.tookOver = &render.Generation{Output: t.record.Once}, true, time.Now()
	t.renderTimer = time.After(0) // render what was rendered before: the same bytes mean that nothing happened
	return nil, nil
}
