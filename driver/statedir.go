package driver

import (
	"context"
	"errors"
	"time"

	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/state"

	"golang.org/x/sys/unix"
)

const (
	// lockedFor is how long a start waits for the plugin process before this one to let go of the state directory: it
	// has endWithin, and is killed after two seconds.
	lockedFor = 5 * time.Second
	// tendEvery is how often is tried again what did not succeed with the state directory.
	tendEvery = time.Minute
)

// openState opens the state directory, for which it waits where another process still has it.
func (d *Driver) openState() {
	dir := d.configured().StateDir
	store, err := state.Open(dir, d.logger)
	for end := time.Now().Add(lockedFor); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-d.ctx.Done():
			return
		}
		store, err = state.Open(dir, d.logger)
	}
	if err != nil {
		d.logger.Warn("sessions will not survive a restart of this plugin until this is mended",
			"state_dir", dir, "error", err, "status", "not served")
		return
	}
	d.keepIn(store)
}

// tendState tries again what did not succeed with the state directory: to open it, or to save a task there.
func (d *Driver) tendState() {
	for {
		select {
		case <-time.After(tendEvery):
		case <-d.ctx.Done():
			return
		}
		if d.kept() == nil {
			dir := d.configured().StateDir
			store, err := state.Open(dir, d.logger)
			if err != nil {
				continue
			}
			d.logger.Info("sessions survive a restart of this plugin again", "state_dir", dir)
			d.keepIn(store)
		}
		d.saveAgain()
	}
}

// keepIn takes over what a plugin process before this one has left, and has the sessions kept there from now on. A task
// that this process serves already, because the directory could not be opened before, cannot adopt any more: what is
// there of it is revoked.
func (d *Driver) keepIn(s *state.Store) {
	context.AfterFunc(d.ctx, s.Close)
	doors := d.serveDoors()
	var late []*parkedRun
	var held []string
	records := s.All()
	d.mu.Lock()
	d.store, d.doors = s, doors
	close(d.keeping)
	for _, r := range records {
		l := &parkedRun{record: r, old: true, found: time.Now()}
		switch known := d.tasks[r.Key] != nil || d.parking.has(r.Key); {
		case r.Aside:
			late = append(late, l)
		case known:
			l.record.File = "" // which is the task's
			late = append(late, l)
		default:
			d.parking.park(l, unclaimedAfter)
			if r.Held != nil {
				held = append(held, r.Key)
			}
		}
	}
	d.mu.Unlock()
	for _, key := range held {
		if l := d.parking.claim(key); l != nil {
			d.hold(l)
		}
	}
	for _, l := range late {
		l.credentials = credentials.Unpack(d.env(), taskOf(l.record), l.record)
		if l.record.File == "" {
			d.parking.setAside(l)
		}
		d.parking.revokeInBackground(l)
	}
}

// saveAgain saves each task for which that has not succeeded.
func (d *Driver) saveAgain() {
	var saves []func()
	d.mu.Lock()
	for _, t := range d.tasks {
		saves = append(saves, t.saveAgain)
	}
	d.mu.Unlock()
	for _, save := range saves {
		save()
	}
	d.parking.saveAgain()
}
