package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"nomad-driver-vault/driver/door"
)

const (
	idleFor     = time.Minute // a process without a door stays so long
	keepEach    = 10 * time.Second
	pauseMost   = 10 * time.Second // between two starts of a process that ends at once
	heldMost    = 1 << 14          // doors that a process may hand back
	saysEach    = 1000             // messages of the process a second
	closeMargin = 5 * time.Second  // for the process to say that a door is closed
)

// Config is what the plugin's side needs to know.
type Config struct {
	Dir        string // of the control socket: root's alone, one for each plugin of the node
	UID, GID   int    // of the process: no user's, and not what a task may run as
	Memory     int64  // bytes that the process may use; with more it dies. The collector aims at 3/4 of it
	Record     *RecordFile
	RecordSize int64         // bytes of the record at which another file is begun; also without Record
	Alone      time.Duration // how long the process goes on at most without a plugin
	Claim      time.Duration // after which doors of an earlier plugin are closed that nobody has opened again
	Logger     hclog.Logger
}

// A Source makes the credentials of a door: the part of door.Plugin that the plugin does.
type Source interface {
	Reread(ctx context.Context, generation uint64) error
	// Unused may be told of a generation twice, and of one that it does not know. It must not block.
	Unused(generation uint64)
}

// Doors is the plugin's side: all doors that are open, and the process that serves them.
type Doors struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // a door was opened or closed
	over   sync.WaitGroup

	mu      sync.Mutex
	doors   map[uint64]*Door
	serial  uint64
	running *running // nil while there is none
	began   time.Time
}

// New returns the doors. If an earlier plugin has left a process, its doors stay open until Open claims them or
// Config.Claim has passed. Otherwise the process starts with the first door.
func New(ctx context.Context, c Config) *Doors {
	d := &Doors{config: c, wake: make(chan struct{}, 1), doors: make(map[uint64]*Door),
		serial: uint64(time.Now().UnixNano()), began: time.Now()}
	d.ctx, d.cancel = context.WithCancel(ctx)
	left := d.resume()
	d.over.Go(func() { d.supervise(left) })
	return d
}

// Shutdown leaves the doors to the process.
func (d *Doors) Shutdown() {
	d.cancel()
	d.over.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, each := range d.doors {
		closeAll(each.listeners)
	}
	clear(d.doors)
}

// supervise keeps a process as long as there are doors.
func (d *Doors) supervise(r *running) {
	pause := time.Duration(0)
	for {
		if r == nil && !d.wanted() {
			return
		}
		began := time.Now()
		if r == nil {
			r = d.launchLoudly()
		}
		if r != nil && !d.tend(r) {
			return
		}
		r = nil
		pause = nextPause(pause, time.Since(began))
		select {
		case <-time.After(pause):
		case <-d.ctx.Done():
			return
		}
	}
}

// launchLoudly is launch that tells who waits in Open, and the log, if it fails.
func (d *Doors) launchLoudly() *running {
	r, err := d.launch(nil)
	if err != nil && d.ctx.Err() == nil {
		d.settle(fmt.Errorf("start the process that serves doors: %w", err))
		d.config.Logger.Error("the process that serves doors does not start; it is tried again", "error", err)
	}
	return r
}

// nextPause returns how long to wait before the next start, after a process that has lived so long.
func nextPause(last, lived time.Duration) time.Duration {
	if lived > pauseMost {
		return 0
	}
	return min(max(2*last, 20*time.Millisecond), pauseMost)
}

// wanted waits until there is a door. It is false when the plugin ends.
func (d *Doors) wanted() bool {
	for {
		d.mu.Lock()
		n := len(d.doors)
		d.mu.Unlock()
		if n > 0 {
			return d.ctx.Err() == nil
		}
		select {
		case <-d.wake:
		case <-d.ctx.Done():
			return false
		}
	}
}

// launch starts a process and gives it all doors. old is the process that had them, if it runs.
func (d *Doors) launch(old *running) (*running, error) {
	ctx, cancel := context.WithTimeout(d.ctx, startWithin)
	defer cancel()
	log, err := newStderr(d.config.Logger)
	if err != nil {
		return nil, err
	}
	defer log.end.Close()
	r, err := start(ctx, d.config, log.end)
	if err != nil {
		return nil, log.explain(err)
	}
	r.log = log
	if _, err := d.attach(ctx, r); err != nil {
		r.kill()
		return nil, log.explain(err)
	}
	opened := d.openAll(r)
	if err = opened(ctx); err == nil {
		err = d.takeOver(ctx, r, old)
	}
	if err != nil {
		d.gone(r)
		return nil, err
	}
	close(r.kept)
	return r, nil
}

// takeOver makes r the process that the next plugin finds. Whichever step is the plugin's last, at most one process
// goes on without it.
func (d *Doors) takeOver(ctx context.Context, r, old *running) error {
	yes, no := true, false
	if old != nil {
		if _, err := old.link.ask(ctx, message{Keep: &no}); err != nil {
			return err
		}
	}
	if err := r.writePID(d.config.Dir); err != nil {
		return err
	}
	at := filepath.Join(d.config.Dir, controlSocket)
	if err := os.Rename(at+newSuffix, at); err != nil {
		return err
	}
	_, err := r.link.ask(ctx, message{Keep: &yes})
	return err
}

