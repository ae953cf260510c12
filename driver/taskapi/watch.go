package taskapi

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
)

const (
	// leastInterval bounds how often one question is asked, however busy the cluster: Nomad's own answer to a list of
	// services changes whenever any service does.
	leastInterval = time.Second
	firstBackoff  = time.Second
	longBackoff   = time.Minute
	// maxQuestions bounds what one task asks: a blocking query is a connection and a goroutine, here and in the agent,
	// which all tasks share.
	maxQuestions = 64
)

// Options are what a Watch needs to know of its task.
type Options struct {
	Dir       string // the task's directory as this host sees it
	Namespace string // the task's
	// Token returns the task's default Nomad identity as it is now; it is called before each request, because Nomad may
	// have renewed it. "" asks without one. An error of it is in the chain of the Reading's error.
	Token  func(context.Context) (string, error)
	Logger hclog.Logger
	// Changed has room for one, and may serve other sources of the task, too. It receives when an answer differs from what
	// the committed Reading saw, or when a question that a Reading failed on has an answer now. Several changes may arrive
	// as one, and one may be of before the latest Reading: another then sees nothing new. After a Reading that is not
	// committed it is silent until the next change: trying again for other reasons is up to the caller.
	Changed chan struct{}
}

// A Watch is what one task has asked of Nomad: each question answered once and then kept current by a blocking query.
type Watch struct {
	api     client
	log     hclog.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	changed chan struct{}

	mu        sync.Mutex
	follows   map[question]*follow
	committed map[question]any // what the generation in use saw
	latest    map[question]any // what the latest Reading saw, committed or not
}

// A follow is one question and its answer, kept current by one goroutine. Watch.mu guards all but the channel.
type follow struct {
	stop    context.CancelFunc
	known   chan struct{} // closed at the first answer, or at an error that waiting will not cure
	told    bool          // known is closed
	answer  any           // nil: none yet; never changed in place
	trouble error         // of the last attempt
	missed  bool          // a Reading had to go on without the answer
}

