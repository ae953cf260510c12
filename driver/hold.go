package driver

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"

	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// A task that ends well can have rendered for others: an init task puts database credentials into alloc/, and the main
// task of its group reads them there. What such a run has left is held: it is parked until no task of the allocation
// runs, and until then its leases are renewed and its files in alloc/ rendered anew. Nomad's own template block does
// the same, because the runner of a task that is dead waits for the end of the allocation before it runs its stop hooks
// (client/allocrunner/taskrunner/task_runner.go, Run).

// shared reports whether a file, below the directory of the allocation, is in the directory of all its tasks.
func shared(path string) bool { return strings.HasPrefix(path, "alloc/") }

// shares reports whether the task has ended well, by itself, and what it has rendered is others' to read.
func (t *task) shares() bool {
	return !t.stopped && t.result.Successful() && slices.ContainsFunc(t.renderer.Paths(), shared)
}

// hold leaves what the run has to the other tasks of its allocation.
func (t *task) hold() error {
	handle, err := t.handle()
	if err != nil {
		return err
	}
	var data []byte
	if err := base.MsgPackEncode(&data, handle); err != nil {
		return fmt.Errorf("encode task handle: %w", err)
	}
	t.remember(func(r *state.Record) { r.Held, r.Ended = data, true })
	t.d.hold(t.parkedRun())
	return nil
}

// hold keeps what a run has left current, and parks it until no task of the allocation runs. Where it cannot be
// rendered anew the files stay as they are, and the leases are renewed.
func (d *Driver) hold(l *parkedRun) {
	d.parking.takeOver(l)
	held := &parkedRun{record: l.record, credentials: l.credentials}
	if t, err := d.holder(l); err != nil {
		d.logger.Warn("what a task has left for others is not rendered anew", "task", l.record.Key, "error", err)
	} else {
		held = t.parkedRun()
		held.seal = t.letGo
		go t.keepCurrent()
	}
	held.neededUntil = time.Now().Add(claimedWithin)
	d.parking.park(held, 0)
}

// holder returns a run of the task that has no process.
func (d *Driver) holder(l *parkedRun) (*task, error) {
	var handle drivers.TaskHandle
	if err := base.MsgPackDecode(l.record.Held, &handle); err != nil {
		return nil, fmt.Errorf("decode task handle: %w", err)
	}
	t, err := d.fromHandle(&handle)
	if err != nil {
		return nil, err
	}
	t.pipes.Close() // the log ended with the process
	t.record = l.record
	t.current, t.renderTimer = &render.Generation{Output: l.record.Once}, time.After(0)
	t.adopt(l)
	return t, nil
}

// keepCurrent renders what is new into alloc/ until the run is let go. There is no process that could be told.
func (t *task) keepCurrent() {
	defer close(t.done)
	_ = t.guard("keeping what it has left", func() error { // the log has it
		t.reminder = time.NewTicker(remindEvery)
		defer t.reminder.Stop()
		for t.ctx.Err() == nil {
			t.heldStep()
		}
		return nil
	})
	t.giveUp()
	t.credentials.Pause()
}

// heldStep waits for whatever comes first. What a new generation replaces is left to end by its TTL, since nobody knows
// who still uses it.
func (t *task) heldStep() {
	select {
	case <-t.ctx.Done():
	case <-t.credentials.Changed():
		t.save()
		t.debounce()
	case <-t.renderTimer:
		t.render(false)
	case r := <-t.rendered:
		t.handleRendered(r)
	case <-t.actTimer:
		t.say("rendered anew: %s; nobody is told, since the task has ended", t.pending)
		t.event("Secrets changed: %s; the task has ended", t.pending)
		t.commitDelivered(-1)
	case <-t.reminder.C:
		t.remind()
	}
}

// letGo ends what a run that is held does. It belongs to another run now, or is to be revoked.
func (t *task) letGo() {
	t.cancel()
	<-t.done
	t.seal()
}
