package driver

import (
	"maps"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
)

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

// taskOf returns what a record says of its task's configuration.
func taskOf(r state.Record) *drivers.TaskConfig {
	alloc, name, _ := strings.Cut(r.Key, "/")
	return &drivers.TaskConfig{AllocID: alloc, Name: name, AllocDir: r.AllocDir}
}
