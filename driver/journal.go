package driver

import (
	"fmt"
	"time"

	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// say tells one step on the task's own log, where its author looks first, and in the agent's log.
func (t *task) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.pipes.say(text)
	t.d.logger.Info(text, "alloc_id", t.cfg.AllocID, "task", t.cfg.Name)
}

// event tells the same story, shorter, in nomad alloc status. Nomad keeps ten events of a task: one for each rotation,
// none for a renewal.
func (t *task) event(format string, args ...any) {
	event := &drivers.TaskEvent{TaskID: t.cfg.ID, TaskName: t.cfg.Name, AllocID: t.cfg.AllocID,
		Timestamp: time.Now(), Message: fmt.Sprintf(format, args...)}
	select {
	case t.d.outbox <- event:
	default: // the agent takes no events at the moment; the log has the line
	}
}

// notice tells what a session has met. It is called from the scheduler and waits for nobody: a new token, which a crash
// must not lose, is saved beside it.
func (t *task) notice(n vault.Notice) {
	if n.Kind == vault.Waiting && !t.starting.Load() {
		return // it runs with what it has, and stay tells why it gets nothing new
	}
	t.say("%s", n.Text)
	switch n.Kind {
	case vault.Outage:
		t.event("Vault unavailable: %s", n.Text)
	case vault.Recovered:
		t.event("%s", n.Text)
	case vault.Problem, vault.Waiting:
		t.event("Vault: %s", n.Text)
	case vault.Replaced:
		go t.save()
	}
}

// pump carries our events and the wrapped driver's to the eventer, which may make a slow consumer wait.
func (d *Driver) pump(inner <-chan *drivers.TaskEvent) {
	for {
		var event *drivers.TaskEvent
		select {
		case event = <-d.outbox:
		case event = <-inner:
		case <-d.ctx.Done():
			return
		}
		if event == nil {
			inner = nil // closed: the wrapped driver has ended
			continue
		}
		if err := d.events.EmitEvent(event); err != nil {
			return // the eventer has ended
		}
	}
}
