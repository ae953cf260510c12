package postgresdoor

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"nomad-driver-vault/driver/door"
)

const (
	// quietTime is how long a session of a replaced user has to be idle before it is ended. A client that is about to
	// send something would have to cope with the end, while the pools of clients look after what was idle for a second
	// before they use it (pgxpool's ShouldPing, HikariCP's aliveBypassWindow).
	quietTime = time.Second
	// busyMost is how long a session that is never idle for so long may go on. It ends between two transactions then.
	busyMost = time.Minute
	// retriesMost is how often a login is tried again with a newer credential.
	retriesMost = 2
	// cancelTime is how long the server may take to cancel what a client that has died left running.
	cancelTime = 2 * time.Second
)

// A session is a client's connection, and from its login on that to the server.
type session struct {
	door   *postgresDoor
	client net.Conn
	call   door.Call

	// The door has the lock of these.
	admitted   bool
	generation *generation
	key        cancelKey

	mu       sync.Mutex
	upstream *upstream // set once, by the login
	frames   frames
	inHand   bool        // bytes for the client that frames know and the client has not got
	moved    time.Time   // when bytes went either way
	ending   bool        // the last words are said: nothing is passed on
	gone     bool        // the client has hung up
	reason   *refusal    // of the end
	why      *refusal    // the session is to end when it is idle, and this is why
	deadline time.Time   // of why: from then on it need not be idle for long
	timer    *time.Timer // of look; nil before the session runs
}

func newSession(d *postgresDoor, client net.Conn) *session {
	s := &session{door: d, client: client, call: door.Call{Time: time.Now(), Door: d.spec.ID, Method: "session",
		Path: d.config.Database}}
	if peer, known := door.PeerOf(client); known {
		s.call.PID, s.call.UID = peer.PID, &peer.UID
	}
	return s
}

// serve serves a connection from its first byte to its end.
func (s *session) serve() {
	d := s.door
	defer d.forget(s)
	defer s.client.Close()
	_ = s.client.SetDeadline(time.Now().Add(d.spec.HeaderTime))
	hello, err := readStartup(s.client)
	if errors.Is(err, errUnopened) {
		return // whoever only looks whether somebody listens has called nothing
	}
	nth := d.calls.Add(1) - 1
	switch {
	case err != nil:
		s.refuse(s.ofStartup(err))
	case hello.cancel != nil:
		s.cancel(*hello.cancel)
	default:
		if s.open(hello) {
			s.run()
		}
	}
	s.call.Duration = time.Since(s.call.Time)
	if d.spec.Record.Wants(nth, s.call.Refused != "") {
		d.plugin.Call(s.call)
	}
}

// ofStartup is what a client is told that has not said properly what it wants.
func (s *session) ofStartup(err error) *refusal {
	switch {
	case s.door.ctx.Err() != nil:
		return closed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return slowStartup
	}
	return noStartup
}

// cancel serves a client that wants to have cancelled what runs in another session. It is never told what became of
// that: so it is in PostgreSQL.
func (s *session) cancel(key cancelKey) {
	s.call.Method = "cancel"
	other := s.door.sessionOf(key)
	if other == nil {
		s.note(noSession)
		return
	}
	ctx, done := context.WithTimeout(s.door.ctx, s.door.spec.HeaderTime)
	defer done()
	if err := other.upstream.cancel(ctx); err != nil {
		s.note(ofLogin(err))
	}
}

// open begins a session, and reports whether the client has one.
func (s *session) open(hello startup) bool {
	refused := hello.judge(s.door.config.Database)
	if refused == nil {
		refused = s.authenticate(hello)
	}
	if refused == nil {
		refused = s.door.admit(s)
	}
	if refused == nil {
		refused = s.login(hello)
	}
	if refused != nil {
		s.refuse(refused)
		return false
	}
	key := s.door.register(s, hello.minor())
	_, err := s.client.Write(greeting(s.upstream.said, key))
	s.upstream.said = nil
	_ = s.client.SetDeadline(time.Time{})
	if err != nil {
		s.upstream.conn.Close()
	}
	return err == nil
}

