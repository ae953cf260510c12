package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/logpipe"
	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/internal/faults"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
)

const (
	// unclaimedAfter is how often the plugin looks whether the agent may still come for a task: not once its allocation
	// is gone.
	unclaimedAfter = time.Minute
	// claimedWithin is how long the agent may take to come for a task that it knows, whatever has become of the job. It
	// waits for its drivers, up to 55 seconds, and recovers one task after the other before it asks the server
	// (client/client.go, NewClient and restoreState): the tasks of a docker daemon that hangs, each for minutes, delay
	// those behind them.
	claimedWithin = 15 * time.Minute
	// revokeWithin bounds one attempt to revoke, and undoWithin the one that a failed start waits for.
	revokeWithin = 30 * time.Second
	undoWithin   = 5 * time.Second
)

// A Sweeper is a wrapped driver that knows the processes of a task without a handle, which can be lost with the
// plugin process that asked for them: by the name of the task, its allocation and the allocation's directory.
type Sweeper interface {
	// Sweep ends them, and what the wrapped driver has started beside them.
	Sweep(cfg *drivers.TaskConfig) error

	// Runs reports whether there is one.
	Runs(cfg *drivers.TaskConfig) bool

	// RunsAny reports whether any task of the allocation has a process, whatever driver has started it.
	RunsAny(cfg *drivers.TaskConfig) bool
}

// parking holds what runs of tasks leave for the next run of the same task.
type parking struct {
	ctx    context.Context // of the plugin
	logger hclog.Logger
	inner  drivers.DriverPlugin
	store  func() *state.Store // nil where nothing can be kept
	env    func() credentials.Env

	mu       sync.Mutex            // guards what follows
	parked   map[string]*parkedRun // by the key of the task
	revoking map[*parkedRun]string // until that is done: why it has to wait
}

// parkedRun is what one run of a task leaves for the next: its credentials and its record. Either the next run claims
// it, or it expires: then the run's files are removed and its sessions revoked. Whoever has taken it out of parking
// owns it; until then its timer does.
type parkedRun struct {
	record      state.Record
	credentials *credentials.Set // nil: not restored yet from what another plugin process has saved
	save        func()           // saves it, where that has not succeeded yet; nil for another process's
	seal        func()           // ends what the run itself still saves of its sessions; nil for another process's
	pipes       *logpipe.Pipes   // open after a recovery that failed, so that the log collector reads on; else nil
	timer       *time.Timer
	gone        chan struct{}    // closed when its files are gone, or another has taken its place
	old         bool             // of a plugin process before this one
	found       time.Time        // by this one, until it is claimed
	warned      bool             // that it cannot be revoked yet
	until       time.Time        // when it expires, zero if it is held; parking's mu guards it
	shown       *credentials.Set // credentials, as status sees them; parking's mu guards it
	unswept     time.Time        // since when its processes could not be ended; zero: they could, or were not looked for
	neededUntil time.Time        // when one that is held is given up, unless a task of the allocation is seen before
}

// Format keeps the sessions out of logs, errors and panics.
func (l *parkedRun) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[what %s has left]", l.record.Key) }

// park keeps l for that long, or until the next run of its task claims it.
func (p *parking) park(l *parkedRun, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.gone = make(chan struct{})
	l.until, l.shown = time.Now().Add(wait), l.credentials
	if l.record.Held != nil {
		l.until = time.Time{}
	}
	p.parked[l.record.Key] = l
	l.timer = time.AfterFunc(wait, func() {
		_ = guard(p.logger, l.record.Key, "giving up what it has left", func() error { // the log has it
			p.expire(l)
			return nil
		})
	})
}

// has reports whether something of that task is parked.
func (p *parking) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.parked[key] != nil
}

// holds reports whether what is parked of that task is held for others.
func (p *parking) holds(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.parked[key] != nil && p.parked[key].record.Held != nil
}

// saveAgain saves what is parked where that has not succeeded.
func (p *parking) saveAgain() {
	var saves []func()
	p.mu.Lock()
	for _, l := range p.parked {
		if l.save != nil {
			saves = append(saves, l.save)
		}
	}
	p.mu.Unlock()
	for _, save := range saves {
		save()
	}
}

