package httpdoor

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// conns are the connections of a door's clients. If there are as many as may be, the one that was idle for longest is
// closed for a new one; if none is idle, the new one waits, and those after it wait in the kernel.
type conns struct {
	mu     sync.Mutex
	room   sync.Cond // of mu: a connection was closed or became idle
	max    int
	open   int
	idle   list.List // of *conn, the one that was idle for longest first
	closed bool

	unreadable func(client net.Conn, status int, text string) []byte
}

// A conn is one client's connection.
type conn struct {
	net.Conn
	of    *conns
	once  sync.Once
	asked atomic.Bool   // the handler has got a request since the connection was idle
	idle  *list.Element // guarded by conns.mu, as is gone
	gone  bool
}

// Serve implements door.Door.
func (d *httpDoor) Serve(l net.Listener) error {
	err := d.server.Serve(&listener{l, &d.conns})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// A listener accepts connections as there is room for them.
type listener struct {
	net.Listener
	conns *conns
}

// Accept implements net.Listener. Its errors are those of the listener: net/http waits and goes on after those that are
// not for good, such as too many open files.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.conns.admit(c)
}

func (s *conns) admit(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.open >= s.max && !s.closed {
		oldest := s.idle.Front()
		if oldest == nil {
			s.room.Wait()
			continue
		}
		s.mu.Unlock()
		_ = oldest.Value.(*conn).Close() // it was idle: nothing is lost
		s.mu.Lock()
	}
	if s.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	s.open++
	return &conn{Conn: c, of: s}, nil
}

func (s *conns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.room.Broadcast()
}

func (s *conns) count() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.open)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		c.setIdle(false)
		c.gone = true
		c.of.open--
		c.of.room.Signal()
	})
	return c.Conn.Close()
}

// CloseWrite says that nothing more comes, after an upgrade.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// setIdle is called with conns.mu held.
func (c *conn) setIdle(idle bool) {
	switch {
	case idle && c.idle == nil && !c.gone:
		c.idle = c.of.idle.PushBack(c)
		c.of.room.Signal()
	case !idle && c.idle != nil:
		c.of.idle.Remove(c.idle)
		c.idle = nil
	}
}

// state is told by net/http what its connections do.
func state(of net.Conn, s http.ConnState) {
	c, ok := of.(*conn)
	if !ok || s == http.StateClosed {
		return
	}
	if s == http.StateIdle {
		c.asked.Store(false)
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.setIdle(s == http.StateIdle)
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// ownConn returns the connection that a request came by, and connOf what the listener has accepted for it.
func ownConn(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

func connOf(r *http.Request) net.Conn {
	if c := ownConn(r); c != nil {
		return c.Conn
	}
	return nil
}