// Open returns a Watch that asks nothing yet. The caller closes it.
func Open(o Options) *Watch {
	w := &Watch{
		api:     client{namespace: o.Namespace, token: o.Token, dial: dialer(o.Dir)},
		log:     o.Logger,
		changed: o.Changed,
		follows: map[question]*follow{},
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Close ends every question and returns when their goroutines have ended.
func (w *Watch) Close() {
	w.mu.Lock()
	w.cancel()
	w.mu.Unlock()
	w.running.Wait()
}

// A Reading is one consistent pass over the answers: the same question gets the same answer for as long as it lasts.
// There is one at a time. Answers are shared and must not be modified.
type Reading struct {
	watch *Watch
	seen  map[question]any // nil: asked, without an answer
}

// Begin starts a Reading, in place of an earlier one that was not committed.
func (w *Watch) Begin() *Reading {
	w.mu.Lock()
	defer w.mu.Unlock()
	// What only the last, abandoned Reading asked stays until the next one has had its turn: its answer may be what that
	// one failed for, and so is worth a Changed.
	w.forgetAllBut(w.committed, w.latest)
	r := &Reading{watch: w, seen: map[question]any{}}
	w.latest = r.seen
	return r
}

// Commit makes the Reading the generation in use: questions that neither it nor a later one asked are forgotten, and
// Changed reports what differs from it, from the time of its own answers on. The Reading is not to be used any more.
//
// It takes no signal back, because the channel may hold one of another source.
func (r *Reading) Commit() {
	w := r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.committed = r.seen
	w.forgetAllBut(r.seen, w.latest)
	for q, f := range w.follows {
		if !reflect.DeepEqual(f.answer, r.seen[q]) {
			w.signal()
		}
	}
}

// Services returns the services of the task's namespace in a region, or in its own, sorted by name. Like the other
// methods of a Reading it waits for the first answer until ctx ends, retrying where that can help, and after that
// answers from memory. The tags of an answer are sorted.
func (r *Reading) Services(ctx context.Context, region string) ([]*api.ServiceRegistrationStub, error) {
	return ask[[]*api.ServiceRegistrationStub](ctx, r, servicesQuery{region})
}

// Service returns the instances of one service in Nomad's order; none is no error.
func (r *Reading) Service(ctx context.Context, q ServiceQuery) ([]*api.ServiceRegistration, error) {
	return ask[[]*api.ServiceRegistration](ctx, r, q)
}

// Variable returns one variable. It is nil, at once, where there is none, and the Watch goes on looking for it.
func (r *Reading) Variable(ctx context.Context, q VariableQuery) (*api.Variable, error) {
	q.Path = strings.Trim(q.Path, " /")
	q.Namespace = cmp.Or(q.Namespace, r.watch.api.namespace)
	return ask[*api.Variable](ctx, r, q)
}

// Variables returns the variables below a prefix, without their items, in the order of their paths; none is no error.
func (r *Reading) Variables(ctx context.Context, q VariableQuery) ([]*api.VariableMetadata, error) {
	q.Namespace = cmp.Or(q.Namespace, r.watch.api.namespace)
	return ask[[]*api.VariableMetadata](ctx, r, variablesQuery(q))
}

func ask[A any](ctx context.Context, r *Reading, q question) (answer A, err error) {
	found, err := r.ask(ctx, q)
	if err != nil {
		return answer, fmt.Errorf("read %s: %w", q, err)
	}
	return found.(A), nil
}

func (r *Reading) ask(ctx context.Context, q question) (any, error) {
	w := r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if answer := r.seen[q]; answer != nil {
		return answer, nil
	}
	if _, asked := r.seen[q]; !asked && len(r.seen) >= maxQuestions {
		return nil, errTooMany
	}
	r.seen[q] = nil
	f := w.follow(q)
	f.missed = false
	w.mu.Unlock()
	select {
	case <-f.known:
	case <-ctx.Done():
	case <-w.ctx.Done():
	}
	w.mu.Lock()
	if f.answer == nil {
		f.missed = true
		return nil, cmp.Or(f.trouble, error(errNoAnswer))
	}
	r.seen[q] = f.answer
	return f.answer, nil
}

// follow returns the goroutine that follows q, a new one if there is none or if it has nothing but bad news.
func (w *Watch) follow(q question) *follow {
	f := w.follows[q]
	if f != nil && (f.answer != nil || !f.told) {
		return f
	}
	if f != nil {
		f.stop()
	}
	ctx, stop := context.WithCancel(w.ctx)
	f = &follow{stop: stop, known: make(chan struct{})}
	w.follows[q] = f
	if w.ctx.Err() == nil { // else Close waits, or has waited, for those there were
		w.running.Go(func() { w.keep(ctx, q, f) })
	}
	return f
}

// keep asks q for as long as ctx lasts. After a failure it asks anew, without an index: Nomad may have forgotten the
// old one.
func (w *Watch) keep(ctx context.Context, q question, f *follow) {
	var index uint64
	for failures := 0; ; {
		began := time.Now()
		answer, next, err := w.api.get(ctx, q, index)
		if ctx.Err() != nil {
			return
		}
		var pause time.Duration
		if err != nil {
			w.failed(q, f, err, failures)
			pause, index = backoff(failures), 0
			failures++
		} else {
			w.answered(q, f, answer, failures)
			pause, index = leastInterval-time.Since(began), resume(index, next)
			failures = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// resume is the index to go on from: at least 1, and from the start again when Nomad's has gone backwards, as its
// documentation of blocking queries asks.
func resume(last, next uint64) uint64 {
	if next < last {
		return 0
	}
	return max(next, 1)
}

// backoff is 1 s after the first failure in a row and doubles up to a minute, less a random half.
func backoff(failures int) time.Duration {
	most := min(firstBackoff<<min(failures, 10), longBackoff)
	return most/2 + rand.N(most/2)
}

// failed keeps what is known. Only a question without an answer yet has somebody waiting for the error.
func (w *Watch) failed(q question, f *follow, err error, failures int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.trouble = err
	if f.answer == nil {
		if final(err) {
			f.tell()
		}
		return
	}
	if failures == 0 {
		w.log.Warn("Nomad does not answer, keeping its last answer", "question", q.String(), "error", err)
	}
}

func (w *Watch) answered(q question, f *follow, answer any, failures int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.follows[q] != f {
		return // forgotten while the answer was on its way
	}
	if f.answer != nil && failures > 0 {
		w.log.Info("Nomad answers again", "question", q.String())
	}
	awaited := f.answer == nil && !f.missed
	if !awaited && !reflect.DeepEqual(f.answer, answer) && !reflect.DeepEqual(w.committed[q], answer) {
		w.signal()
	}
	f.answer, f.trouble = answer, nil
	f.tell()
}

func (f *follow) tell() {
	if !f.told {
		f.told = true
		close(f.known)
	}
}

func (w *Watch) forgetAllBut(asked ...map[question]any) {
	for q, f := range w.follows {
		kept := false
		for _, a := range asked {
			_, ok := a[q]
			kept = kept || ok
		}
		if !kept {
			f.stop()
			delete(w.follows, q)
		}
	}
}

func (w *Watch) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}