// claim takes what the last run of a task has left, nil when there is nothing. Whoever stops the timer owns it. One
// that is expiring is waited for, so that its files are not removed from under those of the next run.
func (p *parking) claim(key string) *parkedRun {
	for {
		p.mu.Lock()
		l := p.parked[key]
		mine := l != nil && l.timer.Stop()
		if mine {
			delete(p.parked, key)
		}
		p.mu.Unlock()
		switch {
		case l == nil:
			return nil
		case mine:
			l.found = time.Time{}
			p.takeOver(l)
			return l
		}
		<-l.gone
	}
}

// takeOver ends what the run itself still does for l: it held the log pipes, and saved its sessions.
func (p *parking) takeOver(l *parkedRun) {
	if l.pipes != nil {
		l.pipes.Close()
		l.pipes = nil
	}
	if l.seal != nil {
		l.seal()
	}
	if l.credentials == nil {
		l.credentials = credentials.Restore(p.env(), taskOf(l.record), l.record)
	}
}

// sweep ends the processes that an earlier start may have left, so that a task never has two. The agent asks the next
// plugin process for the same start again when it got no answer, and a process's handle can be lost with the plugin.
func (p *parking) sweep(l *parkedRun) error {
	if !l.old && !l.record.Launching {
		return nil
	}
	if err := p.kill(taskOf(l.record)); err != nil {
		return fmt.Errorf("end what an earlier start has left: %w", err)
	}
	return nil
}

// kill ends the processes of a task where the wrapped driver can find them.
func (p *parking) kill(cfg *drivers.TaskConfig) error {
	if inner, can := p.inner.(Sweeper); can {
		return inner.Sweep(cfg)
	}
	return nil
}

// stray reports whether nobody else will end what l may have left running: the agent has no handle of it, or the
// allocation is gone.
func (l *parkedRun) stray() bool {
	return l.record.Launching || l.record.Unacknowledged || gone(l.record.AllocDir)
}

// gone reports whether the directory of an allocation is gone.
func gone(allocDir string) bool {
	_, err := os.Stat(allocDir)
	return errors.Is(err, os.ErrNotExist)
}

// mayRecover reports whether the agent might still call RecoverTask: it is still restoring its tasks, or the process
// is alive.
func (p *parking) mayRecover(l *parkedRun) bool {
	r := l.record
	if l.found.IsZero() || r.Inner == nil || r.Launching || r.Ended || gone(r.AllocDir) {
		return false
	}
	inner, can := p.inner.(Sweeper)
	soon := time.Since(l.found) < claimedWithin
	if !can {
		return soon
	}
	return inner.Runs(taskOf(r)) && (soon || !r.Unacknowledged) // without a process nobody is hurt by new credentials
}

func (p *parking) expire(l *parkedRun) {
	if p.ctx.Err() != nil { // the next plugin process finds it
		return
	}
	if p.mayRecover(l) {
		p.park(&parkedRun{record: l.record, old: true, found: l.found}, unclaimedAfter)
		close(l.gone)
		return
	}
	if p.needed(l) {
		p.park(&parkedRun{record: l.record, credentials: l.credentials, save: l.save, seal: l.seal, old: l.old,
			neededUntil: l.neededUntil},
			lookEvery)
		close(l.gone)
		return
	}
	if l.credentials == nil {
		p.logger.Info("revoking the session of a task that is gone", "task", l.record.Key)
		l.credentials = credentials.Unpack(p.env(), taskOf(l.record), l.record)
	}
	p.takeOver(l)
	if l.stray() {
		if err := p.sweep(l); err != nil {
			p.logger.Warn("a process may be left behind", "task", l.record.Key, "error", err)
			if p.retrySweep(l) {
				return
			}
		}
	}
	p.removeFiles(l)
	p.mu.Lock()
	delete(p.parked, l.record.Key)
	l.record.Held = nil
	p.mu.Unlock()
	close(l.gone)
	p.revokeUntilDone(l)
}

