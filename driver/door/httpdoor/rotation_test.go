package httpdoor

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

func TestWithoutACredentialNothingIsSent(t *testing.T) {
	b := serve(t, specOf("http://127.0.0.1:1"))
	refused := func(why error) {
		t.Helper()
		a := b.get("/")
		must.Eq(t, 503, a.StatusCode)
		must.Eq(t, why.Error(), a.Header.Get(errorHeader))
	}
	refused(errNone)
	b.door.Use(credential(1, secret))
	must.Eq(t, 502, b.get("/").StatusCode)
	b.door.Use(nil)
	refused(errNone)
	must.True(t, b.plugin.isUnused(1))
}

func TestACredentialIsUsedNoLongerThanItIsKnownToBeCurrent(t *testing.T) {
	b := open(t, http.HandlerFunc(echo), func(s *door.Spec) { s.Stale = time.Minute })
	c := credential(2, secret)
	c.ReadAt = time.Now().Add(-2 * time.Minute)
	b.door.Use(c)
	a := b.get("/")
	must.Eq(t, 503, a.StatusCode)
	must.Eq(t, errStale.Error(), a.Header.Get(errorHeader))
	b.door.Use(credential(2, secret)) // the same, read again
	must.Eq(t, 200, b.get("/").StatusCode)
	must.False(t, b.plugin.isUnused(2))
	b.door.Use(credential(1, "overtaken"))
	must.StrNotContains(t, b.get("/").body, "overtaken")
}

// keyed is an upstream that knows one key, and says which it got.
type keyed struct{ key atomic.Value }

func (k *keyed) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Api-Key") != k.key.Load().(string) {
		rw.Header().Set("Www-Authenticate", "key")
		http.Error(rw, "this key is unknown", http.StatusUnauthorized)
		return
	}
	echo(rw, r)
}

// TestTheOldKeyDiesFirst: the upstream refuses the credential before the plugin knows of another one.
func TestTheOldKeyDiesFirst(t *testing.T) {
	for name, c := range map[string]struct {
		body     io.Reader
		client   func(*bench) *http.Client
		replayed bool
	}{
		"no body":                 {nil, (*bench).http1, true},
		"no body, HTTP/2":         {nil, (*bench).http2, true},
		"a body":                  {strings.NewReader("hello"), (*bench).http1, true},
		"a body, HTTP/2":          {strings.NewReader("hello"), (*bench).http2, true},
		"a body of unknown size":  {io.MultiReader(strings.NewReader("hello")), (*bench).http1, true},
		"more than is kept of it": {strings.NewReader(strings.Repeat("x", maxReplay+1)), (*bench).http1, false},
	} {
		upstream := &keyed{}
		upstream.key.Store("the-new-key")
		b := open(t, upstream, noScrub)
		b.plugin.reread = func(generation uint64) error {
			must.Eq(t, 1, generation)
			b.door.Use(credential(2, "the-new-key"))
			return nil
		}
		a := b.do(c.client(b), b.request("POST", "/a", c.body))
		must.Eq(t, c.replayed, a.StatusCode == 200, must.Sprint(name, a.body))
		if !c.replayed {
			must.StrContains(t, a.body, "this key is unknown", must.Sprint(name))
			continue
		}
		must.Eq(t, 1, b.plugin.timesAsked())
		must.Eq(t, 2, b.last(1).Generation)
		b.until("the old generation is not used", func() bool { return b.plugin.isUnused(1) })
		if c.body != nil {
			must.StrHasSuffix(t, "\n\nhello", a.body, must.Sprint(name))
		}
	}
}

func (b *bench) http1() *http.Client { return b.client }
func (b *bench) http2() *http.Client { return b.h2 }

