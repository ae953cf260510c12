package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/logpipe/logpipetest"
)

// A start fails after the process was started, and the wrapped driver cannot end that at the moment: it is said, and
// the next start ends it first.
func TestProcessThatCannotBeEndedIsSweptByTheNextStart(t *testing.T) {
	bubble(t, func(h *host) {
		h.inner.failing("wait", errWrapped)
		h.inner.failing("destroy", errors.New("wrapped: the daemon does not answer"))
		_, _, err := h.StartTask(h.job(asApp + templateHCL("secrets/db", creds, "")))
		must.ErrorIs(t, err, errWrapped)
		must.Len(t, 1, h.machine.running())
		must.Eq(t, 1, h.logged("[ERROR] a process may be left running"))
		must.Eq(t, 1, h.logged("the daemon does not answer"))
		h.inner.failing("wait", nil)
		h.inner.failing("destroy", nil)
		h.inner.did()
		h.start(asApp + templateHCL("secrets/db", creds, ""))
		must.Len(t, 1, h.machine.running())
		must.Len(t, 1, h.Tokens())
	})
}

// Nobody starts the task again: the process is ended, and its credentials are revoked, after the linger.
func TestProcessThatCannotBeEndedIsSweptAfterTheLinger(t *testing.T) {
	bubble(t, func(h *host) {
		h.inner.failing("wait", errWrapped)
		h.inner.failing("destroy", errWrapped)
		_, _, err := h.StartTask(h.job(asApp + templateHCL("secrets/db", creds, "")))
		must.Error(t, err)
		after(2 * time.Minute)
		h.nothingLeft()
	})
}

// It cannot be ended for longer than the linger, and the task is started again: the process is ended first all the
// same.
func TestProcessThatCannotBeEndedForLongIsSweptByALateStart(t *testing.T) {
	bubble(t, func(h *host) {
		for _, method := range []string{"wait", "destroy", "sweep"} {
			h.inner.failing(method, errWrapped)
		}
		_, _, err := h.StartTask(h.job(asApp + templateHCL("secrets/db", creds, "")))
		must.Error(t, err)
		after(10 * time.Minute)
		must.Len(t, 1, h.machine.running())
		must.Len(t, 1, h.Tokens())
		for _, method := range []string{"wait", "destroy", "sweep"} {
			h.inner.failing(method, nil)
		}
		h.start(asApp + templateHCL("secrets/db", creds, ""))
		must.Len(t, 1, h.machine.running())
		must.Len(t, 1, h.Tokens())
	})
}

// It can never be ended: its credentials are revoked all the same.
func TestCredentialsOfAProcessThatCannotBeEndedAreRevoked(t *testing.T) {
	bubble(t, func(h *host) {
		for _, method := range []string{"wait", "destroy", "sweep"} {
			h.inner.failing(method, errWrapped)
		}
		_, _, err := h.StartTask(h.job(asApp + templateHCL("secrets/db", creds, "")))
		must.Error(t, err)
		after(20 * time.Minute)
		must.Len(t, 1, h.machine.running())
		must.Len(t, 0, h.Tokens())
		must.Between(t, 10, h.logged("a process may be left behind"), 20)
	})
}

// A script that does not end is run once, however often the secret changes, and once more when it has ended.
func TestScriptThatHangsIsNotRunAgain(t *testing.T) {
	bubble(t, func(h *host) {
		var now, most, runs atomic.Int64
		hang := make(chan struct{})
		h.inner.exec = func([]string) (*drivers.ExecTaskResult, error) {
			runs.Add(1)
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-hang
			return &drivers.ExecTaskResult{ExitResult: &drivers.ExitResult{}}, nil
		}
		h.write("0")
		h.start(asApp + templateHCL("local/color", kv, onScript+"\npoll_interval = \"5s\""))
		for i := range 200 {
			h.write(fmt.Sprint(i + 1))
			after(20 * time.Second)
		}
		must.Eq(t, 1, most.Load())
		must.Eq(t, 1, runs.Load())
		close(hang)
		after(2 * time.Minute)
		must.Eq(t, 2, runs.Load())
		must.Eq(t, "200", h.file("local/color"))
		must.Between(t, 1, h.logged("[WARN]  local/color changed"), 3, must.Sprint("the same is told again and again"))
	})
}

func TestTaskNameThatLeadsElsewhereIsRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../other", "a/b", `a\b`} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				cfg := h.job(asApp + templateHCL("secrets/db", creds, ""))
				cfg.Name = name
				_, _, err := h.StartTask(cfg)
				must.ErrorContains(t, err, "would lead to a directory that is not the task's")
				handle := drivers.NewTaskHandle(1)
				handle.Config = cfg
				must.NoError(t, handle.SetDriverState(handleState{JobConfig: foreign}))
				must.ErrorContains(t, h.RecoverTask(handle), "would lead to a directory that is not the task's")
				must.Eq(t, 0, h.Logins())
				must.SliceEmpty(t, h.inner.did())
				h.nothingLeft()
			})
		})
	}
}