// authenticate has a client over TCP show the password that only the door's task was given.
func (s *session) authenticate(hello startup) *refusal {
	secret := s.door.spec.SecretOf(s.client)
	words := hello.negotiation()
	if secret != "" {
		words = appendFrame(words, &pgproto3.AuthenticationCleartextPassword{})
	}
	if len(words) > 0 {
		if _, err := s.client.Write(words); err != nil {
			return s.ofStartup(err)
		}
	}
	if secret == "" {
		return nil
	}
	given, err := readPassword(s.client)
	if why := s.ofStartup(err); err != nil && why != noStartup {
		return why
	}
	if subtle.ConstantTimeCompare(given, []byte(secret)) != 1 {
		return wrongPassword
	}
	return nil
}

// login logs in to the server. When that refuses the user, a newer one is asked for, and the client does not notice.
func (s *session) login(hello startup) *refusal {
	d := s.door
	ctx, done := context.WithTimeout(d.ctx, d.spec.HeaderTime)
	defer done()
	_ = s.client.SetDeadline(time.Now().Add(d.spec.HeaderTime + partingTime))
	settings := hello.settings(d.role)
	for retries := 0; ; retries++ {
		credential, refused := d.take(s)
		if refused != nil {
			return refused
		}
		s.call.With(&credential)
		server, err := d.login(ctx, credential, settings)
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.upstream = server
			return nil
		}
		if d.ctx.Err() != nil {
			return closed
		}
		if !ofUser(err) || retries == retriesMost || d.renew(ctx, credential.Generation) != nil {
			return ofLogin(err)
		}
	}
}

// refuse tells the client that it is not served.
func (s *session) refuse(r *refusal) {
	s.note(r)
	part(s.client, r.frame())
	_, _ = io.CopyN(io.Discard, s.client, packetMost) // until it has hung up, or has had its time
}

// note counts a refusal, and writes it down.
func (s *session) note(r *refusal) {
	if r.failed {
		s.door.failed.Add(1)
		s.call.Error = r.text
		if r.detail != "" {
			s.call.Error += ": " + r.detail
		}
		return
	}
	s.door.refused.Add(1)
	s.call.Refused = r.text
}

// run passes bytes on until both sides are done.
func (s *session) run() {
	defer s.upstream.conn.Close()
	s.mu.Lock()
	s.frames.state, s.moved = 'I', time.Now()
	s.timer = time.AfterFunc(s.untilNext(), s.look)
	s.mu.Unlock()

	ended := make(chan struct{})
	go func() { defer close(ended); s.toClient() }()
	s.toServer()
	s.hungUp(ended)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	s.timer.Stop()
	if s.reason == nil {
		return
	}
	if s.call.Error = s.reason.text; s.reason.failed { // else the session was served, and had its end
		s.door.failed.Add(1)
	}
}

// toServer passes on what the client sends, until it has hung up.
func (s *session) toServer() {
	var b buffer
	defer b.free()
	for broken := false; ; {
		n, err := s.client.Read(b.bytes())
		if p := b.bytes()[:n]; n > 0 && !broken && s.maySend(p) {
			_, failed := s.upstream.conn.Write(p)
			broken = failed != nil // what the server has said before is still to be passed on
		}
		if err != nil {
			return
		}
		b.fit(n)
	}
}

// maySend notes what the client sends, and reports whether the server is to get it.
func (s *session) maySend(p []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	if err := s.frames.fromClient(p); err != nil {
		s.finish(noFrame)
		return false
	}
	s.moved = time.Now()
	s.call.Sent += int64(len(p))
	s.door.sent.Add(int64(len(p)))
	return true
}

// hungUp ends the session with the server after the client has gone. What a client that has died left running is
// cancelled: nobody waits for it, and the user could not be revoked. A client that said goodbye wants it done.
func (s *session) hungUp(ended <-chan struct{}) {
	select {
	case <-ended: // the server was the first
		return
	default:
	}
	s.mu.Lock()
	s.gone, s.moved = true, time.Now()
	goodbye := s.frames.terminated
	died := !s.ending && !goodbye && (s.frames.due > 0 || s.frames.open)
	s.mu.Unlock()
	if died {
		ctx, done := context.WithTimeout(context.Background(), cancelTime)
		_ = s.upstream.cancel(ctx) // where it fails, the server finds out at the end of its query
		done()
	}
	if !goodbye {
		_ = s.upstream.conn.SetDeadline(time.Now().Add(cancelTime))
	}
	closeWrite(s.upstream.conn)
	<-ended
}

