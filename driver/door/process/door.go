package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"nomad-driver-vault/driver/door"
)

const (
	rereadEach   = time.Second      // for each door
	rereadWithin = 30 * time.Second // for a Source
	rereadMost   = 64               // requests of a door that wait for the same answer
)

var errOpen = errors.New("a door with that ID is open")

// A Request is a door to open.
type Request struct {
	Spec       door.Spec
	Listen     Listen
	Source     Source
	Credential *door.Credential // nil: there is none yet, and the door refuses all
}

// A Door is one that is open. While the process is being started again, connects to it wait.
type Door struct {
	doors     *Doors
	spec      door.Spec
	hash      string
	serial    uint64
	listen    Listen
	listeners []int
	settled   chan error // the first answer of a process

	// Guarded by doors.mu.
	source     Source
	credential *door.Credential
	unused     []uint64 // generations of which the source was not told
	claimed    bool
	closed     bool
	waiting    []request // for the answer of the source, which is asked
	askedAt    time.Time
	counts     tally
}

// A request waits for the answer of a source.
type request struct {
	link *link
	id   uint64
}

// Open opens a door. A door of an earlier plugin with the same Spec and Listen stays as it is, with the connections
// that it has; Credential replaces the one that it has unless it is nil. An error names the field of the block, or says
// why nothing can listen.
func (d *Doors) Open(ctx context.Context, r Request) (*Door, error) {
	hash := hashOf(r.Spec, r.Listen)
	d.mu.Lock()
	before := d.byIDLocked(r.Spec.ID)
	if before != nil && before.claimed {
		d.mu.Unlock()
		return nil, errOpen
	}
	if before != nil && before.hash == hash && hashOf(before.spec, r.Listen) == hash {
		before.claimLocked(r)
		d.mu.Unlock()
		return before, nil
	}
	d.mu.Unlock()
	if before != nil {
		now, cancel := context.WithTimeout(ctx, 0)
		before.Close(now)
		cancel()
	}
	return d.openNew(ctx, r, hash)
}

// claimLocked gives a door of an earlier plugin to its task.
func (o *Door) claimLocked(r Request) {
	o.claimed, o.source, o.listen = true, r.Source, r.Listen
	for _, g := range o.unused {
		go r.Source.Unused(g)
	}
	o.unused = nil
	if r.Credential != nil {
		o.useLocked(r.Credential)
	}
}

func (d *Doors) openNew(ctx context.Context, r Request, hash string) (*Door, error) {
	listeners, err := r.Listen.listen()
	if err != nil {
		return nil, err
	}
	o := &Door{doors: d, spec: r.Spec, hash: hash, listen: r.Listen, listeners: listeners, source: r.Source,
		credential: r.Credential, claimed: true, settled: make(chan error, 1)}
	d.mu.Lock()
	if d.byIDLocked(r.Spec.ID) != nil {
		d.mu.Unlock()
		closeAll(listeners)
		return nil, errOpen
	}
	d.serial++
	o.serial = d.serial
	d.doors[o.serial] = o
	if d.running != nil {
		d.openLocked(d.running, o)
	}
	d.mu.Unlock()
	d.awake()
	select {
	case err = <-o.settled:
	case <-ctx.Done():
		err = fmt.Errorf("wait for the process that serves doors: %w", ctx.Err())
	case <-d.ctx.Done():
		err = errClosed
	}
	if err != nil {
		now, cancel := context.WithTimeout(context.WithoutCancel(ctx), 0)
		defer cancel()
		o.Close(now)
		return nil, err
	}
	return o, nil
}

