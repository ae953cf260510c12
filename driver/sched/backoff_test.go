package sched

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestBackoff(t *testing.T) {
	b := Backoff{First: time.Second, Most: time.Minute}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		must.Between(t, want*time.Second/2, b.Next(), want*time.Second)
	}
	for range 1000 {
		must.Between(t, 30*time.Second, b.Next(), time.Minute)
	}
	b.Reset()
	must.LessEq(t, time.Second, b.Next())
	var none Backoff
	must.Eq(t, 0, none.Next())
}
