package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
)

// A servedDoor is one that is open: a process.Door.
type servedDoor interface {
	// Use has calls that begin from now on use c.
	Use(c *door.Credential)
	// Generation is that of the credential in use, also of one that an earlier plugin process gave it; zero: none.
	Generation() uint64
	// Close closes it. Calls in flight are cut off when ctx is over.
	Close(ctx context.Context)
}

// A doorkeeper serves the doors of all tasks: process.Doors.
type doorkeeper interface {
	// Open opens a door, or takes it over from an earlier plugin process.
	Open(context.Context, process.Request) (servedDoor, error)
	Status(context.Context) process.Status
}

// keeper has Open return what tests can make too.
type keeper struct{ *process.Doors }

func (k keeper) Open(ctx context.Context, r process.Request) (servedDoor, error) {
	return k.Doors.Open(ctx, r)
}

const (
	// rereadEvery is how often the doors of a task may have their credentials read anew.
	rereadEvery = 5 * time.Second
	// currentEvery is how often a door is told that its credential is still the right one, while the sessions are well.
	currentEvery = 30 * time.Second
)

// What the process that serves the doors of a node's tasks may use.
const (
	doorsMemory = 512 << 20 // bytes
	doorsRecord = 64 << 20  // bytes of a file of the record
	doorsKept   = 8         // older files of the record
	doorsAlone  = 72 * time.Hour
)

// serveDoors takes over the doors that an earlier plugin process has left, and returns what opens more.
func (d *Driver) serveDoors() doorkeeper {
	op := d.configured()
	c := process.Config{Dir: op.StateDir, UID: config.DoorsUser, GID: config.DoorsUser, Memory: doorsMemory,
		RecordSize: doorsRecord, Alone: doorsAlone, Claim: claimedWithin, Logger: d.logger}
	if op.Doors.RecordDir != "" {
		c.Record = &process.RecordFile{Dir: op.Doors.RecordDir, Name: d.name, Keep: doorsKept}
	}
	served := process.New(d.ctx, c)
	context.AfterFunc(d.ctx, served.Shutdown)
	return keeper{served}
}

// errNoKeeper is for a plugin process that can keep nothing of a door.
var errNoKeeper = errors.New("door: this node serves none until its state_dir can be used: the agent's log says why " +
	"it cannot")

// errNothingNewer is for a door whose credential was refused, and read again.
var errNothingNewer = errors.New("what was read anew is the same")

// doorsOf is the task that doors are for.
type doorsOf struct {
	ctx    context.Context // of the run
	cfg    *drivers.TaskConfig
	conf   *config.Task
	op     config.Operator
	keeper doorkeeper // nil: no task may have doors
}

// doors are those of one task. The goroutine of run owns them, but for what mu guards.
type doors struct {
	doorsOf
	all     map[string]*taskDoor // by name
	current <-chan time.Time     // fires when the doors are to be told that their credentials are still right
	rereads chan reread
	readAt  time.Time     // of the last reading that a door has asked for
	waiting []reread      // for the rendering under way
	retire  func()        // what is to be revoked once no older credential is in use; nil: nothing
	idled   chan struct{} // has one when an older credential is not in use any more

	mu    sync.Mutex
	inUse map[string]map[uint64]bool // replaced generations with calls in flight, by the door's name
}

// taskDoor is a door and what it uses.
type taskDoor struct {
	servedDoor
	sum string // of the credential in use
	now uint64 // its generation
}

// reread is a door's question for a newer credential.
type reread struct {
	name       string
	generation uint64
	answer     chan error
}

// asker is what one door of a task asks.
type asker struct {
	*doors
	name string
}

// Unused notes that no call uses a replaced generation any more.
func (a asker) Unused(generation uint64) {
	a.mu.Lock()
	delete(a.inUse[a.name], generation)
	a.mu.Unlock()
	select {
	case a.idled <- struct{}{}:
	default: // it is told already
	}
}