func (d *Doors) awake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// openLocked has a process open a door. The function that it returns waits for the answer.
func (d *Doors) openLocked(r *running, o *Door) func(context.Context) error {
	answer := r.link.request(message{Open: &open{Serial: o.serial, Hash: o.hash, Spec: o.spec, Credential: o.credential,
		Unused: o.unused}}, o.listeners...)
	answered := make(chan struct{})
	d.over.Go(func() {
		_, err := answer(d.ctx)
		close(answered)
		var refused *refusal
		if err != nil && !errors.As(err, &refused) {
			return // the next process will be asked
		}
		select {
		case <-r.kept: // from now on the door outlives the plugin
		case <-r.link.done:
			return
		}
		if !o.settle(err) && err != nil {
			d.config.Logger.Error("a door cannot be opened again", "door", o.spec.ID, "error", err)
		}
	})
	return func(ctx context.Context) error {
		select {
		case <-answered:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openAll has a process open all doors, and those that are opened from now on.
func (d *Doors) openAll(r *running) func(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = r
	var answers []func(context.Context) error
	for _, o := range d.doors {
		answers = append(answers, d.openLocked(r, o))
	}
	return func(ctx context.Context) error {
		for _, answered := range answers {
			if err := answered(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// settle tells who waits in Open how that went. It is false when nobody does any more.
func (o *Door) settle(err error) bool {
	select {
	case o.settled <- err:
		return true
	default:
		return false
	}
}

// settle tells all who wait in Open that it went wrong.
func (d *Doors) settle(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.doors {
		o.settle(err)
	}
}

// Use has calls from now on use a credential. With nil the door refuses all.
func (o *Door) Use(c *door.Credential) {
	o.doors.mu.Lock()
	defer o.doors.mu.Unlock()
	o.useLocked(c)
}

func (o *Door) useLocked(c *door.Credential) {
	o.credential = c
	if r := o.doors.running; r != nil && !o.closed {
		r.link.send(message{Use: &use{Serial: o.serial, Credential: c}})
	}
}

// Generation is that of the last credential, also of one of an earlier plugin; zero if there is none. A new one must be
// higher.
func (o *Door) Generation() uint64 {
	o.doors.mu.Lock()
	defer o.doors.mu.Unlock()
	if o.credential == nil {
		return 0
	}
	return o.credential.Generation
}

// Close closes the door, and takes its socket away. Calls in flight are cut off when ctx is over. When Close returns,
// nothing of the door is left: the process is ended if it does not say so.
func (o *Door) Close(ctx context.Context) {
	d := o.doors
	d.mu.Lock()
	if o.closed {
		d.mu.Unlock()
		return
	}
	o.closed = true
	delete(d.doors, o.serial)
	closeAll(o.listeners)
	r := d.running
	var answer func(context.Context) (message, error)
	drain := time.Duration(0)
	if end, bounded := ctx.Deadline(); bounded {
		drain = max(time.Until(end), 0)
	}
	if r != nil {
		answer = r.link.request(message{Close: &closing{Serial: o.serial, Drain: drain}})
	}
	d.mu.Unlock()
	if err := o.listen.removeSocket(); err != nil {
		d.config.Logger.Warn("cannot remove the socket of a door", "door", o.spec.ID, "error", err)
	}
	if r == nil {
		return
	}
	confirm, cancel := context.WithTimeout(d.ctx, drain+closeMargin)
	defer cancel()
	if _, err := answer(confirm); err != nil && d.ctx.Err() == nil && !errors.Is(err, errClosed) {
		d.config.Logger.Error("the process that serves doors does not close one; it is ended", "door", o.spec.ID)
		r.kill()
	}
}

// A handler does what a process asks of the plugin.
type handler struct {
	doors   *Doors
	running *running
	limit   *rate.Limiter

	mu   sync.Mutex
	held []*Door
	over bool // what is held now is too late
}

// attached returns the doors that the process has handed back before its answer.
func (h *handler) attached() []*Door {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	return h.held
}

func (h *handler) handle(m message, files []int) error {
	if m.Held != nil {
		return h.hold(*m.Held, files)
	}
	if len(files) > 0 {
		closeAll(files)
		return errFrame
	}
	if err := h.limit.Wait(h.doors.ctx); err != nil {
		return err
	}
	switch {
	case m.Reread != nil && m.ID != 0:
		h.doors.reread(*m.Reread, request{h.running.link, m.ID})
	case m.Unused != nil:
		h.doors.unused(*m.Unused)
		h.running.link.answer(m.ID, message{}, nil)
	default:
		return errFrame
	}
	return nil
}

// hold takes a door that the process hands back. It is what the process says it is: a claim compares its Spec with what
// the job says. Which listeners come with it cannot be told: a process that is in somebody's hands can change those of
// its doors for each other, or for useless ones, but not get one that root would not have given it.
func (h *handler) hold(o open, files []int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || len(h.held) == heldMost || len(files) == 0 || len(o.Unused) > unusedMost || o.Spec.ID == "" ||
		slices.ContainsFunc(files, func(fd int) bool { return !isListener(fd) }) {
		closeAll(files)
		return errFrame
	}
	settled := make(chan error, 1)
	settled <- nil
	h.held = append(h.held, &Door{spec: o.Spec, hash: o.Hash, serial: o.Serial, listeners: files,
		credential: o.Credential, unused: o.Unused, settled: settled})
	return nil
}

// reread has a door's source read a credential anew. Requests meanwhile get the same answer.
func (d *Doors) reread(g generation, asked request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.doors[g.Serial]
	var err error
	switch {
	case o == nil || o.source == nil:
		err = errors.New("nobody can read its credential")
	case o.credential == nil || g.Generation > o.credential.Generation:
		err = errors.New("no such generation")
	case g.Generation < o.credential.Generation:
		asked.link.answer(asked.id, message{}, nil) // Use was sent before
		return
	case len(o.waiting) == rereadMost, len(o.waiting) == 0 && time.Since(o.askedAt) < rereadEach:
		err = errors.New("it was read a moment ago")
	}
	if err != nil {
		asked.link.answer(asked.id, message{}, err)
		return
	}
	o.waiting = append(o.waiting, asked)
	if len(o.waiting) == 1 {
		o.askedAt = time.Now()
		d.over.Go(func() { o.askSource(o.source, g.Generation) })
	}
}

func (o *Door) askSource(source Source, generation uint64) {
	ctx, cancel := context.WithTimeout(o.doors.ctx, rereadWithin)
	defer cancel()
	err := source.Reread(ctx, generation)
	if err != nil {
		err = errors.New("there is nothing newer") // no text of Vault's for the process
	}
	o.doors.mu.Lock()
	defer o.doors.mu.Unlock()
	for _, asked := range o.waiting {
		asked.link.answer(asked.id, message{}, err)
	}
	o.waiting = nil
}

// unused tells a door's source that a generation has no call in flight. The current one always may have.
func (d *Doors) unused(g generation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.doors[g.Serial]
	switch {
	case o == nil, o.credential != nil && g.Generation >= o.credential.Generation:
	case o.source == nil:
		if len(o.unused) < unusedMost {
			o.unused = append(o.unused, g.Generation)
		}
	default:
		source := o.source
		d.over.Go(func() { source.Unused(g.Generation) })
	}
}
