package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/logpipe"
	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/template"

	"github.com/hashicorp/nomad/plugins/drivers"
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

// leave keeps l for that long.
func (d *Driver) leave(l *left, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.park(l, wait)
}

// park is leave with mu held.
func (d *Driver) park(l *left, wait time.Duration) {
	l.late = make(chan struct{})
	d.idle[l.record.Key] = l
	l.timer = time.AfterFunc(wait, func() {
		_ = d.guard(l.record.Key, "giving up what it has left", func() error { // the log has it
			d.expire(l)
			return nil
		})
	})
}

// claim takes what the last run of a task has left, nil when there is nothing. Whoever stops the timer has it; one that is
// expiring is waited for, so that its files are not removed from under those of the next run.
func (d *Driver) claim(key string) *left {
	for {
		d.mu.Lock()
		l := d.idle[key]
		mine := l != nil && l.timer.Stop()
		if mine {
			delete(d.idle, key)
		}
		d.mu.Unlock()
		switch {
		case l == nil:
			return nil
		case mine:
			l.found = time.Time{}
			d.own(l)
			return l
		}
		<-l.late
	}
}

// own ends the part of the run that has left l.
func (d *Driver) own(l *left) {
	if l.pipes != nil {
		l.pipes.Close()
		l.pipes = nil
	}
	if l.seal != nil {
		l.seal()
	}
	if l.secrets == nil {
		l.secrets = credentials.Restore(d.env(), taskOf(l.record), l.record)
	}
}

// sweep ends what may still run of a task whose plugin process died, so that no task ever has two processes: the agent asks
// the next plugin for the same start once more where it had no answer, and the handle of a process can be lost with the
// plugin. So it does of a process of this plugin that could not be ended.
func (d *Driver) sweep(l *left) error {
	inner, can := d.inner.(Sweeper)
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

// taskOf returns what a record says of its task's configuration.
func taskOf(r state.Record) *drivers.TaskConfig {
	alloc, name, _ := strings.Cut(r.Key, "/")
	return &drivers.TaskConfig{AllocID: alloc, Name: name, AllocDir: r.AllocDir}
}

// gone reports that an allocation is, of which this is the directory.
func gone(allocDir string) bool {
	_, err := os.Stat(allocDir)
	return errors.Is(err, os.ErrNotExist)
}

// awaited reports that the agent may still recover the task: it has not come to it yet, or the process runs.
func (d *Driver) awaited(l *left) bool {
	r := l.record
	if l.found.IsZero() || r.Inner == nil || r.Launching || r.Ended || gone(r.AllocDir) {
		return false
	}
	inner, can := d.inner.(Sweeper)
	soon := time.Since(l.found) < claimedWithin
	if !can {
		return soon
	}
	return inner.Runs(taskOf(r)) && (soon || !r.Unacknowledged) // without a process nobody is hurt by new credentials
}

func (d *Driver) expire(l *left) {
	if d.ctx.Err() != nil { // the next plugin process finds it
		return
	}
	if d.awaited(l) {
		d.leave(&left{record: l.record, old: true, found: l.found}, unclaimedAfter)
		close(l.late)
		return
	}
	if l.secrets == nil {
		d.logger.Info("revoking the session of a task that is gone", "task", l.record.Key)
		l.secrets = credentials.Unpack(d.env(), taskOf(l.record), l.record)
	}
	d.own(l)
	if l.stray() {
		if err := d.sweep(l); err != nil {
			d.logger.Warn("a process may be left behind", "task", l.record.Key, "error", err)
			if d.sweepLater(l) {
				return
			}
		}
	}
	d.clear(l)
	d.mu.Lock()
	delete(d.idle, l.record.Key)
	d.mu.Unlock()
	close(l.late)
	d.revokeAll(l)
}

// sweepLater leaves l for another while, since a start of the task that finds nothing of it would meet the process that could not be ended. It does
// not for ever: the credentials of that process are to be revoked.
func (d *Driver) sweepLater(l *left) bool {
	if l.unswept.IsZero() {
		l.unswept = time.Now()
	}
	if time.Since(l.unswept) > claimedWithin {
		return false
	}
	d.leave(&left{record: l.record, secrets: l.secrets, old: l.old, unswept: l.unswept}, unclaimedAfter)
	close(l.late)
	return true
}

// clear removes the files of a run and sets aside what is to be revoked, where the next run does not overwrite it.
func (d *Driver) clear(l *left) {
	l.secrets.Pause()
	if root, err := os.OpenRoot(l.record.AllocDir); err == nil { // else the allocation is gone, and its files with it
		if err := template.Remove(root, taskOf(l.record).Name, l.record.Files); err != nil {
			d.logger.Warn("rendered files are left behind", "task", l.record.Key, "error", err)
		}
		root.Close()
	}
	reached(l.record.Key, "cleared")
	d.setAside(l)
	reached(l.record.Key, "set-aside")
	if store := d.kept(); store != nil {
		store.Remove(state.FileOf(l.record.Key))
	}
}

// setAside keeps what is to be revoked in a file of its own.
func (d *Driver) setAside(l *left) {
	store := d.kept()
	if store == nil || !l.secrets.Any() {
		return
	}
	r := l.record
	r.Once, r.Delivered, r.Inner = nil, nil, nil // which only a run needs
	l.secrets.Save(&r)
	file, err := store.SetAside(r)
	if err != nil && !l.warned {
		d.logger.Warn("a crash now would lose what is to be revoked", "task", l.record.Key, "error", err)
	}
	l.record.File = file
}

// revokeLater is revokeAll beside what is going on.
func (d *Driver) revokeLater(l *left) {
	go func() {
		_ = d.guard(l.record.Key, "revoking", func() error { // the log has it
			d.revokeAll(l)
			return nil
		})
	}()
}

// revokeAll tries until everything is revoked or the plugin ends.
func (d *Driver) revokeAll(l *left) {
	pause := sched.Backoff{First: time.Second, Most: time.Minute}
	for !d.revoke(d.ctx, l) {
		if l.record.File == "" {
			d.setAside(l)
		}
		select {
		case <-time.After(pause.Next()):
		case <-d.ctx.Done():
			return
		}
	}
}

// revoke tries once and reports whether nothing is left to revoke. How many are revoked at once is each cluster's to bound.
func (d *Driver) revoke(ctx context.Context, l *left) bool {
	ctx, cancel := context.WithTimeout(ctx, revokeWithin)
	defer cancel()
	unknown := l.secrets.Reclaim()
	waiting, lost := l.secrets.Revoke(ctx)
	if lost != nil {
		d.logger.Warn("left to end by its TTL", "task", l.record.Key, "error", lost)
	}
	if waiting = errors.Join(unknown, waiting); waiting != nil {
		if !l.warned && d.ctx.Err() == nil {
			d.logger.Warn("cannot revoke yet", "task", l.record.Key, "error", waiting)
		}
		l.warned = true
		return false
	}
	if l.warned {
		d.logger.Info("revoked at last, or ended by its TTL", "task", l.record.Key)
	}
	if store := d.kept(); store != nil && l.record.File != "" {
		reached(l.record.Key, "revoked")
		store.Remove(l.record.File)
	}
	return true
}
