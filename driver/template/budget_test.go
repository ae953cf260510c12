//go:build !race

package template

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// heard tells of each question, and answers kv/hung only when the time is over.
type heard struct {
	*fakeSource
	asked func()
}

func (h heard) Read(ctx context.Context, path string, query url.Values) (*Secret, error) {
	h.asked()
	if path == "kv/hung" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return h.fakeSource.Read(ctx, path, query)
}

const busy = `{{ $x := secret "kv1/app" }}{{ range loop 1000 }}{{ range loop 1000 }}{{ print . | sha256Hex }}{{ end }}{{ end }}`

// crowd executes templates of that many tasks until the test ends.
func crowd(t *testing.T, tasks, each int, text string, in Input) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	tmpl, err := Parse(Spec{Name: "x", Data: text})
	must.NoError(t, err)
	for range tasks {
		in := in
		in.Budget = NewBudget()
		for range each {
			all.Go(func() { _, _ = tmpl.Execute(ctx, in) })
		}
	}
}

// neighbour executes a small template as another task does at its start.
func neighbour(t *testing.T) time.Duration {
	began := time.Now()
	out, err := render(t, Spec{Data: `{{ with secret "kv/data/app" }}{{ .Data.data.password }}{{ end }}`},
		Input{Source: newSource()})
	must.NoError(t, err)
	must.Eq(t, "hunter2", out)
	return time.Since(began)
}

func TestNoCrowdOfTemplatesDelaysANeighbour(t *testing.T) {
	asked := make(chan struct{}, 3000)
	source := heard{newSource(), func() { asked <- struct{}{} }}
	crowd(t, 10, 150, `{{ secret "kv/hung" }}`, Input{Source: source})
	for range 10 * 150 {
		<-asked // each waits for Vault at the same time, though few may execute
	}
	crowd(t, 10, 150, busy, Input{Source: source})
	for range 10 { // each task has begun with one at least
		<-asked
	}
	for range 5 {
		must.Less(t, time.Second, neighbour(t))
	}
}

func TestTemplatesOfATaskShareABudget(t *testing.T) {
	b := NewBudget()
	large := `{{ $x := sprig_repeat 15000000 "x" }}`
	tmpl, err := Parse(Spec{Name: "x", Data: large})
	must.NoError(t, err)
	failures := map[string]int{}
	for range 20 {
		if _, err := tmpl.Execute(t.Context(), Input{Budget: b}); err != nil {
			failures[err.Error()]++
		}
	}
	must.MapLen(t, 1, failures)
	must.Eq(t, 16, failures[`execute template "x": line 1: sprig_repeat: it takes more than the 67108864 bytes that the templates of one task may: give it less`])
	b.Begin()
	_, err = tmpl.Execute(t.Context(), Input{Budget: b})
	must.NoError(t, err, must.Sprint("the next pass has a budget of its own"))

	printed, err := Parse(Spec{Name: "x", Data: strings.Repeat("0123456789abcdef", 700<<10)})
	must.NoError(t, err)
	for i := range 3 {
		_, err = printed.Execute(t.Context(), Input{Budget: b})
		must.True(t, (err != nil) == (i == 2), must.Sprint(err))
	}
	must.EqError(t, err, `execute template "x": the templates of the task have results of more than the 33554432 bytes allowed: give them less`)
}

func TestTextsOfATaskShareABudget(t *testing.T) {
	for says, text := range map[string]string{
		"the task's templates have more than 1048576 bytes in their actions: give them less": "{{ print" +
			strings.Repeat(" 1", 150<<10) + " }}",
		"the task's templates have more than 33554432 bytes of text: give them less": strings.Repeat("0123456789abcdef",
			600<<10),
	} {
		b := NewBudget()
		var err error
		for i := range 4 {
			must.NoError(t, err)
			_, err = Parse(Spec{Name: fmt.Sprint(i), Data: text, Budget: b})
		}
		must.EqError(t, err, `parse template "3": `+says)
	}
}
