package taskapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// What the fake calls the questions of these tests.
const (
	askedVariable = "/v1/var/nomad/jobs/api?namespace=ns"
	askedDB       = "/v1/service/db?namespace=ns"
)

var (
	variable = VariableQuery{Path: "nomad/jobs/api"}
	db       = ServiceQuery{Name: "db"}
)

func variableJSON(value string) string {
	return fmt.Sprintf(`{"Namespace":"ns","Path":"nomad/jobs/api","ModifyIndex":11,"Items":{"k":%q}}`, value)
}

func dbJSON(port int) string {
	return fmt.Sprintf(`[{"ID":"i1","ServiceName":"db","Address":"10.0.0.1","Port":%d}]`, port)
}

// inBubble runs a test with a fake clock. It fails when a goroutine outlives the Watch.
func inBubble(t *testing.T, test func(t *testing.T, n *nomad, w *Watch)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNomad()
		w, _ := n.watch(t)
		defer func() {
			w.Close()
			synctest.Wait()
			must.Zero(t, n.connections())
		}()
		test(t, n, w)
	})
}

// use has a generation in use that saw the variable with the value "one".
func use(t *testing.T, n *nomad, w *Watch) {
	t.Helper()
	n.set(askedVariable, 0, variableJSON("one"))
	r := w.Begin()
	must.Eq(t, "one", value(t, r))
	r.Commit()
}

func value(t *testing.T, r *Reading) string {
	t.Helper()
	v, err := r.Variable(t.Context(), variable)
	must.NoError(t, err)
	return v.Items["k"]
}

func port(t *testing.T, r *Reading) int {
	t.Helper()
	s, err := r.Service(t.Context(), db)
	must.NoError(t, err)
	must.Len(t, 1, s)
	return s[0].Port
}

// changed reports whether a change has been signalled by now, and takes it.
func changed(w *Watch) bool {
	synctest.Wait()
	select {
	case <-w.changed:
		return true
	default:
		return false
	}
}

func TestQuestionsOfATaskAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		for pass := range 3 {
			r := w.Begin()
			for i := range 200 {
				name := fmt.Sprintf("s%d-%d", pass, i)
				n.set("/v1/service/"+name+"?namespace=ns", 0, "[]")
				_, err := r.Service(t.Context(), ServiceQuery{Name: name})
				if i < 64 {
					must.NoError(t, err, must.Sprint("others than before: those are given up"))
					continue
				}
				must.ErrorIs(t, err, ErrInvalid)
				must.EqError(t, err, fmt.Sprintf("read Nomad service %q: refused by Nomad: a task may ask Nomad 64 different "+
					"questions: ask for fewer services "+
					"and variables, or keep what belongs together in one variable", name))
			}
			_, err := r.Service(t.Context(), ServiceQuery{Name: fmt.Sprintf("s%d-0", pass)})
			must.NoError(t, err)
			r.Commit()
			synctest.Wait()
			must.LessEq(t, 64, n.connections())
		}
	})
}

func TestAChangeIsSignalledAndRead(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		use(t, n, w)
		time.Sleep(time.Hour)
		must.False(t, changed(w))

		n.set(askedVariable, 0, variableJSON("two"))
		must.True(t, changed(w))
		r := w.Begin()
		must.Eq(t, "two", value(t, r))
		r.Commit()
		must.False(t, changed(w))
	})
}

func TestTheSameAnswerThroughoutOneReading(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedVariable, 0, variableJSON("one"))
		r := w.Begin()
		must.Eq(t, "one", value(t, r))
		time.Sleep(2 * leastInterval)
		n.set(askedVariable, 0, variableJSON("two"))
		synctest.Wait()
		must.Eq(t, "one", value(t, r))
		r.Commit()
		must.True(t, changed(w))
		must.Eq(t, "two", value(t, w.Begin()))
	})
}

func TestWhatTurnsBackDuringAReadingIsSignalledAtItsCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		use(t, n, w)
		time.Sleep(time.Minute)
		n.set(askedVariable, 0, variableJSON("two"))
		must.True(t, changed(w))

		r := w.Begin()
		must.Eq(t, "two", value(t, r))
		time.Sleep(time.Minute)
		n.set(askedVariable, 0, variableJSON("one"))
		must.False(t, changed(w), must.Sprint("as the generation in use has it, so far"))
		r.Commit()
		must.True(t, changed(w))
		must.Eq(t, "one", value(t, w.Begin()))
	})
}

