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
)

const (
	// unclaimedAfter is how often the plugin looks whether the agent may still come for a task: not once its allocation is gone.
	unclaimedAfter = time.Minute
	// claimedWithin is how long the agent may take to come for a task that it knows, whatever has become of the job. It waits for its
	// drivers, up to 55 seconds, and recovers one task after the other before it asks the server (client/client.go, NewClient and
	// restoreState): the tasks of a docker daemon that hangs, each for minutes, delay those behind them.
	claimedWithin = 15 * time.Minute
	// revokeWithin bounds one attempt to revoke, and undoWithin the one that a failed start waits for.
	revokeWithin = 30 * time.Second
	undoWithin   = 5 * time.Second
)

// parking holds what runs of tasks leave for the next run of the same task.
type parking struct {
	d *Driver

	mu     sync.Mutex       // guards parked
	parked map[string]*left // by the key of the task
}

// left is what one run of a task leaves for the next: its secrets, and what is remembered of it in the state directory.
// Either the next run claims it, or it expires: its files are removed and its sessions revoked.
type left struct {
	record  state.Record
	secrets *credentials.Set // nil: not restored yet from what another plugin process has saved
	save    func()           // saves it, where that has not succeeded yet; nil for another process's
	seal    func()           // ends what the run itself still saves of its sessions; nil for another process's
	pipes   *logpipe.Pipes   // still held after a recovery that failed: the log collector reads on until the next start holds them; else nil
	timer   *time.Timer
	late    chan struct{} // closed when it cannot be claimed any more and its files are gone, or when another has taken its place
	old     bool          // of a plugin process before this one
	found   time.Time     // by this one, until it is claimed
	warned  bool          // that it cannot be revoked yet
	unswept time.Time     // since when its processes could not be ended; zero: they could, or were not looked for
}

// Format keeps the sessions out of logs, errors and panics.
func (l *left) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[what %s has left]", l.record.Key) }