// Reread has the task read anew what an upstream has refused, and returns when the door has something newer.
func (a asker) Reread(ctx context.Context, generation uint64) error {
	r := reread{a.name, generation, make(chan error, 1)}
	select {
	case a.rereads <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
	select {
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

func newDoors(of doorsOf) *doors {
	return &doors{doorsOf: of, all: map[string]*taskDoor{}, rereads: make(chan reread), idled: make(chan struct{}, 1),
		inUse: map[string]map[uint64]bool{}}
}

// check refuses doors whose credentials the task could get without them.
func (d *doors) check(inner drivers.DriverPlugin) error {
	if len(d.conf.Doors) == 0 {
		return nil
	}
	if d.keeper == nil {
		return errNoKeeper
	}
	caps, err := inner.Capabilities()
	if err != nil {
		return fmt.Errorf("ask for the driver's capabilities: %w", err)
	}
	if caps.FSIsolation == fsisolation.None {
		return config.ErrDoorUnhidden
	}
	for _, name := range slices.Sorted(maps.Keys(d.conf.Doors)) {
		_, err := d.listen(name)
		if o := d.conf.Doors[name]; err == nil && d.op.LogsIn(d.conf, o) {
			err = credentials.CheckHidden(d.conf.Vault(o.Common().Vault), d.cfg)
		}
		if err != nil {
			return fmt.Errorf("door %q: %w", name, err)
		}
	}
	return nil
}

// hidePrivate has a task with doors find an empty directory in the place of private/, where its identity is. Containers
// have none; the root of an exec task is its directory.
func (d *doors) hidePrivate(cfg *drivers.TaskConfig) error {
	if len(d.conf.Doors) == 0 {
		return nil
	}
	empty := filepath.Join(d.op.StateDir, "empty")
	if err := os.MkdirAll(empty, 0o555); err != nil {
		return fmt.Errorf("make the directory that hides private/: %w", err)
	}
	cfg.Mounts = append(cfg.Mounts, &drivers.MountConfig{TaskPath: "/private", HostPath: empty, Readonly: true})
	return nil
}

// openAll opens the task's doors, or takes them over from an earlier plugin process, and says of each that stays closed
// why. r is the record of the task.
func (d *doors) openAll(r state.Record) (closed []error) {
	for _, name := range d.conf.DoorsTakenAway() {
		closed = append(closed, fmt.Errorf("door %q: this node's operator does not have it any more", name))
	}
	for _, name := range slices.Sorted(maps.Keys(d.conf.Doors)) {
		opened, err := d.openOne(name, r)
		if err != nil {
			closed = append(closed, fmt.Errorf("door %q: %w", name, err))
			continue
		}
		o := &taskDoor{servedDoor: opened, now: opened.Generation()}
		if o.now != 0 {
			o.sum = r.Delivered[render.DoorSum(name)]
		}
		d.all[name], d.inUse[name] = o, map[uint64]bool{}
		d.current = time.NewTicker(currentEvery).C
	}
	return closed
}

func (d *doors) openOne(name string, r state.Record) (servedDoor, error) {
	if d.keeper == nil {
		return nil, errNoKeeper
	}
	spec, err := d.op.DoorSpec(d.conf, d.conf.Doors[name], r.Key)
	if err != nil {
		return nil, err
	}
	spec.Secret = r.DoorSecrets[name]
	listen, err := d.listen(name)
	if err != nil {
		return nil, err
	}
	return d.keeper.Open(d.ctx, process.Request{Spec: spec, Source: asker{d, name}, Listen: listen})
}

// use gives the doors the credentials of a generation. Unless they are new it tells the doors that those which they
// have are still the right ones: without that a door refuses calls when the option stale says so.
func (d *doors) use(g *render.Generation) {
	for name, o := range d.all {
		c := g.Door(name)
		if c == nil {
			continue
		}
		if sum := g.Sums[render.DoorSum(name)]; sum != o.sum {
			d.replaced(name, o.now)
			// The numbers of an earlier plugin process are lower.
			o.sum, o.now = sum, max(o.now+1, uint64(time.Now().UnixNano()))
		}
		c.Generation, c.ReadAt = o.now, time.Now()
		o.Use(c)
	}
}

// replaced notes that calls in flight may use a generation that the next one replaces.
func (d *doors) replaced(name string, generation uint64) {
	if generation == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inUse[name][generation] = true
}

// ask answers a door whose credential was refused, if it has a newer one already or all was read anew just now. Else
// the door waits for answer, with those that wait already.
func (d *doors) ask(r reread) {
	if d.newer(r) == nil || len(d.waiting) == 0 && time.Since(d.readAt) < rereadEvery {
		r.answer <- d.newer(r)
		return
	}
	d.waiting = append(d.waiting, r)
}

// newer returns nil where a door has another credential than the one it asks about.
func (d *doors) newer(r reread) error {
	if o := d.all[r.name]; o == nil || o.now <= r.generation {
		return errNothingNewer
	}
	return nil
}

// answer answers the doors that wait for the rendering that is over.
func (d *doors) answer() {
	for _, r := range d.waiting {
		r.answer <- d.newer(r)
	}
	d.waiting = nil
}

// retireLater has revoked what a generation replaces, as soon as no call of a door uses it any more.
func (d *doors) retireLater(s *credentials.Snapshot, grace time.Duration) {
	d.retire = func() { s.Commit(grace) }
	d.retireIdle()
}

// retireIdle has revoked what was replaced, if no call uses it.
func (d *doors) retireIdle() {
	if d.retire == nil || d.draining() {
		return
	}
	d.retire()
	d.retire = nil
}

// draining reports whether a call uses a credential that was replaced.
func (d *doors) draining() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, generations := range d.inUse {
		if len(generations) > 0 {
			return true
		}
	}
	return false
}

// closeAll closes the task's doors. There is no process any more that could wait for a call.
func (d *doors) closeAll() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	for _, o := range d.all {
		o.Close(now)
	}
	clear(d.all)
}