// attach makes the plugin the one that a process listens to, and returns the doors that it has.
func (d *Doors) attach(ctx context.Context, r *running) (held []*Door, err error) {
	handler := &handler{doors: d, running: r, limit: rate.NewLimiter(saysEach, 2*saysEach)}
	files := []int{rawFD(r.log.end)}
	if d.config.Record != nil {
		record, err := d.config.Record.open()
		if err != nil {
			return nil, err
		}
		defer record.Close()
		files = append(files, rawFD(record))
	}
	go func() {
		if err := r.link.run(handler.handle); errors.Is(err, errFrame) {
			d.config.Logger.Error("the process that serves doors has sent what it may not; it is ended", "error", err)
		}
	}()
	_, err = r.link.ask(ctx, message{Attach: &attach{Alone: d.config.Alone}}, files...)
	return handler.attached(), err
}

// tend looks after a process until it ends. It is false when the plugin ends before.
func (d *Doors) tend(r *running) bool {
	each := time.NewTicker(keepEach)
	defer each.Stop()
	idle := time.Now()
	for {
		select {
		case <-r.link.done:
			d.gone(r)
			d.config.Logger.Warn("the process that serves doors has ended; it is started again if there are doors")
			return d.ctx.Err() == nil
		case <-d.ctx.Done():
			r.release()
			return false
		case now := <-each.C:
			if d.housekeep(r, now) {
				idle = now
			}
			if now.Sub(idle) > idleFor && d.dismiss(r) {
				return true
			}
		}
	}
}

// housekeep closes doors that nobody has claimed, begins another file of the record if it is time, and reports whether
// there are doors.
func (d *Doors) housekeep(r *running, now time.Time) bool {
	d.closeUnclaimed(now)
	if d.config.Record != nil {
		file, err := d.config.Record.rotate(d.config.RecordSize)
		switch {
		case err != nil:
			d.config.Logger.Warn("cannot rotate the record of doors", "error", err)
		case file != nil:
			r.link.send(message{Record: &struct{}{}}, rawFD(file))
			file.Close()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.doors) > 0
}

// dismiss ends a process that has no door.
func (d *Doors) dismiss(r *running) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.doors) > 0 {
		return false
	}
	d.running = nil
	r.kill()
	return true
}

// gone forgets a process that has ended, or is to.
func (d *Doors) gone(r *running) {
	d.mu.Lock()
	if d.running == r {
		d.running = nil
	}
	d.mu.Unlock()
	r.kill()
}

// resume finds the process of an earlier plugin, and takes over its doors. If it is of another build, a new one gets
// them, and it ends when the calls in flight have ended.
func (d *Doors) resume() *running {
	ctx, cancel := context.WithTimeout(d.ctx, startWithin)
	defer cancel()
	r, sameBuild, err := find(ctx, d.config.Dir)
	if err != nil {
		return nil // nothing is left: the doors are opened anew
	}
	if r.log, err = newStderr(d.config.Logger); err == nil {
		err = d.adopt(ctx, r)
		r.log.end.Close()
	}
	if err != nil {
		d.config.Logger.Warn("cannot take over the process that serves doors; it is ended", "error", err)
		r.kill()
		return nil
	}
	if sameBuild {
		d.mu.Lock()
		d.running = r
		d.mu.Unlock()
		return r
	}
	return d.replace(ctx, r)
}

// replace has a new process take the place of old.
func (d *Doors) replace(ctx context.Context, old *running) *running {
	r, err := d.launch(old)
	if err != nil {
		d.config.Logger.Warn("cannot start the process that serves doors; that of the earlier plugin is ended", "error", err)
		old.kill()
		return nil
	}
	within := drainMost
	if _, err := old.link.ask(ctx, message{Drain: &within}); err != nil {
		old.kill()
		return r
	}
	old.release()
	return r
}

// adopt takes over the doors of a process, as not claimed yet.
func (d *Doors) adopt(ctx context.Context, r *running) error {
	held, err := d.attach(ctx, r)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, each := range held {
		if d.byIDLocked(each.spec.ID) != nil || d.doors[each.serial] != nil {
			closeAll(each.listeners)
			continue
		}
		each.doors = d
		d.doors[each.serial] = each
	}
	return err
}

func (d *Doors) byIDLocked(id string) *Door {
	for _, each := range d.doors {
		if each.spec.ID == id {
			return each
		}
	}
	return nil
}

// closeUnclaimed closes the doors of an earlier plugin that are nobody's.
func (d *Doors) closeUnclaimed(now time.Time) {
	if now.Sub(d.began) < d.config.Claim {
		return
	}
	d.mu.Lock()
	var left []*Door
	for _, each := range d.doors {
		if !each.claimed {
			left = append(left, each)
		}
	}
	d.mu.Unlock()
	for _, each := range left {
		d.config.Logger.Info("closing a door that no task has claimed", "door", each.spec.ID)
		d.over.Go(func() { each.Close(d.ctx) })
	}
}

// hashOf identifies what a door was opened with.
func hashOf(s door.Spec, l Listen) string {
	text, err := json.Marshal(struct {
		Spec   door.Spec
		Listen Listen
	}{s, l})
	if err != nil {
		return "" // no field can do that
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
