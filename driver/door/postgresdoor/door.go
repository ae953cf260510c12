// Package postgresdoor is the door to a PostgreSQL database. Clients come without the password of the database. The
// door logs in upstream with the user and the password of one generation and then passes bytes on. It follows frames
// only so far that it knows when a session is idle: a session of a replaced user is ended then, and never inside a
// transaction.
//
// # What a client meets
//
//   - The user that it names is ignored. It may name the door's database, or its own user's name as libpq does by
//     itself; another is refused.
//   - At a socket no password is asked for, over TCP the one that only the task was given.
//   - Nothing is encrypted between client and door: sslmode=prefer works, require fails. To the server the door speaks
//     TLS as the sslmode of the block says, and logs in with scram-sha-256 (bound to the TLS channel where the server
//     offers that), with md5, or in clear where TLS is verified. Trust and GSSAPI are refused.
//   - Start-up parameters are passed on, but not replication. The door's role is one of them: it survives RESET ROLE
//     and DISCARD ALL, which SET ROLE after a login does not, but not SET ROLE NONE. It keeps one owner of objects,
//     and is no barrier.
//   - Cancel works. A client that dies has its query cancelled.
//
// # Rotation
//
// New connections use the new user at once. A session of the old one ends with 57P01 after a second between
// transactions; one that is never idle for a second ends between two transactions after a minute. Prepared statements,
// LISTEN, temporary tables and advisory locks go with the session: a client wants a pool that connects again. The old
// user can be revoked after its last session. A transaction that is held open keeps the user. When the server refuses
// the user, the credential is read anew and the login tried again, which the client does not see.
//
// # What the door says
//
//	57P03         no credential, or a stale one
//	57P01         the user was replaced, or the door is closed
//	53300, 53400  max_conns, rate
//	3D000         another database
//	0A000         replication, or another protocol
//	08P01, 57014  a malformed or slow start-up
//	42501         an address that is not allowed; the server refuses role or database
//	57P05, 25P03  idle_timeout, outside and inside a transaction
//	28P01, 28000  the client's password is wrong; the server refuses the user, or asks for a login that is not done
//	08001, 08006  the server is not reached, not trusted or too slow; it broke off
package postgresdoor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/time/rate"

	"nomad-driver-vault/driver/door"
)

const (
	// startupsMost is how many clients may be about to say what they want, beside MaxConns sessions.
	startupsMost = 64
	// rereadPause is how long the plugin is not asked again for a credential that it has not got anew.
	rereadPause = 5 * time.Second
)

var errNothingNewer = errors.New("read credential anew: there is nothing newer")

// postgresDoor is the door.Door to a database.
type postgresDoor struct {
	spec    door.Spec
	plugin  door.Plugin
	role    string         // "": none
	config  *pgconn.Config // of the server, without user and password
	cancels *pgconn.Config // the same, for an address that was judged before
	limiter *rate.Limiter  // nil: no bound
	ctx     context.Context
	end     context.CancelFunc // of ctx: no login goes on
	running sync.WaitGroup     // connections, and what is told to the plugin

	mu        sync.Mutex
	closed    bool
	current   *generation // nil: all are refused
	listeners map[net.Listener]struct{}
	conns     map[*session]struct{}
	keys      map[cancelKey]*session
	serving   int // sessions, and logins

	renewing chan struct{} // has a place for the one that asks the plugin for a newer credential
	renewal  struct {      // the last that failed; whoever renews has it
		generation uint64
		at         time.Time
		err        error
	}

	calls, refused, failed, sent, received atomic.Int64
}

// A generation is a credential, and how many sessions use it.
type generation struct {
	credential door.Credential
	sessions   int
}

// New makes a door to a database. An error names the field of the block.
func New(spec door.Spec, plugin door.Plugin) (door.Door, error) {
	switch {
	case spec.Postgres == nil:
		return nil, errors.New("postgres: it is not set")
	case spec.MaxConns <= 0:
		return nil, errors.New("max_conns: it is not a number from 1")
	case spec.HeaderTime <= 0:
		return nil, errors.New("header_timeout: it is not a time above zero")
	case spec.Rate > 0 && spec.Burst <= 0:
		return nil, errors.New("rate: its burst is not a number from 1")
	}
	config, err := database(spec)
	if err != nil {
		return nil, err
	}
	d := &postgresDoor{spec: spec, plugin: plugin, role: spec.Postgres.Role, config: config,
		listeners: make(map[net.Listener]struct{}), conns: make(map[*session]struct{}),
		keys: make(map[cancelKey]*session), renewing: make(chan struct{}, 1)}
	d.ctx, d.end = context.WithCancel(context.Background())
	if spec.Rate > 0 {
		d.limiter = rate.NewLimiter(rate.Limit(spec.Rate), spec.Burst)
	}
	cancels := *config
	judged := spec.Dial
	judged.AllowHosts = nil // what is dialled is the address that the session's host had
	cancels.DialFunc = judged.DialContext
	d.cancels = &cancels
	return d, nil
}

