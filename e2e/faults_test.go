package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// fault is one step of a task's life at which the plugin dies, in the order of the steps (driver: reached).
type fault struct {
	step string
	mode string // change mode of what is rotated; empty: the plugin dies while the task starts
	stop bool   // it dies while the task stops
	// such a restart may not be needed: the exit that nobody saw may be taken for the end of the task, or not
	spared bool
	// of Nomad's that this may cost: with neither plugin nor process the log collector stops, and only Nomad starts one
	restarts int
}

var faults = []fault{
	{step: "logged-in", restarts: 1},
	{step: "rendered", restarts: 1},
	{step: "written", restarts: 1},
	{step: "launching", restarts: 1},
	{step: "launched"},
	{step: "known"},
	{step: "told"},
	{step: "committed"},

	{step: "rendered", mode: "signal"},
	{step: "written", mode: "signal"},
	{step: "planned", mode: "signal"},
	{step: "told", mode: "signal"},
	{step: "committed", mode: "signal"},

	{step: "rendered", mode: "restart"},
	{step: "written", mode: "restart"},
	{step: "planned", mode: "restart"},
	{step: "restarting", mode: "restart"},
	{step: "halted", mode: "restart", restarts: 1, spared: true},
	{step: "destroyed", mode: "restart", restarts: 1},
	{step: "launching", mode: "restart", restarts: 1},
	{step: "launched", mode: "restart", restarts: 1},
	{step: "known", mode: "restart"},
	{step: "told", mode: "restart"},
	{step: "committed", mode: "restart"},

	{step: "stopping", stop: true},
	{step: "ended", stop: true},
	{step: "left", stop: true},
	{step: "cleared", stop: true},
	{step: "set-aside", stop: true},
	{step: "revoked", stop: true},
}

// TestPluginDiesAtEachStep kills the plugin at each step of a task's life. However it was interrupted, the task comes
// to run as one process with the current secrets, its session and its door are used again, and a stop takes everything
// back. Each case has a plugin process of its own, so that it dies once and for one reason.
func TestPluginDiesAtEachStep(t *testing.T) {
	var plugins []stack.Plugin
	jobs := map[string]job{}
	for i, f := range faults {
		for _, driver := range []string{"exec", "docker"} {
			name := fmt.Sprintf("%02d-%s-%s", i, f.phase(), f.step)
			plugin := stack.Wrap(driver, fmt.Sprintf("fault-%d-%s", i, driver))
			plugins = append(plugins, plugin)
			jobs[name+"/"+driver] = job{Name: name + "-" + driver, Driver: plugin.Name}
		}
	}
	s := own(t, stack.Options{Postgres: true, Faults: true, Plugins: plugins})
	a := newAPI(t, "")
	t.Run("cases", func(t *testing.T) { // ends when all are over, and the stack after it
		for i, f := range faults {
			for name, j := range jobs {
				if strings.HasPrefix(name, fmt.Sprintf("%02d-", i)) {
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						f.survived(t, s, a, j)
					})
				}
			}
		}
	})
}

// phase is what the plugin dies in.
func (f fault) phase() string {
	switch {
	case f.stop:
		return "stop"
	case f.mode != "":
		return f.mode
	default:
		return "start"
	}
}

func (f fault) survived(t *testing.T, s *stack.Stack, a *api, j job) {
	ctx := within(t, 3*time.Minute)
	put(t, s, j, map[string]any{"color": "green"})
	policy := fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] } %s`, j.Name, revokes)
	j = withDatabase(t, s, j, time.Hour, policy, onNoop)
	mode := map[string]string{"": onNoop, "signal": onSignal, "restart": onRestart}[f.mode]
	j.Config += file("secrets/color", inJob(j, "color"), mode) + a.door(j, "color", "")
	j.Config = strings.Replace(j.Config, "vault {\n", "vault {\n identity_file = \"private/vault.jwt\"\n", 1)
	j.Hidden = true
	j.Args = []string{"show", "/secrets/color", "/secrets/db.env"}
	j.Task += "restart {\n attempts = 1\n delay = \"0s\"\n interval = \"10m\"\n mode = \"fail\"\n }"
	starts := f.phase() == "start"
	if starts {
		must.NoError(t, s.Fault(j.Name, f.step))
	}
	alloc := run(t, s, j)
	must.NoError(t, alloc.Running(ctx))
	if starts {
		must.True(t, s.Faulted(j.Name, f.step), must.Sprint("the task comes to that step"))
	}
	shown(t, ctx, alloc, j, "/secrets/color", 1)
	tokens := tokensOf(t, s, j.Name)
	must.Len(t, 1, tokens)

	eventually(t, time.Minute, func() error { return answered(ctx, alloc, j, "green") })
	if f.mode != "" {
		must.NoError(t, s.Fault(j.Name, f.step))
		put(t, s, j, map[string]any{"color": "blue"})
		eventually(t, time.Minute, func() error { return f.reached(s, j) })
		eventually(t, time.Minute, func() error { return f.current(t, ctx, alloc, j, "blue") })
		must.Eq(t, tokens, tokensOf(t, s, j.Name), must.Sprint("the session goes on"))
		eventually(t, time.Minute, func() error { return answered(ctx, alloc, j, "blue") })
	}
	if f.stop {
		must.NoError(t, s.Fault(j.Name, f.step))
	} else {
		eventually(t, slack, func() error { // the files are there before the process that Nomad starts anew
			if len(applications(alloc)) == 0 {
				return errors.New("there is no process")
			}
			return nil
		})
		must.Len(t, 1, applications(alloc), must.Sprint("one process, whatever was lost"))
		must.LessEq(t, uint64(f.restarts), state(t, ctx, alloc, j).Restarts)
	}

	stop(t, ctx, s, alloc, j)
	if f.stop {
		eventually(t, time.Minute, func() error { return f.reached(s, j) })
	}
	// What the next plugin process finds, and no task claims, waits for a minute.
	eventually(t, 90*time.Second, func() error { return leftBehind(t, s, j.Name, alloc) })
}

// reached returns an error while the plugin has not died at the step.
func (f fault) reached(s *stack.Stack, j job) error {
	if !s.Faulted(j.Name, f.step) {
		return fmt.Errorf("the task has not come to step %q", f.step)
	}
	return nil
}

// current returns nil when Nomad has restarted the task as often as it must, and the process that runs has shown the
// color last, and the database user that is in its file.
func (f fault) current(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, color string) error {
	t.Helper()
	if now := state(t, ctx, alloc, j); now.State != "running" || now.Restarts < uint64(f.restarts) && !f.spared {
		return fmt.Errorf("the task is %s after %d restarts, not running after %d", now.State, now.Restarts, f.restarts)
	}
	log, err := alloc.Logs(ctx, j.Name, "stdout")
	if err != nil {
		return err
	}
	env, err := os.ReadFile(alloc.Path(j.Name, "secrets/db.env"))
	if err != nil {
		return err
	}
	want := fmt.Sprintf("/secrets/color: %q\n/secrets/db.env: %q\n", color, env)
	if !strings.HasSuffix(log, want) {
		return fmt.Errorf("the log does not end with %s but is %s", want, log)
	}
	return nil
}
