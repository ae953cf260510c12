package driver

import (
	"nomad-driver-vault/driver/state"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// taskKey identifies a task across its runs, each of which has an ID of its own.
func taskKey(cfg *drivers.TaskConfig) string { return state.Key(cfg.AllocID, cfg.Name) }

// task returns the run with that ID, of which the agent knows now. One that is starting is waited for.
func (d *Driver) task(id string) (*task, bool) {
	t := d.find(id)
	if t == nil {
		return nil, false
	}
	select {
	case <-t.begun:
	case <-d.ctx.Done():
	}
	if d.find(id) != t { // the start failed
		return nil, false
	}
	t.acknowledge()
	return t, true
}

func (d *Driver) find(id string) *task {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tasks {
		if t.cfg.ID == id {
			return t
		}
	}
	return nil
}

// enter makes t the run of its task, unless there is another one, which it returns.
func (d *Driver) enter(t *task) (other *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other = d.tasks[t.record.Key]; other == nil {
		d.tasks[t.record.Key] = t
	}
	return other
}

// forget is for a run that nobody can ask about any more.
func (d *Driver) forget(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tasks[t.record.Key] == t {
		delete(d.tasks, t.record.Key)
	}
}