// TestAnUpstreamThatRefusesEveryKey: its answer reaches the task with its body, and the plugin is asked once.
func TestAnUpstreamThatRefusesEveryKey(t *testing.T) {
	upstream := &keyed{}
	upstream.key.Store("none")
	b := open(t, upstream)
	for range 20 {
		a := b.get("/")
		must.Eq(t, 401, a.StatusCode)
		must.False(t, a.byDoor())
		must.Eq(t, "key", a.Header.Get("Www-Authenticate"))
		must.Eq(t, "this key is unknown\n", a.body)
	}
	must.Eq(t, 1, b.plugin.timesAsked())
}

// TestRotationUnderLoad: every call succeeds while the key changes many times, and dies before the door has the next.
func TestRotationUnderLoad(t *testing.T) {
	upstream := &keyed{}
	upstream.key.Store(secret)
	b := open(t, upstream, noScrub, func(s *door.Spec) { s.Record.Calls = door.RecordOff })
	var mu sync.Mutex
	generation := uint64(1)
	b.plugin.reread = func(of uint64) error {
		mu.Lock()
		defer mu.Unlock()
		if of != generation {
			return errors.New("nothing newer")
		}
		generation++
		b.door.Use(credential(generation, upstream.key.Load().(string)))
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	var calls atomic.Int64
	for i := range 8 {
		client := []*http.Client{b.client, b.h2}[i%2]
		workers.Go(func() {
			for ctx.Err() == nil {
				a := b.do(client, b.request("POST", "/", strings.NewReader("hello")))
				if a.StatusCode != 200 {
					t.Errorf("%d %s", a.StatusCode, a.body)
					return
				}
				calls.Add(1)
			}
		})
	}
	for n := range int64(10) {
		begin := calls.Load()
		b.until("calls go on", func() bool { return calls.Load() > begin+100 || t.Failed() })
		upstream.key.Store("key-number-" + string(rune('0'+n)))
	}
	cancel()
	workers.Wait()
	b.until("all but the current generation are unused", func() bool {
		for g := uint64(1); g < generation; g++ {
			if !b.plugin.isUnused(g) {
				return false
			}
		}
		return true
	})
	must.False(t, b.plugin.isUnused(generation))
}

// TestAGenerationIsInUseUntilItsLastCallEnds: only then its lease may be revoked.
func TestAGenerationIsInUseUntilItsLastCallEnds(t *testing.T) {
	release := make(chan struct{})
	b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(200)
		_ = http.NewResponseController(rw).Flush()
		if r.URL.Path == "/slow" {
			<-release
		}
	}))
	res, err := b.client.Do(b.request("GET", "/slow", nil))
	must.NoError(t, err)
	b.door.Use(credential(2, secret+"2"))
	must.Eq(t, 200, b.get("/").StatusCode)
	must.False(t, b.plugin.isUnused(1))
	close(release)
	_, err = io.ReadAll(res.Body)
	must.NoError(t, err)
	b.until("it is unused", func() bool { return b.plugin.isUnused(1) })
	must.Eq(t, 1, b.last(2).Generation)
}

func TestClose(t *testing.T) {
	for name, inTime := range map[string]bool{"calls end": true, "calls are cut off": false} {
		begun, release := make(chan struct{}), make(chan struct{})
		b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			close(begun)
			select {
			case <-release:
			case <-r.Context().Done():
			}
			echo(rw, r)
		}))
		result := make(chan error, 1)
		go func() {
			res, err := b.client.Get("http://door/")
			if err == nil {
				_, err = io.ReadAll(res.Body)
			}
			result <- err
		}()
		<-begun
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan struct{})
		go func() { b.door.Close(ctx); close(closed) }()
		if inTime {
			close(release)
		} else {
			cancel()
		}
		must.Eq(t, inTime, <-result == nil, must.Sprint(name))
		<-closed
		cancel()
		_, err := b.client.Get("http://door/")
		must.Error(t, err)
		must.True(t, b.plugin.isUnused(1))
		must.Eq(t, 0, b.door.Counters().InFlight)
	}
}
