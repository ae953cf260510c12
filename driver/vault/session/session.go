package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// Session is one Vault token and every secret read with it, kept current until Close.
type Session struct {
	cluster         *Cluster
	role, namespace string
	chore           *sched.Chore
	logins          ctxLock        // taken for a login, so that a token that many miss is replaced once
	telling         sync.Mutex     // held while a notice is decided on and sent
	asks            sync.WaitGroup // attempts and readings that ask Vault; none begins once the session is closed

	mu               sync.Mutex  // guards what follows
	source           TokenSource // of the next token
	notify           func(Notice)
	changed          chan struct{}
	token            *token
	lease            vault.Lease // of token, as renewed since
	upkeep           upkeep      // of token
	revoking         upkeep      // of spent
	unverified       bool        // the token is from a saved state and Vault has not been asked whether it lives
	lastRefusal      refusal     // of the last login
	lostLogins       int         // logins in a row whose answer got lost
	items            map[string]*item
	readings         int                // how many were begun
	used             int                // number of the token that the committed reading showed
	pending          bool               // something changed for which Changed is not ready yet
	pendingSince     time.Time          // since when
	retired          []*token           // replaced, but in use
	spent            []spent            // leases and tokens that nothing uses any more
	revocationDenied bool               // the policies do not grant sys/leases/revoke: leases are left to end
	downAt           time.Time          // since when the reported outage lasts; zero: there is none
	reported         map[string]problem // by what failed, until that succeeds
	lastCleared      string             // what was reported and succeeded last, until that is reported
	broken           bool               // upkeep has ended by a panic
	closed           bool
	closedAt         time.Time
}

// ErrClosed is returned by a session that was closed.
var ErrClosed = errors.New("vault session is closed")

// Changed is ready when a newer answer than the committed reading showed has come, or a newer token. It is a level, not
// a count: one receive may stand for many changes, and who receives and then commits nothing has to look again unasked.
func (s *Session) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Token returns the token in use, its accessor and the namespace it lives in.
func (s *Session) Token() (value, accessor, namespace string) {
	t := s.current()
	return t.Value, t.Accessor, s.namespace
}

// Policies returns the names of the policies that the login granted.
func (s *Session) Policies() []string { return s.current().Policies }

// External reports that the token in use is somebody else's, who renews and revokes it.
func (s *Session) External() bool { return s.current().External }

// locked calls f with mu held. It lets go of mu even if f panics: recoverPanic and the end of the task need it.
func (s *Session) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *Session) current() *token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// Listen replaces who is told of notices and changes, and the source of identities: a session that outlives a run of
// its task serves the next one. Role and namespace stay what they were.
func (s *Session) Listen(o Options) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify, s.source = o.Notify, s.sourceOf(o.Login)
	if o.Changed != nil {
		s.changed = o.Changed
	}
}

// sourceOf returns where the session's tokens come from.
func (s *Session) sourceOf(l Login) TokenSource {
	switch {
	case s.cluster.issuer != nil:
		return s.cluster.issuer.Source(l.Token)
	case l.NomadToken != nil:
		return fromNomad{client: s.cluster.client, namespace: s.namespace, read: l.NomadToken}
	default:
		return byJWT{client: s.cluster.client, role: s.role, namespace: s.namespace, jwt: l.JWT}
	}
}

func (s *Session) signalChanged() {
	var changed chan struct{}
	s.locked(func() { changed = s.changed })
	select {
	case changed <- struct{}{}:
	default:
	}
}

// stale reports that the committed reading does not show the newest token and answers. Call with mu held.
func (s *Session) stale() bool {
	if s.used != s.token.N {
		return true
	}
	for _, it := range s.items {
		if it.used != nil && it.used != it.secret {
			return true
		}
	}
	return false
}

// wake asks the scheduler to run step when the earliest thing is due.
func (s *Session) wake() {
	var at time.Time
	s.locked(func() { at = s.next(time.Now()) })
	if !at.IsZero() {
		s.chore.Wake(at)
	}
}

// next is the earliest deadline of the session. Call with mu held.
func (s *Session) next(now time.Time) (at time.Time) {
	for it := range s.kept {
		at = sched.Earlier(at, it.upkeep.next())
	}
	if free, more := s.freeLanes(now); free == 0 && !at.IsZero() {
		at = sched.Later(at, more)
	}
	at = sched.Earlier(at, s.upkeep.next())
	if s.revoking.since.IsZero() {
		at = sched.Earlier(at, s.spentAt())
	}
	if s.pending {
		at = sched.Earlier(at, s.pendingSince.Add(gatherWithin))
	}
	return at
}

// enter lets somebody ask Vault until leave is called, at the latest until the session ends, which waits for that.
func (s *Session) enter(ctx context.Context) (asking context.Context, leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	s.asks.Add(1)
	asking, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.chore.Context(), cancel)
	return asking, func() {
		stop()
		cancel()
		s.asks.Done()
	}, nil
}