func TestAnEqualAnswerIsNoChange(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedDB, 0, dbJSON(1))
		r := w.Begin()
		must.Eq(t, 1, port(t, r))
		r.Commit()
		n.set(askedDB, 0, dbJSON(1))
		time.Sleep(time.Minute)
		must.False(t, changed(w))
	})
}

func TestTwoReadersOfOneQuestionShareIt(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedVariable, 0, variableJSON("one"))
		r := w.Begin()
		for _, q := range []VariableQuery{variable, {Path: "/nomad/jobs/api/"}, {Path: "nomad/jobs/api", Namespace: "ns"}} {
			_, err := r.Variable(t.Context(), q)
			must.NoError(t, err)
		}
		must.Len(t, 1, n.requests(askedVariable))
	})
}

func TestWhatTheGenerationDoesNotAskIsForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedVariable, 0, variableJSON("one"))
		n.set(askedDB, 0, dbJSON(1))
		r := w.Begin()
		value(t, r)
		port(t, r)
		r.Commit()
		time.Sleep(2 * leastInterval)
		must.Eq(t, 2, n.connections())

		r = w.Begin()
		must.Eq(t, 1, port(t, r))
		r.Commit()
		synctest.Wait()
		must.Eq(t, 1, n.connections())
		n.set(askedVariable, 0, variableJSON("two"))
		must.False(t, changed(w))
		n.set(askedDB, 0, dbJSON(2))
		must.True(t, changed(w))
	})
}

func TestWhatAnAbandonedReadingAskedLastsUntilTheNextHasHadItsTurn(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedDB, 0, dbJSON(1))
		n.set(askedVariable, 0, variableJSON("one"))
		r := w.Begin()
		port(t, r)
		r.Commit()

		value(t, w.Begin()) // and abandoned
		time.Sleep(2 * leastInterval)
		must.Eq(t, 2, n.connections())
		must.False(t, changed(w))
		n.set(askedVariable, 0, variableJSON("two"))
		must.True(t, changed(w))

		w.Begin()
		must.Eq(t, 2, len(w.follows))
		w.Begin()
		must.Eq(t, 1, len(w.follows))
	})
}

func TestAMissingVariable(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		r := w.Begin()
		v, err := r.Variable(t.Context(), variable)
		must.NoError(t, err)
		must.Nil(t, v)
		r.Commit() // as nomadVarExists does
		must.False(t, changed(w))
		time.Sleep(2 * leastInterval)

		n.set(askedVariable, 0, variableJSON("one"))
		must.True(t, changed(w))
		r = w.Begin()
		must.Eq(t, "one", value(t, r))
		r.Commit()

		time.Sleep(2 * leastInterval)
		n.set(askedVariable, 404, "variable not found")
		must.True(t, changed(w))
		v, err = w.Begin().Variable(t.Context(), variable)
		must.NoError(t, err)
		must.Nil(t, v)
	})
}

func TestAnOutageKeepsTheAnswerAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNomad()
		w, logged := n.watch(t)
		defer w.Close()
		use(t, n, w)
		before := len(n.requests(askedVariable))

		n.edit(func() { n.down = true })
		time.Sleep(10 * time.Hour)
		must.False(t, changed(w))
		r := w.Begin()
		must.Eq(t, "one", value(t, r))
		r.Commit()

		n.edit(func() { n.down = false })
		n.set(askedVariable, 0, variableJSON("two"))
		time.Sleep(longBackoff)
		must.True(t, changed(w))
		must.Eq(t, "two", value(t, w.Begin()))
		must.Between(t, 1, len(n.requests(askedVariable))-before, 3)
		must.Eq(t, 1, strings.Count(logged.String(), "Nomad does not answer, keeping its last answer"))
		must.Eq(t, 1, strings.Count(logged.String(), "Nomad answers again"))
		must.StrNotContains(t, logged.String(), "the-token")
	})
}

