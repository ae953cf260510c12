// Package vault keeps what a task has from Vault alive: a Client for each cluster, a Session for each task (one token and
// everything read with it), each with a scheduler that renews, polls and replaces for its sessions.
//
// A Session answers each question once. Begin starts a Reading, a consistent pass over those answers; Commit says that a
// reading is in use now, after which Changed tells when something it showed has been replaced. Nothing here acts on the
// task, and nothing here prints a secret.
package vault

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"nomad-driver-vault/driver/sched"
)

// NoticeKind says what a Notice is about.
type NoticeKind int

const (
	// Outage: Vault cannot be reached, or not all of it; the last known good values stay in use.
	Outage NoticeKind = iota
	// Recovered: all that failed since an Outage works again.
	Recovered
	// Problem: one secret or the token cannot be kept current; the text says which and why. It is told once, until what
	// failed succeeds.
	Problem
	// Replaced: the token was lost and a new one is in its place.
	Replaced
	// Waiting: Open, or a reading that has nothing else to show, waits for Vault.
	Waiting
	// Dead: a lease or the token ended while Vault could not be asked, so what the task has of it no longer works; the text says since when, and what
	// happens next.
	Dead
	// Broken: a fault of ours ended the upkeep of the session, and the agent's log has the stack. The task cannot go on with it.
	Broken
)

// Notice is something the operator should read about a session, on one line. The text never holds a secret.
type Notice struct {
	Kind NoticeKind
	Text string
}

// Options of a session.
type Options struct {
	Login Login
	// Notify receives notices, one at a time, from the goroutine that met them; it must not block or call the session.
	Notify func(Notice)
	// Changed is what the method Changed returns: one channel, with room for one, may serve several sessions of a task.
	// Nil: the session makes its own.
	Changed chan struct{}
}

// Session is one Vault token and every secret read with it, kept current until Close.
type Session struct {
	client          *Client
	role, namespace string
	chore           *sched.Chore
	logins          turn           // taken for a login, so that a token that many miss is replaced once
	telling         sync.Mutex     // held while a notice is decided on and told
	asks            sync.WaitGroup // who asks Vault for the session: nobody new once it is closed

	mu       sync.Mutex // guards what follows
	login    Login      // its sources of tokens
	notify   func(Notice)
	changed  chan struct{}
	token    *token
	lease    Lease   // of token, as renewed since
	upkeep   upkeep  // of token
	revoking upkeep  // of spent
	doubted  bool    // the token is from a saved state and Vault has not been asked whether it lives
	refused  refusal // of the last login
	missing  int     // logins in a row whose answer got lost
	items    map[string]*item
	readings int                // how many were begun
	used     int                // number of the token that the committed reading showed
	news     bool               // something changed that Changed has not told yet
	newsAt   time.Time          // since when
	retired  []*token           // replaced, but in use
	spent    []spent            // leases and tokens that nothing uses any more
	leaves   bool               // the policies do not grant sys/leases/revoke: leases are left to end
	downAt   time.Time          // since when the outage lasts that was told, zero: there is none
	told     map[string]problem // by what failed
	cured    string             // what failed last of those that were told and have succeeded since
	broken   bool               // upkeep has ended by a panic
	hidden   map[string]hidden  // paths whose mounts Vault does not tell of
	closed   bool
	closedAt time.Time
}

// turn is a lock that a waiter can give up on.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) pass() { <-t }

// ErrClosed is returned by a session that was closed.
var ErrClosed = errors.New("vault session is closed")

// Open logs in and returns a session. It tries until ctx ends as long as waiting can help; the error is then the last
// one met.
func (c *Client) Open(ctx context.Context, o Options) (*Session, error) {
	s := c.newSession(o)
	err := s.firstToken(ctx)
	if err != nil {
		s.chore.End()
		return nil, err
	}
	s.lease, s.used = s.token.Lease, s.token.N
	s.upkeep.patient.Jitter = s.lease.Jitter
	s.upkeep.at = s.token.due(s.lease, time.Now())
	s.wake()
	return s, nil
}

func (s *Session) firstToken(ctx context.Context) error {
	what := "the task's identity, or for Vault to log in with it"
	if s.client.issuer != nil {
		what = "Vault to make a token"
	}
	tell := func(why error) { s.await(why, what) }
	return sparingly(ctx, tell, s.client.answers, func(error) bool { return true }, func(ctx context.Context) (err error) {
		s.token, err = s.obtain(ctx, ctx, 1)
		return err
	})
}

func (c *Client) newSession(o Options) *Session {
	s := &Session{client: c, role: o.Login.Role, namespace: o.Login.Namespace, logins: newTurn(),
		login: o.Login, notify: o.Notify, changed: o.Changed, upkeep: newUpkeep(), items: map[string]*item{}}
	if s.namespace == "" {
		s.namespace = c.cluster.Namespace
	}
	if s.role == "" && c.issuer == nil {
		s.role = c.cluster.Role
	}
	if s.changed == nil {
		s.changed = make(chan struct{}, 1)
	}
	s.chore = c.sched.Add(s.step)
	return s
}

// untold is how long somebody waits for Vault before that is told.
const untold = 2 * time.Second

