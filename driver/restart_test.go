package driver

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
)

func TestRestartInTheDriverIsInvisible(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + templateHCL("secrets/env", "COLOR="+kv, "env = true"))
		ended := r.wait()
		stats, err := h.TaskStats(h.Context(), r.cfg.ID, time.Second)
		must.NoError(t, err)
		before := r.process()
		must.Eq(t, int64(before.pid), (<-stats).Timestamp)
		h.inner.slow("stop", 3*time.Second)
		h.inner.slow("start", 3*time.Second)
		h.write("blue")
		gap := false
		for i := 0; i < 60; i++ {
			after(time.Second)
			status, err := h.InspectTask(r.cfg.ID)
			must.NoError(t, err)
			must.Eq(t, drivers.TaskStateRunning, status.State)
			if len(h.machine.running()) == 0 && !gap {
				gap = true
				_, err := h.TaskStats(h.Context(), r.cfg.ID, time.Second)
				must.NoError(t, err)
			}
			select {
			case <-ended:
				t.Fatal("WaitTask has returned")
			case <-stats:
			default:
			}
		}
		must.True(t, gap)
		must.NotEq(t, before.pid, r.process().pid)
		must.Eq(t, "blue", r.process().env["COLOR"])
		must.Eq(t, int64(r.process().pid), (<-stats).Timestamp)
		r.exit(7)
		must.Eq(t, 7, (<-ended).ExitCode)
		status, err := h.InspectTask(r.cfg.ID)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateExited, status.State)
		must.Eq(t, 7, status.ExitResult.ExitCode)
	})
}

func TestSignalDuringARestartReachesTheNewProcess(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(""))
		h.inner.slow("stop", 10*time.Second)
		h.inner.slow("start", 10*time.Second)
		before := r.process()
		h.write("blue")
		for len(h.machine.running()) == 1 {
			after(time.Second)
		}
		must.NoError(t, h.SignalTask(r.cfg.ID, "SIGUSR1"))
		must.Eq(t, []string{"SIGUSR1"}, r.process().signals)
		must.SliceEmpty(t, before.signals)
	})
}

func TestChangeDuringARestartIsNotLost(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + templateHCL("secrets/env", "COLOR="+kv, "env = true"))
		h.inner.slow("start", 10*time.Minute)
		h.write("blue")
		after(2 * time.Minute)
		must.Len(t, 0, h.machine.running())
		h.write("red")
		after(25 * time.Minute)
		must.Eq(t, "red", r.process().env["COLOR"])
		must.Eq(t, []string{"stop 5s", "destroy", "start", "stop 5s", "destroy", "start"}, r.did())
	})
}

func TestRestartThatCannotStartEndsTheTaskWithThatError(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(""))
		ended := r.wait()
		h.inner.failing("start", errWrapped)
		h.write("blue")
		result := <-ended
		must.Eq(t, -1, result.ExitCode)
		must.ErrorIs(t, result.Err, errWrapped)
		must.Eq(t, "restart: wrapped: no such image", result.Err.Error())
		must.Len(t, 0, h.machine.running())
		after(time.Minute)
		h.nothingLeft()
	})
}

func TestProcessThatDoesNotStopIsDestroyed(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(""))
		h.inner.failing("stop", errWrapped)
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"stop 5s", "destroy", "destroy", "start"}, r.did())
		must.True(t, r.alive())

		ended := r.wait()
		h.inner.failing("destroy", errWrapped)
		h.write("red")
		result := <-ended
		must.Eq(t, "restart: stop: wrapped: no such image", result.Err.Error())
	})
}

func TestProcessThatEndsByItselfIsNotRestarted(t *testing.T) {
	for range 10 { // which of the two is seen first is chance
		bubble(t, func(h *host) {
			h.write("green")
			r := h.start(strings.ReplaceAll(severalTemplates(""), `splay = "0s"`, `splay = "1h"`))
			ended := r.wait()
			h.write("blue")
			for h.file("local/0") != "blue" {
				after(time.Second)
			}
			h.inner.slow("stop", time.Hour) // until then both have come: the end of the splay and that of the process
			h.inner.failing("stop", errWrapped)
			go func() { _ = h.StopTask(r.cfg.ID, 2*time.Hour, "SIGUSR1") }()
			after(time.Minute)
			r.exit(9)
			must.Eq(t, &drivers.ExitResult{ExitCode: 9}, <-ended)
			must.Eq(t, []string{"stop 2h0m0s SIGUSR1"}, r.did())
		})
	}
}

// The job's kill_timeout is for the restart and holds up nobody else.
func TestStopDoesNotWaitForARestart(t *testing.T) {
	for how, test := range map[string]struct {
		ask   func(*run) error
		takes time.Duration
	}{
		"a stop":           {func(r *run) error { return r.StopTask(r.cfg.ID, 5*time.Second, "SIGTERM") }, 5 * time.Second},
		"a forced destroy": {func(r *run) error { return r.DestroyTask(r.cfg.ID, true) }, 0},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start("kill_timeout = \"2h\"\n" + severalTemplates(""))
				ended := r.wait()
				h.inner.deaf = true
				h.write("blue")
				after(noticed)
				must.Eq(t, []string{"stop 2h0m0s"}, r.did())
				h.inner.failing("stop", errWrapped)
				must.ErrorIs(t, test.ask(r), errWrapped)
				must.True(t, r.alive(), must.Sprint("the agent asks again"))
				h.inner.failing("stop", nil)
				began := time.Now()
				must.NoError(t, test.ask(r))
				must.Eq(t, 143, (<-ended).ExitCode)
				must.Eq(t, test.takes, time.Since(began))
				must.Len(t, 0, h.machine.running())
				must.SliceNotContains(t, r.did(), "start")
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestSignalReachesTheProcessThatARestartWaitsFor(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start("kill_timeout = \"2h\"\n" + severalTemplates(""))
		h.inner.slow("stop", time.Hour)
		before := r.process()
		h.write("blue")
		after(noticed)
		began := time.Now()
		must.NoError(t, h.SignalTask(r.cfg.ID, "SIGUSR1"))
		must.Zero(t, time.Since(began))
		must.Eq(t, []string{"SIGUSR1"}, before.signals)
		h.machine.exit(before.pid, &drivers.ExitResult{}) // and StopTask has not noticed yet
		for range 2 {
			must.NoError(t, h.SignalTask(r.cfg.ID, "SIGUSR2"))
		}
		must.Eq(t, []string{"SIGUSR2", "SIGUSR2"}, r.process().signals)
	})
}
