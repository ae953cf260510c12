package driver

import (
	"maps"
	"strings"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// remember changes the task's record and saves it. A failure costs adoption after a crash, not the task.
func (t *task) remember(change func(*state.Record)) {
	t.saving.Lock()
	defer t.saving.Unlock()
	change(&t.record)
	store := t.d.kept()
	t.unsaved = store == nil
	if store == nil || t.handedOver {
		return
	}
	r := t.record
	t.credentials.Save(&r)
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

// save saves the record when a session has something that must not be lost.
func (t *task) save() { t.remember(func(*state.Record) {}) }

// saveAgain saves the record if that has not succeeded.
func (t *task) saveAgain() {
	t.saving.Lock()
	unsaved := t.unsaved
	t.saving.Unlock()
	if unsaved {
		t.save()
	}
}

// use records that the process has what is in g.
func use(r *state.Record, g *render.Generation) {
	r.Delivered, r.Once, r.Unverified = maps.Clone(g.Sums), g.OnceOutputs(), false
}

// bounded returns an error when the record of the task with that generation is larger than a record may be.
func (t *task) bounded(g *render.Generation) error {
	t.saving.Lock()
	r := t.record
	t.saving.Unlock()
	use(&r, g)
	t.credentials.Save(&r)
	_, err := r.Encode()
	return err
}

// parkedRun returns what the run leaves for the next one. Until that is claimed, what becomes of its sessions is
// saved.
func (t *task) parkedRun() *parkedRun {
	l := &parkedRun{credentials: t.credentials, save: t.saveAgain, seal: t.seal}
	t.remember(func(r *state.Record) {
		r.Ended = true
		l.record = *r
	})
	return l
}

// seal ends what this run saves: the record belongs to another run now.
func (t *task) seal() {
	t.saving.Lock()
	defer t.saving.Unlock()
	t.handedOver = true
}

// taskOf returns the task's configuration as far as a record has it.
func taskOf(r state.Record) *drivers.TaskConfig {
	alloc, name, _ := strings.Cut(r.Key, "/")
	return &drivers.TaskConfig{AllocID: alloc, Name: name, AllocDir: r.AllocDir}
}