// park keeps l for that long, or until the next run of its task claims it.
func (p *parking) park(l *left, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.late = make(chan struct{})
	p.parked[l.record.Key] = l
	l.timer = time.AfterFunc(wait, func() {
		_ = p.d.guard(l.record.Key, "giving up what it has left", func() error { // the log has it
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

// claim takes what the last run of a task has left, nil when there is nothing. Whoever stops the timer has it; one that is
// expiring is waited for, so that its files are not removed from under those of the next run.
func (p *parking) claim(key string) *left {
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
		<-l.late
	}
}

// takeOver ends the part of the run that has left l.
func (p *parking) takeOver(l *left) {
	if l.pipes != nil {
		l.pipes.Close()
		l.pipes = nil
	}
	if l.seal != nil {
		l.seal()
	}
	if l.secrets == nil {
		l.secrets = credentials.Restore(p.d.env(), taskOf(l.record), l.record)
	}
}

// sweep ends what may still run of a task whose plugin process died, so that no task ever has two processes: the agent asks
// the next plugin for the same start once more where it had no answer, and the handle of a process can be lost with the
// plugin. So it does of a process of this plugin that could not be ended.
func (p *parking) sweep(l *left) error {
	inner, can := p.d.inner.(Sweeper)
	if !(l.old || l.record.Launching) || !can {
		return nil
	}
	if err := inner.Sweep(taskOf(l.record)); err != nil {
		return fmt.Errorf("end what an earlier start has left: %w", err)
	}
	return nil
}

// stray reports that nobody else will end what l may have left running: the agent has no handle of it, or the allocation is
// gone.
func (l *left) stray() bool {
	return l.record.Launching || l.record.Unacknowledged || gone(l.record.AllocDir)
}

// gone reports that an allocation is, of which this is the directory.
func gone(allocDir string) bool {
	_, err := os.Stat(allocDir)
	return errors.Is(err, os.ErrNotExist)
}

// mayRecover reports that the agent may still recover the task: it has not come to it yet, or the process runs.
func (p *parking) mayRecover(l *left) bool {
	r := l.record
	if l.found.IsZero() || r.Inner == nil || r.Launching || r.Ended || gone(r.AllocDir) {
		return false
	}
	inner, can := p.d.inner.(Sweeper)
	soon := time.Since(l.found) < claimedWithin
	if !can {
		return soon
	}
	return inner.Runs(taskOf(r)) && (soon || !r.Unacknowledged) // without a process nobody is hurt by new credentials
}

func (p *parking) expire(l *left) {
	if p.d.ctx.Err() != nil { // the next plugin process finds it
		return
	}
	if p.mayRecover(l) {
		p.park(&left{record: l.record, old: true, found: l.found}, unclaimedAfter)
		close(l.late)
		return
	}
	if l.secrets == nil {
		p.d.logger.Info("revoking the session of a task that is gone", "task", l.record.Key)
		l.secrets = credentials.Unpack(p.d.env(), taskOf(l.record), l.record)
	}
	p.takeOver(l)
	if l.stray() {
		if err := p.sweep(l); err != nil {
			p.d.logger.Warn("a process may be left behind", "task", l.record.Key, "error", err)
			if p.retrySweep(l) {
				return
			}
		}
	}
	p.removeFiles(l)
	p.mu.Lock()
	delete(p.parked, l.record.Key)
	p.mu.Unlock()
	close(l.late)
	p.revokeUntilDone(l)
}

// retrySweep leaves l for another while, since a start of the task that finds nothing of it would meet the process that could not be ended. It does
// not for ever: the credentials of that process are to be revoked.
func (p *parking) retrySweep(l *left) bool {
	if l.unswept.IsZero() {
		l.unswept = time.Now()
	}
	if time.Since(l.unswept) > claimedWithin {
		return false
	}
	p.park(&left{record: l.record, secrets: l.secrets, old: l.old, unswept: l.unswept}, unclaimedAfter)
	close(l.late)
	return true
}

// removeFiles removes the files of a run and sets aside what is to be revoked, where the next run does not overwrite it.
func (p *parking) removeFiles(l *left) {
	l.secrets.Pause()
	if root, err := os.OpenRoot(l.record.AllocDir); err == nil { // else the allocation is gone, and its files with it
		if err := template.Remove(root, taskOf(l.record).Name, l.record.Files); err != nil {
			p.d.logger.Warn("rendered files are left behind", "task", l.record.Key, "error", err)
		}
		root.Close()
	}
	reached(l.record.Key, "cleared")
	p.setAside(l)
	reached(l.record.Key, "set-aside")
	if store := p.d.kept(); store != nil {
		store.Remove(state.FileOf(l.record.Key))
	}
}

// setAside keeps what is to be revoked in a file of its own.
func (p *parking) setAside(l *left) {
	store := p.d.kept()
	if store == nil || !l.secrets.Any() {
		return
	}
	r := l.record
	r.Once, r.Delivered, r.Inner = nil, nil, nil // which only a run needs
	l.secrets.Save(&r)
	file, err := store.SetAside(r)
	if err != nil && !l.warned {
		p.d.logger.Warn("a crash now would lose what is to be revoked", "task", l.record.Key, "error", err)
	}
	l.record.File = file
}

// revokeInBackground is revokeAll beside what is going on.
func (p *parking) revokeInBackground(l *left) {
	go func() {
		_ = p.d.guard(l.record.Key, "revoking", func() error { // the log has it
			p.revokeUntilDone(l)
			return nil
		})
	}()
}

// revokeUntilDone tries until everything is revoked or the plugin ends.
func (p *parking) revokeUntilDone(l *left) {
	pause := sched.Backoff{First: time.Second, Most: time.Minute}
	for !p.tryRevoke(p.d.ctx, l) {
		if l.record.File == "" {
			p.setAside(l)
		}
		select {
		case <-time.After(pause.Next()):
		case <-p.d.ctx.Done():
			return
		}
	}
}

// tryRevoke tries once and reports whether nothing is left to revoke. How many are revoked at once is each cluster's to bound.
func (p *parking) tryRevoke(ctx context.Context, l *left) bool {
	ctx, cancel := context.WithTimeout(ctx, revokeWithin)
	defer cancel()
	unknown := l.secrets.Reclaim()
	waiting, lost := l.secrets.Revoke(ctx)
	if lost != nil {
		p.d.logger.Warn("left to end by its TTL", "task", l.record.Key, "error", lost)
	}
	if waiting = errors.Join(unknown, waiting); waiting != nil {
		if !l.warned && p.d.ctx.Err() == nil {
			p.d.logger.Warn("cannot revoke yet", "task", l.record.Key, "error", waiting)
		}
		l.warned = true
		return false
	}
	if l.warned {
		p.d.logger.Info("revoked at last, or ended by its TTL", "task", l.record.Key)
	}
	if store := p.d.kept(); store != nil && l.record.File != "" {
		reached(l.record.Key, "revoked")
		store.Remove(l.record.File)
	}
	return true
}