// retrySweep parks l again, since a start that finds nothing would meet the process that could not be ended. After
// claimedWithin it gives up: the credentials of that process are to be revoked.
func (p *parking) retrySweep(l *parkedRun) bool {
	if l.unswept.IsZero() {
		l.unswept = time.Now()
	}
	if time.Since(l.unswept) > claimedWithin {
		return false
	}
	p.park(&parkedRun{record: l.record, credentials: l.credentials, old: l.old, unswept: l.unswept}, unclaimedAfter)
	close(l.gone)
	return true
}

// removeFiles removes the files of a run, and sets aside what is to be revoked, where the next run does not overwrite
// it.
func (p *parking) removeFiles(l *parkedRun) {
	l.credentials.Pause()
	if root, err := os.OpenRoot(l.record.AllocDir); err == nil { // else the allocation is gone, and its files with it
		if err := template.Remove(root, taskOf(l.record).Name, l.record.Files); err != nil {
			p.logger.Warn("rendered files are left behind", "task", l.record.Key, "error", err)
		}
		root.Close()
	}
	faults.Point(l.record.Key, "cleared")
	p.setAside(l)
	faults.Point(l.record.Key, "set-aside")
	if store := p.store(); store != nil {
		store.Remove(state.FileOf(l.record.Key))
	}
}

// setAside saves what is to be revoked in a file of its own.
func (p *parking) setAside(l *parkedRun) {
	store := p.store()
	if store == nil || !l.credentials.Any() {
		return
	}
	r := l.record
	r.Once, r.Delivered, r.Inner, r.Held = nil, nil, nil, nil // which only a run needs
	l.credentials.Save(&r)
	file, err := store.SetAside(r)
	if err != nil && !l.warned {
		p.logger.Warn("a crash now would lose what is to be revoked", "task", l.record.Key, "error", err)
	}
	l.record.File = file
}

// revokeInBackground is revokeUntilDone in a goroutine of its own.
func (p *parking) revokeInBackground(l *parkedRun) {
	go func() {
		_ = guard(p.logger, l.record.Key, "revoking", func() error { // the log has it
			p.revokeUntilDone(l)
			return nil
		})
	}()
}

// revokeUntilDone tries until everything is revoked or the plugin ends.
func (p *parking) revokeUntilDone(l *parkedRun) {
	p.mu.Lock()
	p.revoking[l], l.shown = "", l.credentials
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.revoking, l)
	}()
	pause := sched.Backoff{First: time.Second, Most: time.Minute}
	for !p.tryRevoke(p.ctx, l) {
		if l.record.File == "" {
			p.setAside(l)
		}
		select {
		case <-time.After(pause.Next()):
		case <-p.ctx.Done():
			return
		}
	}
}

// tryRevoke tries once, and reports whether nothing is left to revoke. Each cluster bounds how many sessions are
// revoked at once.
func (p *parking) tryRevoke(ctx context.Context, l *parkedRun) bool {
	ctx, cancel := context.WithTimeout(ctx, revokeWithin)
	defer cancel()
	unknown := l.credentials.Reclaim()
	waiting, lost := l.credentials.Revoke(ctx)
	if lost != nil {
		p.logger.Warn("left to end by its TTL", "task", l.record.Key, "error", lost)
	}
	if waiting = errors.Join(unknown, waiting); waiting != nil {
		if !l.warned && p.ctx.Err() == nil {
			p.logger.Warn("cannot revoke yet", "task", l.record.Key, "error", waiting)
		}
		l.warned = true
		p.mu.Lock()
		if _, listed := p.revoking[l]; listed {
			p.revoking[l] = waiting.Error()
		}
		p.mu.Unlock()
		return false
	}
	if l.warned {
		p.logger.Info("revoked at last, or ended by its TTL", "task", l.record.Key)
	}
	if store := p.store(); store != nil && l.record.File != "" {
		faults.Point(l.record.Key, "revoked")
		store.Remove(l.record.File)
	}
	return true
}
