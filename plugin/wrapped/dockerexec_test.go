package wrapped

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// reader is the user of nomad alloc exec: it reads each piece after it was ready.
type reader struct {
	bytes.Buffer
	ready func()
}

func (r *reader) Write(p []byte) (int, error) {
	r.ready()
	return r.Buffer.Write(p)
}

func (*reader) Close() error { return nil }

func TestDockerExecEndsAfterItsOutput(t *testing.T) {
	need.Root(t)
	drivertest.RequireDocker(t)
	h := serve(t, "docker", "")
	cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, "docker", drivertest.Stays))
	asked, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(script, stdin string, tty bool, ready func()) (string, int) {
		out := &reader{ready: ready}
		result, err := h.Impl().(drivers.ExecTaskStreamingDriver).ExecTaskStreaming(asked, cfg.ID, &drivers.ExecOptions{
			Command: []string{"/bin/sh", "-c", script}, Tty: tty,
			Stdin: io.NopCloser(strings.NewReader(stdin)), Stdout: out, Stderr: &reader{ready: ready}})
		must.NoError(t, err)
		return out.String(), result.ExitCode
	}
	atOnce := func() {}
	for sentence, c := range map[string]struct {
		script, stdin string
		tty           bool
		code          int
		times         int
	}{
		"3 MB":                       {script: "yes 12345678 | head -c 3000000; exit 3", code: 3, times: 5},
		"few":                        {script: "echo; exit 3", code: 3, times: 20},
		"on a terminal":              {script: "yes 12345678 | head -c 300000; exit 3", tty: true, code: 3, times: 5},
		"input that nobody reads":    {script: "echo; exit 3", stdin: strings.Repeat("x", 3_000_000), code: 3, times: 5},
		"output that is closed":      {script: "echo; exec >&- 2>&-; sleep 0.5; exit 4", code: 4, times: 1},
		"output that somebody holds": {script: "sleep 600 & echo; exit 3", code: 3, times: 1},
	} {
		t.Run(sentence, func(t *testing.T) {
			want := 1
			if strings.Contains(c.script, "yes") {
				want = map[bool]int{false: 3_000_000, true: 300_000 + 300_000/9}[c.tty]
			}
			for range c.times {
				out, code := run(c.script, c.stdin, c.tty, atOnce)
				must.Eq(t, want, len(out))
				must.Eq(t, c.code, code)
			}
		})
	}
	t.Run("3 MB, read slowly", func(t *testing.T) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		out, code := run("yes 12345678 | head -c 3000000; exit 3", "", false, func() { <-tick.C })
		must.Eq(t, 3_000_000, len(out))
		must.Eq(t, 3, code)
	})
}
