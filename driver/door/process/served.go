package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"nomad-driver-vault/driver/door"
)

// readyWithin is how long connects wait for the first credential of a door: a plugin that has opened it anew for a task
// that runs has to read that first.
const readyWithin = 10 * time.Second

// unusedMost is how many generations of a door are kept for a plugin that is away. The leases of others end by
// themselves.
const unusedMost = 64

// served is a door in the process. It is what the door asks for a plugin.
type served struct {
	server    *server
	door      door.Door
	listeners []listener
	ready     chan struct{} // closed by the first credential
	once      sync.Once     // of that

	mu    sync.Mutex
	state open // as a plugin would open it: with the last credential, and what no plugin was told
}

// A listener is one of net's, unwrapped: File returns another descriptor of it.
type listener interface {
	net.Listener
	File() (*os.File, error)
}

// open opens a door on the listeners, which it owns.
func (s *server) open(o open, files []int) error {
	d := &served{server: s, state: o, ready: make(chan struct{})}
	err := d.listen(files)
	if err == nil {
		d.door, err = s.opener(o.Spec, d)
	}
	if err != nil {
		d.unlisten()
		return err
	}
	if o.Credential != nil {
		d.use(o.Credential)
	}
	s.mu.Lock()
	_, exists := s.doors[o.Serial]
	if !exists {
		s.doors[o.Serial] = d
	}
	s.mu.Unlock()
	if exists {
		d.unlisten()
		d.door.Close(context.Background())
		return errors.New("a door of that number is open")
	}
	for _, l := range d.listeners {
		go d.serve(l)
	}
	return nil
}

// listen makes listeners of the files, and closes these.
func (d *served) listen(files []int) error {
	for i, fd := range files {
		file := os.NewFile(uintptr(fd), "door")
		l, err := net.FileListener(file)
		file.Close()
		if err != nil {
			closeAll(files[i+1:])
			return err
		}
		switch l := l.(type) {
		case *net.UnixListener:
			d.listeners = append(d.listeners, &peerListener{UnixListener: l, cgroups: d.state.Spec.Peers.Cgroups,
				refuse: func(p door.Peer, why error) { d.Call(refusedPeer(d.state.Spec.ID, p, why)) }})
		case *net.TCPListener:
			d.listeners = append(d.listeners, l)
		default:
			l.Close()
			closeAll(files[i+1:])
			return fmt.Errorf("a listener of the kind %T", l)
		}
	}
	return nil
}

func (d *served) unlisten() {
	for _, l := range d.listeners {
		l.Close()
	}
}

// serve serves a listener until the door is closed. Connects wait for the door's first credential; if there is none in
// time, the door says so.
func (d *served) serve(l net.Listener) {
	select {
	case <-d.ready:
	case <-time.After(readyWithin):
	}
	if err := d.door.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
		fmt.Fprintf(os.Stderr, "serve door %q: %v\n", d.state.Spec.ID, err)
	}
}

// use has calls from now on use a credential.
func (s *server) use(u use) {
	s.mu.Lock()
	d := s.doors[u.Serial]
	s.mu.Unlock()
	if d == nil {
		return
	}
	d.mu.Lock()
	d.state.Credential = u.Credential
	d.mu.Unlock()
	d.use(u.Credential)
}

func (d *served) use(c *door.Credential) {
	d.door.Use(c)
	d.once.Do(func() { close(d.ready) })
}

// close closes a door, and returns when its calls have ended or were cut off.
func (s *server) close(serial uint64, drain time.Duration) {
	s.mu.Lock()
	d := s.doors[serial]
	if d == nil {
		s.mu.Unlock()
		return
	}
	delete(s.doors, serial)
	s.draining++
	s.mu.Unlock()
	d.unlisten()
	ctx, cancel := context.WithTimeout(context.Background(), min(drain, drainMost))
	d.door.Close(ctx)
	cancel()
	s.mu.Lock()
	s.draining--
	s.mu.Unlock()
	s.endIfOver(time.Now())
}

// count returns the counters of a door. Peers that may not use it are among the refused calls.
func (s *server) count(serial uint64) (*door.Counters, error) {
	s.mu.Lock()
	d := s.doors[serial]
	s.mu.Unlock()
	if d == nil {
		return nil, errors.New("no door has that number")
	}
	c := d.door.Counters()
	for _, l := range d.listeners {
		if l, ok := l.(*peerListener); ok {
			c.Refused += l.refused.Load()
		}
	}
	return &c, nil
}

// handBack gives a plugin what it needs to open the door again.
func (d *served) handBack(l *link) {
	d.mu.Lock()
	state := d.state
	state.Unused = slices.Clone(state.Unused)
	d.mu.Unlock()
	var files []int
	for _, each := range d.listeners {
		file, err := each.File()
		if err != nil {
			fmt.Fprintf(os.Stderr, "hand back door %q: %v\n", state.Spec.ID, err)
			return
		}
		defer file.Close()
		files = append(files, rawFD(file))
	}
	l.send(message{Held: &state}, files...)
}

// rawFD returns the descriptor of a file. Its Fd method would make it a blocking one, for the other process as well.
func rawFD(file *os.File) (fd int) {
	conn, err := file.SyscallConn()
	if err == nil {
		err = conn.Control(func(raw uintptr) { fd = int(raw) })
	}
	if err != nil {
		return -1
	}
	return fd
}

// usable reports whether the door has a credential that it may use.
func (d *served) usable(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.state.Credential
	return c != nil && (d.state.Spec.Stale <= 0 || now.Before(c.ReadAt.Add(d.state.Spec.Stale)))
}

// Reread asks the plugin, if there is one.
func (d *served) Reread(ctx context.Context, g uint64) error {
	return d.server.reread(ctx, generation{Serial: d.state.Serial, Generation: g})
}

// Unused tells the plugin, or keeps it for the next.
func (d *served) Unused(g uint64) {
	d.mu.Lock()
	if len(d.state.Unused) == unusedMost {
		d.state.Unused = slices.Delete(d.state.Unused, 0, 1)
	}
	d.state.Unused = append(d.state.Unused, g)
	d.mu.Unlock()
	go d.tellUnused(g)
}

func (d *served) tellUnused(g uint64) {
	plugin, err := d.server.asked()
	if err == nil {
		_, err = plugin.ask(context.Background(), message{Unused: &generation{Serial: d.state.Serial, Generation: g}})
	}
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Unused = slices.DeleteFunc(d.state.Unused, func(told uint64) bool { return told == g })
}

// Call records a call.
func (d *served) Call(c door.Call) { d.server.record.call(c) }