func TestAnOutageIsAskedAboutEverMoreSlowly(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedVariable, 500, "No cluster leader")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := w.Begin().Variable(ctx, variable)
		must.ErrorIs(t, err, ErrUnavailable)
		must.StrContains(t, err.Error(), "No cluster leader")
		attempts := n.requests(askedVariable)
		must.Between(t, 60, len(attempts), 130)
		pauses := map[time.Duration]bool{}
		for i := 1; i < len(attempts); i++ {
			most, pause := min(time.Second<<min(i-1, 10), time.Minute), attempts[i].at.Sub(attempts[i-1].at)
			must.Between(t, most/2, pause, most)
			pauses[pause] = true
		}
		must.Greater(t, 50, len(pauses), must.Sprint("no two alike"))
	})
}

func TestTheFirstAnswerIsWaitedForWhereThatHelps(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.edit(func() { n.down = true })
		time.AfterFunc(20*time.Second, func() {
			n.edit(func() { n.down = false })
			n.set(askedVariable, 0, variableJSON("one"))
		})
		r := w.Begin()
		must.Eq(t, "one", value(t, r))
		r.Commit()
		must.False(t, changed(w))
	})
}

func TestADenialIsToldAtOnceAndItsEndIsSignalled(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.set(askedVariable, 403, "Permission denied")
		began := time.Now()
		_, err := w.Begin().Variable(t.Context(), variable)
		must.ErrorIs(t, err, ErrDenied)
		must.Eq(t, 0, time.Since(began))
		must.False(t, changed(w))
		_, err = w.Begin().Variable(t.Context(), variable)
		must.ErrorIs(t, err, ErrDenied)
		must.Len(t, 2, n.requests(askedVariable), must.Sprint("a new Reading asks anew"))

		n.set(askedVariable, 0, variableJSON("one"))
		time.Sleep(longBackoff)
		must.True(t, changed(w))
		must.Eq(t, "one", value(t, w.Begin()))
	})
}

func TestTheTokenIsReadForEachRequest(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		var token atomic.Value
		token.Store("old")
		w.api.token = func(context.Context) (string, error) { return token.Load().(string), nil }
		n.set(askedVariable, 0, variableJSON("one"))
		n.edit(func() { n.token = "old" })
		r := w.Begin()
		must.Eq(t, "one", value(t, r))
		r.Commit()
		time.Sleep(2 * leastInterval)

		token.Store("new")
		n.edit(func() { n.token = "new" }) // the query that blocks is refused
		n.set(askedVariable, 0, variableJSON("two"))
		time.Sleep(2 * longBackoff)
		must.True(t, changed(w))
		must.Eq(t, "two", value(t, w.Begin()))
		all := n.requests(askedVariable)
		must.Eq(t, "old", all[0].token)
		must.Eq(t, "new", all[len(all)-1].token)
	})
}

func TestATaskWithoutAToken(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		absent := errors.New(`identity "default": no file secrets/nomad_token`)
		w.api.token = func(context.Context) (string, error) { return "", absent }
		_, err := w.Begin().Service(t.Context(), db)
		must.ErrorIs(t, err, absent)
		must.ErrorIs(t, err, ErrUnavailable)
		must.EqError(t, err, `read Nomad service "db": cannot ask Nomad: read the task's Nomad token: `+absent.Error())
		must.Len(t, 0, n.requests(askedDB))
	})
}

func TestATokenThatIsWaitedForIsWaitedForWithAnEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		w.api.token = func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}
		began := time.Now()
		_, err := w.Begin().Service(t.Context(), db)
		must.ErrorIs(t, err, context.DeadlineExceeded)
		must.Eq(t, tokenWithin, time.Since(began))
	})
}

func TestAServerThatNeverAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.edit(func() { n.silent = true })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := w.Begin().Service(ctx, db)
		must.EqError(t, err, `read Nomad service "db": cannot ask Nomad: no answer in time`)
		time.Sleep(answerWithin)
		must.Between(t, 2, len(n.requests(askedDB)), 2, must.Sprint("given up after a while and asked again"))
		must.Eq(t, 1, n.connections())

		n.set(askedDB, 0, dbJSON(1))
		n.edit(func() { n.silent = false })
		time.Sleep(answerWithin + longBackoff)
		must.True(t, changed(w))
		must.Eq(t, 1, port(t, w.Begin()))
	})
}

func TestWhatNoLongerDiffersIsNoChange(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		use(t, n, w)
		time.Sleep(time.Minute)
		n.set(askedVariable, 0, variableJSON("two"))
		must.True(t, changed(w))
		time.Sleep(time.Hour)
		must.False(t, changed(w), must.Sprint("a change that nobody committed is signalled once"))
		n.set(askedVariable, 0, variableJSON("one"))
		must.False(t, changed(w), must.Sprint("back to what the generation in use has seen"))
	})
}

func TestOneChannelServesSeveralSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, shared := newNomad(), make(chan struct{}, 1)
		w := Open(Options{
			Namespace: "ns", Token: func(context.Context) (string, error) { return "", nil },
			Logger: hclog.NewNullLogger(), Changed: shared,
		})
		w.api.dial = n.dial
		defer w.Close()
		n.set(askedVariable, 0, variableJSON("one"))
		r := w.Begin()
		value(t, r)
		shared <- struct{}{} // by the other
		r.Commit()
		must.True(t, changed(w), must.Sprint("a Commit leaves it there"))

		time.Sleep(time.Minute)
		n.set(askedVariable, 0, variableJSON("two"))
		<-shared
		time.Sleep(time.Minute)
		shared <- struct{}{}
		n.set(askedVariable, 0, variableJSON("three"))
		synctest.Wait() // a signal finds the channel full and does not block
		must.True(t, changed(w))
		must.Eq(t, "three", value(t, w.Begin()))
	})
}

func TestAnAnswerThatAReadingWaitsForIsNoChange(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.edit(func() { n.down = true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.Begin().Variable(ctx, variable)
		must.ErrorIs(t, err, ErrUnavailable)
		time.AfterFunc(time.Minute, func() {
			n.edit(func() { n.down = false })
			n.set(askedVariable, 0, variableJSON("one"))
		})
		must.Eq(t, "one", value(t, w.Begin()))
		must.False(t, changed(w))
	})
}

func TestAfterAnOutageTheAnswerIsFetchedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		use(t, n, w)
		time.Sleep(time.Minute)
		n.edit(func() { n.down = true })
		time.Sleep(time.Minute)
		n.edit(func() {
			n.down, n.index = false, 5 // another state: this change has a lower index than we know
			n.answers[askedVariable] = canned{200, variableJSON("two"), 5}
		})
		time.Sleep(longBackoff)
		must.True(t, changed(w))
	})
}

func TestCloseWaitsForItsGoroutines(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		var ended atomic.Bool
		w.api.token = func(ctx context.Context) (string, error) {
			<-ctx.Done()
			time.Sleep(5 * time.Second)
			ended.Store(true)
			return "", ctx.Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.Begin().Service(ctx, db)
		must.ErrorIs(t, err, ErrUnavailable)
		w.Close()
		must.True(t, ended.Load())

		ended.Store(false)
		_, err = w.Begin().Services(t.Context(), "")
		must.ErrorIs(t, err, ErrUnavailable)
		time.Sleep(time.Minute)
		must.False(t, ended.Load(), must.Sprint("nothing starts after Close"))
	})
}

func TestAServerThatAnswersAtOnceIsAskedOnceASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.edit(func() { n.raw = []byte(http1(200, dbJSON(1), 0)) })
		r := w.Begin()
		port(t, r)
		r.Commit()
		time.Sleep(time.Minute)
		must.Between(t, 59, len(n.requests(askedDB)), 62)
		must.Eq(t, 1, n.requests(askedDB)[1].index, must.Sprint("an index of 0 would never block"))
		must.False(t, changed(w))
	})
}

func TestAnIndexThatGoesBackwardsStartsAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.edit(func() { n.index = 5000 })
		use(t, n, w)
		time.Sleep(time.Minute)
		n.edit(func() { n.index = 20 }) // restored from a snapshot
		n.set(askedVariable, 0, variableJSON("two"))
		time.Sleep(blockFor - time.Minute + 2*leastInterval)
		must.True(t, changed(w))
		must.Eq(t, "two", value(t, w.Begin()))
		all := n.requests(askedVariable)
		must.Eq(t, []uint64{0, 5001, 0, 21}, []uint64{all[0].index, all[1].index, all[2].index, all[3].index})
	})
}

func TestCloseEndsAReadingThatWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
		n.edit(func() { n.down = true })
		done := make(chan error)
		r := w.Begin()
		go func() {
			_, err := r.Variable(context.Background(), variable)
			done <- err
		}()
		synctest.Wait()
		w.Close()
		must.ErrorIs(t, <-done, ErrUnavailable)
	})
}