// Serve serves the connections of a listener.
func (d *postgresDoor) Serve(l net.Listener) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		l.Close()
		return nil
	}
	d.listeners[l] = struct{}{}
	d.mu.Unlock()
	var pause time.Duration
	for {
		c, err := l.Accept()
		var temporary interface{ Temporary() bool }
		switch {
		case err == nil:
			pause = 0
			d.accept(c)
		case d.ctx.Err() != nil:
			return nil
		case errors.As(err, &temporary) && temporary.Temporary(): // no file descriptor is left, as a rule
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-d.ctx.Done():
			}
		default:
			return fmt.Errorf("accept connection: %w", err)
		}
	}
}

// accept serves a connection, unless there are too many that have not even said what they want.
func (d *postgresDoor) accept(c net.Conn) {
	s := newSession(d, c)
	if d.remember(s) {
		go func() {
			defer d.running.Done()
			s.serve()
		}()
		return
	}
	d.refused.Add(1)
	_ = c.SetDeadline(time.Now().Add(partingTime))
	_, _ = c.Write(full.frame()) // to a socket whose buffer is empty
	c.Close()
}

func (d *postgresDoor) remember(s *session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.conns) >= d.spec.MaxConns+startupsMost {
		return false
	}
	d.conns[s] = struct{}{}
	d.running.Add(1) // before Close waits
	return true
}

// admit counts a session in, or says why it cannot be.
func (d *postgresDoor) admit(s *session) *refusal {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return closed
	case d.current == nil: // first: to be without is not what the rate is for
		return noCredential
	case d.serving >= d.spec.MaxConns:
		return full
	case d.limiter != nil && !d.limiter.Allow():
		return tooOften
	}
	d.serving++
	s.admitted = true
	return nil
}

// take has a session use the credential that is current, and returns it.
func (d *postgresDoor) take(s *session) (door.Credential, *refusal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.current == nil:
		return door.Credential{}, noCredential
	case d.spec.Stale > 0 && time.Since(d.current.credential.ReadAt) > d.spec.Stale:
		return door.Credential{}, stale
	}
	d.leave(s)
	s.generation = d.current
	s.generation.sessions++
	s.stay()
	return s.generation.credential, nil
}

// leave ends a session's use of a credential. The lock is held.
func (d *postgresDoor) leave(s *session) {
	if s.generation == nil {
		return
	}
	s.generation.sessions--
	d.release(s.generation)
	s.generation = nil
}

// release tells the plugin of a generation that has been replaced and has no session any more. The lock is held, and
// the plugin may be waiting for it.
func (d *postgresDoor) release(g *generation) {
	if g != d.current && g.sessions == 0 {
		go d.plugin.Unused(g.credential.Generation)
	}
}

// register makes the key with which a client can cancel what runs in its session.
func (d *postgresDoor) register(s *session, minor uint32) cancelKey {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		key := newKey(minor)
		if d.keys[key] == nil {
			s.key, d.keys[key] = key, s
			return key
		}
	}
}

// sessionOf returns the session that a key is for, or nil.
func (d *postgresDoor) sessionOf(key cancelKey) *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.keys[key]
}

// forget is the end of a connection.
func (d *postgresDoor) forget(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leave(s)
	delete(d.conns, s)
	delete(d.keys, s.key)
	if s.admitted {
		d.serving--
	}
}

// renew gets a newer credential than that of a generation, which the server has refused: it was replaced meanwhile, or
// the plugin reads it anew.
func (d *postgresDoor) renew(ctx context.Context, generation uint64) error {
	select {
	case d.renewing <- struct{}{}:
		defer func() { <-d.renewing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	last := &d.renewal
	switch {
	case d.newer(generation):
		return nil
	case last.err != nil && last.generation == generation && time.Since(last.at) < rereadPause:
		return last.err
	}
	err := d.plugin.Reread(ctx, generation)
	if err == nil && !d.newer(generation) {
		err = errNothingNewer
	}
	if ctx.Err() == nil {
		last.generation, last.at, last.err = generation, time.Now(), err
	}
	return err
}

func (d *postgresDoor) newer(generation uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current != nil && d.current.credential.Generation != generation
}

// Use has sessions that begin from now on use c. Those of another generation end when they are idle.
func (d *postgresDoor) Use(c *door.Credential) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.current
	if c != nil && old != nil && c.Generation == old.credential.Generation {
		old.credential = *c // it was read anew, and is the same
		return
	}
	if d.current = nil; c != nil {
		d.current = &generation{credential: *c}
	}
	if old == nil {
		return
	}
	d.release(old)
	for s := range d.conns {
		if s.generation == old {
			s.retire(replaced, time.Now().Add(busyMost))
		}
	}
}

// Close ends the door. Sessions end as soon as they are idle, and are cut off when ctx is over.
func (d *postgresDoor) Close(ctx context.Context) {
	d.mu.Lock()
	d.closed = true
	d.end()
	for l := range d.listeners {
		l.Close()
	}
	for s := range d.conns {
		s.retire(closed, time.Now())
	}
	d.mu.Unlock()

	ended := make(chan struct{})
	go func() { d.running.Wait(); close(ended) }()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	d.mu.Lock()
	for s := range d.conns {
		s.cut()
	}
	d.mu.Unlock()
	<-ended
}

func (d *postgresDoor) Counters() door.Counters {
	d.mu.Lock()
	defer d.mu.Unlock()
	return door.Counters{Connections: int64(len(d.conns)), InFlight: int64(d.serving), Calls: d.calls.Load(),
		Refused: d.refused.Load(), Failed: d.failed.Load(), Sent: d.sent.Load(), Received: d.received.Load()}
}
