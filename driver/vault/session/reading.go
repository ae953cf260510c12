package session

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"nomad-driver-vault/driver/vault"
)

// Reading is one pass over a session's answers: the same question gets the same answer however often it is asked, and
// the whole becomes one generation of the task. It may be used by several goroutines, which all have to be done before
// Commit.
type Reading struct {
	s         *Session
	n         int // the session's first, second ... reading
	fresh     bool
	token     *token
	waits     sync.Once // for telling so
	mu        sync.Mutex
	questions map[string]*question
}

// question is one that a reading was asked.
type question struct {
	every  time.Duration // the shortest that was asked for; the reading's mu guards it, before and revoke
	before time.Duration // the longest
	revoke string
	done   chan struct{} // closed when the answer is there
	secret *vault.Secret
	err    error
}

// questionsMost bounds the questions of a reading, each of which is kept current by itself.
const questionsMost = 2048

// Begin starts a reading. With fresh set, secrets without a lease are read again even when an answer is at hand: a task
// that starts anew sees what is in Vault now, and its leases are kept.
func (s *Session) Begin(fresh bool) *Reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readings++
	return &Reading{s: s, n: s.readings, fresh: fresh, token: s.token, questions: map[string]*question{}}
}

// Token returns the Vault token as of the beginning of the reading.
func (r *Reading) Token() string { return r.token.Value }

// Accessor is that of Token, by which Vault's audit log names it.
func (r *Reading) Accessor() string { return r.token.Accessor }

// Secrets returns what Vault has answered so far.
func (r *Reading) Secrets() (all []*vault.Secret) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.questions {
		select {
		case <-q.done:
			if q.err == nil {
				all = append(all, q.secret)
			}
		default:
		}
	}
	return all
}

// Read answers req, from what the session has or from Vault. It repeats the request until ctx ends as long as waiting
// can help; errors match the classes of package vault. An error is the reading's answer, too: to ask again takes
// another reading.
func (r *Reading) Read(ctx context.Context, req vault.Request) (*vault.Secret, error) {
	req = req.Clean()
	key := req.Key()
	r.mu.Lock()
	q, asked := r.questions[key]
	if !asked && len(r.questions) >= questionsMost {
		r.mu.Unlock()
		return nil, &vault.Error{Class: vault.ErrInvalid, Op: string(req.Op) + " " + req.Path, Final: true,
			Detail: fmt.Sprintf("the task asks Vault for more than %d secrets", questionsMost),
			Hint:   "put what belongs together into one secret"}
	}
	if !asked {
		q = &question{done: make(chan struct{})}
		r.questions[key] = q
	}
	q.every, q.before, q.revoke = shorter(q.every, req.Every), max(q.before, req.Before), cmp.Or(q.revoke, req.Revoke)
	r.mu.Unlock()
	defer r.revokes(key)
	waiting := ctx.Done()
	if !asked {
		q.secret, q.err = r.answer(ctx, key, req)
		close(q.done)
		waiting = nil
	}
	select {
	case <-q.done:
	case <-waiting:
		return nil, fmt.Errorf("%s %s: %w", req.Op, req.Path, ctx.Err())
	}
	if q.err == nil && q.secret.Absent() && !req.Optional {
		return nil, vault.MissingError(req, q.secret.Path)
	}
	return q.secret, q.err
}

// revokes makes the session revoke what was issued for a question, where one who asked wants that, also if this reading
// is never committed.
func (r *Reading) revokes(key string) {
	r.mu.Lock()
	revoke := r.questions[key].revoke
	r.mu.Unlock()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if it := r.s.items[key]; it != nil && revoke != "" {
		it.req.Revoke = revoke
	}
}

// shorter returns the shorter of two intervals, of which zero means never.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// answer returns the session's answer to req, asking Vault when there is none that will do.
func (r *Reading) answer(ctx context.Context, key string, req vault.Request) (*vault.Secret, error) {
	ctx, leave, err := r.s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	it := r.item(key)
	if it == nil {
		return r.first(ctx, key, req)
	}
	if have, good, _ := r.newest(it); good {
		return have, nil
	}
	if err := it.asking.lock(ctx); err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.Op, req.Path, err)
	}
	defer it.asking.unlock()
	have, good, usable := r.newest(it)
	switch {
	case good: // a step was there before us
		return have, nil
	case !usable:
		return r.first(ctx, key, req)
	}
	secret, by, err := r.s.fetch(ctx, req)
	if vault.Unreachable(err) {
		return have, nil // last known good: an outage does not keep a task from starting again
	}
	if err != nil {
		return nil, err
	}
	return r.keep(key, req, secret, by), nil
}

// item returns what the session has of a question, and notes that this reading wants it.
func (r *Reading) item(key string) *item {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	it := r.s.items[key]
	if it != nil {
		it.reader = max(it.reader, r.n)
	}
	return it
}

// newest returns the item's newest answer, whether the reading can show it as it is, and whether it can where there is
// no better one.
func (r *Reading) newest(it *item) (secret *vault.Secret, good, usable bool) {
	now := time.Now()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return it.secret, it.good(r.fresh, now), it.usable(now)
}

// first asks Vault for what the session does not have, as long as waiting can help.
func (r *Reading) first(ctx context.Context, key string, req vault.Request) (*vault.Secret, error) {
	var secret *vault.Secret
	var by *token
	more := func(err error) bool { return r.s.countLostAnswer(key, err) }
	tell := func(why error) {
		r.waits.Do(func() { r.s.notifyWaiting(why, "Vault to "+string(req.Op)+" "+req.Path) })
	}
	err := retryCreate(ctx, tell, r.s.answers, more, func(ctx context.Context) (err error) {
		secret, by, err = r.s.fetch(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.keep(key, req, secret, by), nil
}

// keep makes secret the session's newest answer to req.
func (r *Reading) keep(key string, req vault.Request, secret *vault.Secret, by *token) *vault.Secret {
	s := r.s
	var newest *vault.Secret
	s.locked(func() {
		it := s.items[key]
		if it == nil {
			it = newItem(req, nil)
			s.items[key] = it
		}
		it.reader = max(it.reader, r.n)
		s.install(it, secret, by)
		newest = it.secret
	})
	s.wake()
	return newest
}
