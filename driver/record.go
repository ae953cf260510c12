package driver

import (
	"maps"
	"strings"
	"sync"
	"time"

	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// recorder keeps the record of one run of a task.
type recorder struct {
	store       func() *state.Store // nil where nothing can be kept
	logger      hclog.Logger
	credentials *credentials.Set

	// saving guards what follows, which several goroutines save. Only that of task.run changes the record, and may read
	// it without the lock; the exception is Unacknowledged, which task.acknowledge changes.
	saving     sync.Mutex
	record     state.Record
	unsaved    bool // the state directory does not have the present record
	warned     bool // of that
	handedOver bool // it is another's to save
}

// remember changes the task's record and saves it. A failure costs adoption after a crash, not the task.
func (rec *recorder) remember(change func(*state.Record)) {
	rec.saving.Lock()
	defer rec.saving.Unlock()
	change(&rec.record)
	store := rec.store()
	rec.unsaved = store == nil
	if store == nil || rec.handedOver {
		return
	}
	r := rec.record
	rec.credentials.Save(&r)
	err := store.Save(r)
	rec.unsaved = err != nil
	switch {
	case rec.unsaved && !rec.warned:
		rec.logger.Warn("state is not saved", "task", r.Key, "error", err)
	case rec.warned && !rec.unsaved:
		rec.logger.Info("state is saved again", "task", r.Key)
	}
	rec.warned = rec.unsaved
}

// save saves the record when a session has something that must not be lost.
func (rec *recorder) save() { rec.remember(func(*state.Record) {}) }

// saveAgain saves the record if that has not succeeded.
func (rec *recorder) saveAgain() {
	rec.saving.Lock()
	unsaved := rec.unsaved
	rec.saving.Unlock()
	if unsaved {
		rec.save()
	}
}

// use records that the process has what is in g.
func use(r *state.Record, g *render.Generation) {
	if !maps.Equal(r.Delivered, g.Sums) {
		r.Generation, r.Since = r.Generation+1, time.Now()
	}
	r.Delivered, r.Once, r.Unverified = maps.Clone(g.Sums), g.OnceOutputs(), false
}

// bounded returns an error when the record of the task with that generation is larger than a record may be.
func (rec *recorder) bounded(g *render.Generation) error {
	rec.saving.Lock()
	r := rec.record
	rec.saving.Unlock()
	use(&r, g)
	rec.credentials.Save(&r)
	_, err := r.Encode()
	return err
}

// parkedRun returns what the run leaves for the next one. Until that is claimed, what becomes of its sessions is
// saved.
func (rec *recorder) parkedRun() *parkedRun {
	l := &parkedRun{credentials: rec.credentials, save: rec.saveAgain, seal: rec.seal}
	rec.remember(func(r *state.Record) {
		r.Ended = true
		l.record = *r
	})
	return l
}

// seal ends what this run saves: the record belongs to another run now.
func (rec *recorder) seal() {
	rec.saving.Lock()
	defer rec.saving.Unlock()
	rec.handedOver = true
}

// taskOf returns the task's configuration as far as a record has it.
func taskOf(r state.Record) *drivers.TaskConfig {
	alloc, name, _ := strings.Cut(r.Key, "/")
	return &drivers.TaskConfig{AllocID: alloc, Name: name, AllocDir: r.AllocDir}
}