// toClient passes on what the server says, until it has hung up.
func (s *session) toClient() {
	var b buffer
	defer b.free()
	for broken := false; ; {
		n, err := s.upstream.in.Read(b.bytes())
		if p := b.bytes()[:n]; n > 0 && s.mayTell(p) {
			if !broken {
				_, failed := s.client.Write(p)
				broken = failed != nil // the server is heard out: it may be in the midst of a query
			}
			s.told()
		}
		if err != nil {
			s.serverGone()
			return
		}
		b.fit(n)
	}
}

// mayTell notes what the server says, and reports whether the client is to get it.
func (s *session) mayTell(p []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	if err := s.frames.fromServer(p); err != nil {
		s.inHand = true // a client cannot be told anything inside of a frame
		s.finish(brokenOff)
		return false
	}
	s.inHand, s.moved = true, time.Now()
	s.call.Received += int64(len(p))
	s.door.received.Add(int64(len(p)))
	return true
}

// told notes that the client has what mayTell allowed.
func (s *session) told() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inHand = false
	if s.why != nil && !s.ending && s.frames.idle() && !time.Now().Before(s.deadline) {
		s.finish(s.why)
	}
}

// serverGone tells the client that the server has hung up, unless either has said so.
func (s *session) serverGone() {
	s.mu.Lock()
	if s.ending || s.gone && !s.frames.fatal {
		s.mu.Unlock()
		return
	}
	s.ending = true
	var words []byte
	if !s.frames.terminated {
		s.reason = brokenOff
		if s.frames.server.between() && !s.frames.fatal {
			words = brokenOff.frame()
		}
	}
	s.mu.Unlock()
	part(s.client, words)
}

// finish ends the session. The lock is held. Inside of a frame, a client cannot be told why.
func (s *session) finish(why *refusal) {
	speak := !s.inHand && s.frames.server.between()
	s.ending, s.reason = true, why
	go func() {
		if !speak {
			s.cut()
			return
		}
		part(s.client, why.frame())
		part(s.upstream.conn, appendFrame(nil, &pgproto3.Terminate{}))
	}()
}

// cut ends the session at once.
func (s *session) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.Close()
	if s.upstream != nil {
		s.upstream.conn.Close()
	}
}

// retire has the session end when it has been idle for a moment, and after the deadline when it is idle at all.
func (s *session) retire(why *refusal, deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why, s.deadline = why, deadline
	switch {
	case s.timer != nil && !s.ending:
		s.timer.Reset(0)
	case s.timer == nil && why == closed:
		_ = s.client.SetReadDeadline(time.Now()) // it need not say any more what it wants
	}
}

// stay takes back that the session ends because its user was replaced: it has the new one.
func (s *session) stay() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == replaced {
		s.why = nil
	}
}

// look ends the session if it is time.
func (s *session) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit, quiet := s.door.spec.IdleTimeout, time.Since(s.moved)
	overdue := limit > 0 && quiet >= limit
	isIdle := s.frames.idle() && !s.inHand
	switch {
	case s.ending:
	case s.why != nil && isIdle && (quiet >= quietTime || !time.Now().Before(s.deadline)):
		s.finish(s.why)
	case overdue && isIdle, overdue && (s.gone || s.inHand): // the client reads nothing
		s.finish(idle)
	case overdue && s.frames.waits():
		s.finish(idleInside)
	default:
		s.timer.Reset(s.untilNext())
	}
}

// untilNext is how long it is until look may find something. The lock is held.
func (s *session) untilNext() time.Duration {
	quiet, next := time.Since(s.moved), time.Duration(1<<63-1)
	within := func(limit time.Duration) {
		if left := limit - quiet; left > 0 {
			next = min(next, left)
		} else {
			next = min(next, limit) // it is under way
		}
	}
	if limit := s.door.spec.IdleTimeout; limit > 0 {
		within(limit)
	}
	if s.why != nil {
		within(quietTime)
	}
	return next
}
