// Package process serves doors in an unprivileged process of its own, and has the plugin's side of that.
//
// The process is this program, started again (Main). It has a user of its own, no capability, and by Landlock no file
// but those that names and certificates are looked up in. Plugin and process both hold the listeners of all doors:
// while either is dead, connects wait in the backlog. The plugin's side (Doors) starts the process with the first door,
// starts it again when it dies, and gives it all doors with their last credentials. A plugin that comes back, or a
// newer one, finds the process by a socket that only root can use, and takes the doors over.
//
// The process reads what tasks and upstreams send, so the plugin takes it for hostile: its messages are bounded in size
// and rate, what it hands back is looked at before it is kept, and it gets no right to anything.
//
// How long the process lives. While a plugin is connected, the plugin decides. The agent may be away for long, and
// tasks run on meanwhile, so without a plugin the process goes on as long as a door has a credential that it may use
// (Spec.Stale) or a call is in flight, and for ten minutes at least; after Config.Alone, three days, it ends in any
// case: then nobody looks after the node's tasks any more. Without a door it ends at once.
package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/door"
)

const (
	aloneLeast = 10 * time.Minute // for the agent's restart, whatever becomes of the credentials
	drainMost  = 10 * time.Minute // for calls in flight when another process has taken over
	lookEach   = 5 * time.Second
)

// An Opener makes the door of a Spec. An error names the field of the block.
type Opener func(door.Spec, door.Plugin) (door.Door, error)

// Main is the whole life of a process that serves doors, and returns its exit code. args are those behind Argument.
func Main(args []string, opener Opener) int {
	l, err := parseLimits(args)
	if err == nil {
		err = confine(l)
	}
	var control net.Listener
	if err == nil {
		file := os.NewFile(controlFD, "control")
		control, err = net.FileListener(file)
		file.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start doors process:", err)
		return 1
	}
	newServer(opener).serve(control)
	return 0
}

func parseLimits(args []string) (l limits, err error) {
	if len(args) != 2 {
		return l, errors.New("only the plugin starts this process")
	}
	l.data, err = strconv.ParseInt(args[0], 10, 64)
	if err == nil {
		l.file, err = strconv.ParseInt(args[1], 10, 64)
	}
	return l, err
}

// A server has the doors of the process.
type server struct {
	opener Opener
	record *record
	end    chan struct{} // closed when the process is to end

	mu       sync.Mutex
	doors    map[uint64]*served
	draining int   // doors that have been closed, with calls in flight
	plugin   *link // nil while none is connected
	left     time.Time
	alone    time.Duration
	keep     bool // go on without the plugin
	ending   bool
}

func newServer(opener Opener) *server {
	return &server{opener: opener, record: newRecord(), end: make(chan struct{}), doors: make(map[uint64]*served),
		left: time.Now(), alone: 72 * time.Hour}
}

// serve serves plugins, one after the other, until nothing is left to do.
func (s *server) serve(control net.Listener) {
	go s.record.write()
	go s.accept(control)
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for {
		select {
		case <-s.end:
			return
		case now := <-tick.C:
			s.endIfOver(now)
		}
	}
}

// accept accepts root's connections. A plugin that connects takes the place of the one before it.
func (s *server) accept(control net.Listener) {
	for {
		conn, err := control.Accept()
		if err != nil {
			s.finish()
			return
		}
		peer, err := judge(conn.(*net.UnixConn), nil)
		if err != nil || peer.UID != 0 {
			conn.Close()
			continue
		}
		go s.follow(newLink(conn.(*net.UnixConn)))
	}
}

// follow does what a plugin says until it leaves.
func (s *server) follow(l *link) {
	err := l.run(func(m message, files []int) error { return s.handle(l, m, files) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plugin != l {
		return
	}
	s.plugin, s.left = nil, time.Now()
	if errors.Is(err, errFrame) {
		fmt.Fprintln(os.Stderr, "read from plugin:", err)
	}
	s.endIfOverLocked(s.left)
}

// endIfOver ends the process when it has nothing to do any more.
func (s *server) endIfOver(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endIfOverLocked(now)
}

func (s *server) endIfOverLocked(now time.Time) {
	alone := now.Sub(s.left)
	switch {
	case s.plugin != nil:
	case !s.keep, alone > s.alone, len(s.doors)+s.draining == 0, alone > aloneLeast && !s.usedLocked(now):
		s.finishLocked()
	}
}

// usedLocked reports whether a door can do anything but refuse, or has a call in flight.
func (s *server) usedLocked(now time.Time) bool {
	if s.draining > 0 {
		return true
	}
	for _, d := range s.doors {
		if d.usable(now) || d.door.Counters().InFlight > 0 {
			return true
		}
	}
	return false
}

func (s *server) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finishLocked()
}

func (s *server) finishLocked() {
	if !s.ending {
		s.ending = true
		close(s.end)
	}
}

// handle does what a message says. An error ends the connection.
func (s *server) handle(l *link, m message, files []int) error {
	switch {
	case m.Attach != nil:
		return s.attach(l, m, files)
	case m.Open != nil:
		l.answer(m.ID, message{}, s.open(*m.Open, files))
	case m.Record != nil && len(files) == 1:
		s.record.to(files[0])
	case len(files) > 0:
		closeAll(files)
		return errFrame
	case m.Use != nil:
		s.use(*m.Use)
	case m.Close != nil:
		go func() {
			s.close(m.Close.Serial, m.Close.Drain)
			l.answer(m.ID, message{}, nil)
		}()
	case m.Count != nil:
		counters, err := s.count(*m.Count)
		l.answer(m.ID, message{Counters: counters}, err)
	case m.Keep != nil:
		s.mu.Lock()
		s.keep = *m.Keep
		s.mu.Unlock()
		l.answer(m.ID, message{}, nil)
	case m.Drain != nil:
		s.drain(*m.Drain)
		l.answer(m.ID, message{}, nil)
	default:
		return errFrame
	}
	return nil
}

// attach makes l the connection to the plugin, takes over its standard error and its record, and hands it what is open.
func (s *server) attach(l *link, m message, files []int) error {
	if len(files) == 0 || len(files) > 2 {
		closeAll(files)
		return errFrame
	}
	err := unix.Dup3(files[0], 2, 0)
	unix.Close(files[0])
	if err != nil {
		closeAll(files[1:])
		return err
	}
	if len(files) == 2 {
		s.record.to(files[1])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.plugin
	s.plugin, s.alone = l, m.Attach.Alone
	if before != nil {
		before.close()
	}
	for _, d := range s.doors {
		d.handBack(l)
	}
	l.answer(m.ID, message{}, nil)
	return nil
}

// drain closes all doors, since another process has them, and ends this process when their calls have ended.
func (s *server) drain(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = true // without the plugin, which leaves now
	for serial := range s.doors {
		go s.close(serial, within)
	}
}

// asked returns the connection to the plugin, if there is one.
func (s *server) asked() (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plugin == nil {
		return nil, errors.New("the plugin is away")
	}
	return s.plugin, nil
}

// reread asks the plugin to read a credential anew.
func (s *server) reread(ctx context.Context, g generation) error {
	plugin, err := s.asked()
	if err == nil {
		_, err = plugin.ask(ctx, message{Reread: &g})
	}
	return err
}
