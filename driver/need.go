package driver

import (
	"os"
	"path/filepath"
	"time"

	"nomad-driver-vault/driver/state"
)

const (
	// lookEvery is how often is looked whether a task of the allocation runs.
	lookEvery = 5 * time.Second
	// unneededAfter is how long none has run when what is held is given up: a poststop task may come after the others,
	// and an agent that is restarted takes the sockets by which it is known that it has the allocation.
	unneededAfter = 30 * time.Second
)

// needed reports whether a task of the allocation may need what l has left. Until the first one is seen, the next may
// still be on its way: its image is pulled, or the agent that is to start it is itself being started.
func (p *parking) needed(l *parkedRun) bool {
	if l.record.Held == nil || gone(l.record.AllocDir) {
		return false
	}
	now := time.Now()
	if p.inUse(l.record) {
		l.neededUntil = now.Add(unneededAfter)
	}
	if now.Before(l.neededUntil) {
		return true
	}
	p.logger.Info("no task of the allocation runs any more: revoking what one has left for them", "task", l.record.Key)
	return false
}

// inUse reports whether Nomad has a task of the allocation that has not ended. Each task has the socket of the task API
// from before its start until the allocation ends, also between its restarts and after its own end, whatever its driver
// (client/allocrunner/taskrunner/api_hook.go). There is none where the agent is down, or where the path is longer than
// a socket's may be: then processes tell.
func (p *parking) inUse(r state.Record) bool {
	entries, _ := os.ReadDir(r.AllocDir) // of an allocation that has gone there is none
	for _, entry := range entries {
		info, err := os.Lstat(filepath.Join(r.AllocDir, entry.Name(), "secrets", "api.sock"))
		if err == nil && info.Mode()&os.ModeSocket != 0 {
			return true
		}
	}
	inner, can := p.inner.(Sweeper)
	return can && inner.RunsAny(taskOf(r))
}
