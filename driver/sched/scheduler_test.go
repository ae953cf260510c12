package sched

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// probe is a chore that checks what the scheduler promises, and wants to run again now and then by itself.
type probe struct {
	*Chore
	t       *testing.T
	busy    *atomic.Int32 // of all probes
	running atomic.Bool
	ended   atomic.Bool
	runs    atomic.Int32
	takes   time.Duration // of one run
	repeat  time.Duration // zero: it wants to run only when asked
}

func (p *probe) step(ctx context.Context) time.Time {
	if p.running.Swap(true) {
		p.t.Error("it runs twice at once")
	}
	if p.ended.Load() {
		p.t.Error("it runs after End")
	}
	p.busy.Add(1)
	p.runs.Add(1)
	Sleep(ctx, p.takes)
	p.busy.Add(-1)
	p.running.Store(false)
	if p.repeat == 0 {
		return time.Time{}
	}
	return time.Now().Add(p.repeat)
}

func TestSchedulerWithRandomWakesAndEnds(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := New()
			var busy atomic.Int32
			var probes []*probe
			for range 12 {
				p := &probe{t: t, busy: &busy, takes: time.Duration(rnd.IntN(3)) * time.Second,
					repeat: time.Duration(rnd.IntN(3)) * 20 * time.Second}
				p.Chore = s.Add(p.step)
				probes = append(probes, p)
			}
			for range 300 {
				p := probes[rnd.IntN(len(probes))]
				switch rnd.IntN(20) {
				case 0:
					p.End()
					p.ended.Store(true)
					must.False(t, p.running.Load(), must.Sprint("End returned while it runs"))
				default:
					before, in := p.runs.Load(), time.Duration(rnd.IntN(5))*time.Second
					p.Wake(time.Now().Add(in))
					time.AfterFunc(in+time.Minute, func() {
						if !p.ended.Load() && p.runs.Load() == before {
							t.Error("a wake-up was lost")
						}
					})
				}
				time.Sleep(time.Duration(rnd.IntN(4)) * time.Second)
			}
			time.Sleep(2 * time.Minute)
			s.Close()
			must.Eq(t, 0, busy.Load())
			for _, p := range probes {
				p.End()
				must.False(t, p.running.Load())
			}
		})
	}
}

func TestSchedulerRunsTheEarliestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		defer s.Close()
		var order []int
		began := time.Now()
		for _, n := range []int{5, 1, 4, 2, 3} {
			c := s.Add(func(context.Context) time.Time {
				order = append(order, int(time.Since(began)/time.Second))
				return time.Time{}
			})
			c.Wake(began.Add(time.Hour))
			c.Wake(began.Add(time.Duration(n) * time.Second))
			c.Wake(began.Add(time.Hour)) // later than planned: stays
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		must.Eq(t, []int{1, 2, 3, 4, 5}, order)
	})
}

func TestSchedulerWakeWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		defer s.Close()
		runs := 0
		c := s.Add(func(context.Context) time.Time {
			runs++
			time.Sleep(time.Second)
			return time.Now().Add(time.Hour)
		})
		c.Wake(time.Now())
		time.Sleep(time.Second / 2)
		c.Wake(time.Now())
		time.Sleep(time.Minute)
		synctest.Wait()
		must.Eq(t, 2, runs)
		c.End()
	})
}

func TestSchedulerCloseCancelsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		var canceled atomic.Int32
		for range 5 {
			s.Add(func(ctx context.Context) time.Time {
				<-ctx.Done()
				canceled.Add(1)
				return time.Now()
			}).Wake(time.Now())
		}
		synctest.Wait()
		s.Close()
		must.Eq(t, 5, canceled.Load())
	})
}

func TestEarlierAndLater(t *testing.T) {
	never := time.Time{}
	first := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	second := first.Add(1)
	must.Eq(t, first, Earlier(first, never))
	must.Eq(t, first, Earlier(never, first))
	must.Eq(t, first, Earlier(second, first))
	must.Eq(t, never, Earlier(never, never))
	must.Eq(t, second, Later(first, second))
}