// patiently repeats try while waiting can help and ctx lasts, and tells once that it waits, and why, nil where there is no error yet. An attempt that
// ctx cut short says less than the one before it. try gets a context in which each request may take
// longer than in the one before.
func patiently(ctx context.Context, tell func(why error), try func(context.Context) error) error {
	quick := sched.Backoff{First: 200 * time.Millisecond, Most: 5 * time.Second}
	var before error
	reasons := make(chan error, 1)
	defer tellLate(reasons, tell)()
	for tries := 0; ; tries++ {
		err := try(limited(ctx, patience(tries)))
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && before != nil:
			return before
		case ctx.Err() != nil || !Transient(err):
			return err
		}
		if before == nil {
			reasons <- err
		}
		if before = err; !sched.Sleep(ctx, quick.Next()) {
			return err
		}
	}
}

// tellLate tells after a while what there is to tell by then, unless it is stopped before.
func tellLate(reasons <-chan error, tell func(why error)) (stop func() bool) {
	return time.AfterFunc(untold, func() {
		select {
		case why := <-reasons:
			tell(why)
		default:
			tell(nil)
		}
	}).Stop
}

// sparingly is patiently for what leaves something behind when its answer gets lost: a lease, or a token that nobody can revoke
// any more. After that it goes on only when Vault is known to answer, and not more often than the budget of a lease; more is
// told of each loss and says whether the budget allows another.
func sparingly(ctx context.Context, tell func(error), answers func(context.Context) error, more func(error) bool,
	try func(context.Context) error) error {
	var last error
	misses := 0
	return patiently(ctx, tell, func(ctx context.Context) error {
		if misses > 0 {
			switch err := answers(ctx); {
			case Transient(err):
				return last
			case unasked(err): // it knows better why
				return err
			}
		}
		if last = try(ctx); !lost(last) {
			return last
		}
		if misses++; misses < mintsPerLife && more(last) {
			return last
		}
		return final(last)
	})
}

// await tells that somebody waits, and why, or else for what.
func (s *Session) await(why error, what string) {
	if why != nil {
		s.tell(Waiting, "waiting: "+why.Error())
	} else {
		s.tell(Waiting, "waiting for "+what)
	}
}

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

// Given reports that the token in use is somebody else's.
func (s *Session) Given() bool { return s.current().Given }

func (s *Session) current() *token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// Listen replaces who is told of notices and changes, and the source of identities: a session that outlives a run of its
// task serves the next one. Role and namespace stay what they were.
func (s *Session) Listen(o Options) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify, s.login = o.Notify, o.Login
	if o.Changed != nil {
		s.changed = o.Changed
	}
}

func (s *Session) nudge() {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	select {
	case changed <- struct{}{}:
	default:
	}
}

// behind reports that the committed reading does not show the newest token and answers. Call with mu held.
func (s *Session) behind() bool {
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
	s.mu.Lock()
	at := s.next(time.Now())
	s.mu.Unlock()
	if !at.IsZero() {
		s.chore.Wake(at)
	}
}

// next is the earliest deadline of the session. Call with mu held.
func (s *Session) next(now time.Time) (at time.Time) {
	for it := range s.kept {
		at = sched.Earlier(at, it.upkeep.next())
	}
	if free, more := s.places(now); free == 0 && !at.IsZero() {
		at = sched.Later(at, more)
	}
	at = sched.Earlier(at, s.upkeep.next())
	if s.revoking.since.IsZero() {
		at = sched.Earlier(at, s.spentAt())
	}
	if s.news {
		at = sched.Earlier(at, s.newsAt.Add(gatherWithin))
	}
	return at
}

// Close revokes the session's tokens, and with them every lease, and returns when nothing of the session runs any more.
// The error, when it is ErrUnavailable, means that something may live on until its TTL; Close may be called again. It is nil
// where Vault does not answer but every token is past its TTL.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed, s.closedAt = true, time.Now()
	}
	wait := time.Since(s.closedAt) < closing
	s.mu.Unlock()
	s.chore.End()
	s.asks.Wait()
	leave, err := s.client.revoking.Enter(ctx)
	if err != nil {
		return &Error{Class: ErrUnavailable, Op: "revoke token", Detail: "many others are before it"}
	}
	defer leave()
	tokens, issued := s.belongings()
	first := s.endAll(ctx, issued)
	for _, t := range tokens {
		if unasked(first) && wait {
			break
		}
		first = cmp.Or(first, s.revoke(ctx, t))
	}
	if unasked(first) && s.ended(tokens, time.Now()) {
		return nil
	}
	return first
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

// closing is how long the tokens of a session that is closed are kept where something else cannot be revoked at the moment, which takes
// a token. An engine that is out of order for longer does not keep the others' leases alive.
const closing = time.Minute

// ended reports that each of the session's tokens is past its end, and its leases with it.
func (s *Session) ended(tokens []*token, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(tokens, func(t *token) bool {
		lease := t.Lease
		if t == s.token {
			lease = s.lease
		}
		return !lease.Expired(now)
	})
}

// belongings is every token of the session, and of what was issued, all of which is spent now, what no token takes with it when it is
// revoked.
func (s *Session) belongings() (tokens []*token, issued []spent) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for it := range s.kept {
		if sp, _ := it.revocation(); !sp.ownLease() || s.token.stays() {
			s.spend(it, now, 0)
		}
	}
	s.items = map[string]*item{}
	tokens = append([]*token{s.token}, s.retired...)
	for _, sp := range s.spent {
		switch {
		case sp.Token != nil:
			tokens = append(tokens, sp.Token)
		case !sp.ownLease(), s.token.stays():
			issued = append(issued, sp)
		}
	}
	return tokens, issued
}