// The wrapped driver opens the log pipes as root. What it gets leads to the pipe that was looked at, whatever a task
// has put there since.
func TestWrappedDriverGetsThePipesThemselves(t *testing.T) {
	bubble(t, func(h *host) {
		stdout, stderr := logpipetest.FIFOs(t, h.alloc)
		out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
		defer out.Close()
		defer err.Close()
		h.write("green")
		cfg := h.job(asApp + templateHCL("local/color", kv, ""))
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		handle, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		victim := filepath.Join(t.TempDir(), "victim")
		leads := func(given string, pipe string) {
			t.Helper()
			must.StrHasPrefix(t, fmt.Sprintf("/proc/%d/fd/", os.Getpid()), given)
			must.NoError(t, os.WriteFile(victim, nil, 0o600))
			must.NoError(t, os.Rename(pipe, pipe+".away"))
			must.NoError(t, os.Symlink(victim, pipe))
			info, err := os.Stat(given)
			must.NoError(t, err)
			must.Eq(t, os.ModeNamedPipe, info.Mode().Type())
			must.NoError(t, os.Rename(pipe+".away", pipe))
		}
		leads(h.inner.logs.StdoutPath, stdout)
		leads(h.inner.logs.StderrPath, stderr)
		must.Eq(t, stdout, handle.Config.StdoutPath, must.Sprint("what Nomad keeps is what it gave"))

		h.write("blue")
		after(noticed)
		leads(h.inner.logs.StdoutPath, stdout)

		h.reboot()
		must.NoError(t, h.RecoverTask(handle))
		leads(h.inner.logs.StderrPath, stderr)
	})
}

// A task is recovered without its log where something else has taken the place of the pipe.
func TestRecoverWithoutALogPipe(t *testing.T) {
	bubble(t, func(h *host) {
		stdout, stderr := logpipetest.FIFOs(t, h.alloc)
		out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
		defer out.Close()
		defer err.Close()
		cfg := h.job(asApp)
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		handle, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		h.crash()
		must.NoError(t, os.Remove(stderr))
		must.NoError(t, os.Symlink("/etc/shadow", stderr))
		h.boot()
		must.NoError(t, h.RecoverTask(handle))
		must.Eq(t, os.DevNull, h.inner.logs.StderrPath)
		must.StrHasPrefix(t, "/proc/", h.inner.logs.StdoutPath)
		must.Eq(t, 1, h.logged("output of the task is lost"))
		must.Len(t, 1, h.machine.running())
	})
}

// The first call that fails does not keep the next one from the events.
func TestTaskEventsAfterACallThatFailed(t *testing.T) {
	bubble(t, func(h *host) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		d := New(ctx, hclog.NewNullLogger(), "vault-fake", &onceWithoutEvents{wrapped: h.inner})
		_, err := d.TaskEvents(ctx)
		must.ErrorIs(t, err, errWrapped)
		events, err := d.TaskEvents(ctx)
		must.NoError(t, err)
		d.outbox <- &drivers.TaskEvent{Message: "hello"}
		must.Eq(t, "hello", (<-events).Message)
	})
}

// onceWithoutEvents fails the first time.
type onceWithoutEvents struct {
	*wrapped
	asked bool
}

func (w *onceWithoutEvents) TaskEvents(ctx context.Context) (<-chan *drivers.TaskEvent, error) {
	if !w.asked {
		w.asked = true
		return nil, errWrapped
	}
	return w.wrapped.TaskEvents(ctx)
}

// A stop hangs in the wrapped driver: in good time the process is killed and the credentials are revoked all the same.
func TestStopThatHangsGivesTheCredentialsUp(t *testing.T) {
	for name, test := range map[string]struct {
		arrange func(*wrapped)
		says    string
	}{
		"the process can be killed": {func(*wrapped) {}, "and was killed"},
		"it cannot": {func(w *wrapped) { w.failing("sweep", errors.New("processes [7] do not end")) },
			"and may be left running: processes [7] do not end"},
		"nor is there an answer": {func(w *wrapped) { w.slow("sweep", time.Hour) },
			"and may be left running as web of allocation"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				run := h.start(asApp + templateHCL("secrets/db", creds, ""))
				h.inner.slow("stop", time.Hour)
				h.inner.slow("signal", time.Hour)
				test.arrange(h.inner)
				go func() { _ = h.SignalTask(run.cfg.ID, "SIGHUP") }() // which hangs too
				after(time.Second)
				began := time.Now()
				must.NoError(t, h.StopTask(run.cfg.ID, 5*time.Second, "SIGTERM"))
				must.Between(t, 5*time.Second+stopGrace, time.Since(began), 5*time.Second+stopGrace+killWithin)
				after(time.Second)
				must.Len(t, 0, h.Tokens())
				must.Eq(t, "", h.file("secrets/db"))
				must.Eq(t, 1, h.logged("[ERROR] the process has not ended"))
				must.Eq(t, 1, h.logged(test.says))
			})
		})
	}
}

// A stop fails as often as Nomad asks for it.
func TestStopThatAlwaysFailsGivesTheCredentialsUp(t *testing.T) {
	bubble(t, func(h *host) {
		run := h.start(asApp + templateHCL("secrets/db", creds, ""))
		h.inner.failing("stop", errWrapped)
		for range 5 {
			must.True(t, h.StopTask(run.cfg.ID, 5*time.Second, "SIGTERM") == errWrapped)
			after(time.Minute)
		}
		must.Len(t, 1, h.Tokens())
		after(stopTries)
		must.Len(t, 0, h.Tokens())
		must.Len(t, 0, h.machine.running())
		must.Eq(t, 1, h.logged("[ERROR] the process has not ended"))
	})
}
