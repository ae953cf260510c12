package driver

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// The agent asks a new plugin process to start the same task with the same ID when the one before died while it did so.
func TestStartAfterACrashInTheMiddleOfOne(t *testing.T) {
	for how, hold := range map[string]func(*host) (mend func()){
		"while Vault is asked": func(h *host) func() { return h.Break(vaulttest.Fault{Match: "GET kv/slow", Hang: true}) },
		"while the wrapped driver starts": func(h *host) func() {
			h.inner.slow("start", time.Minute)
			return func() {}
		},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Put("kv/slow", map[string]any{"k": "v"})
				config := whole + templateHCL("local/slow", `{{ with secret "kv/slow" }}{{ .Data.k }}{{ end }}`, "")
				cfg := h.job(config)
				mend := hold(h)
				go func() { _, _, _ = h.StartTask(cfg) }()
				after(20 * time.Second)
				must.Eq(t, 1, h.Logins())
				h.reboot()
				mend()
				handle, _, err := h.StartTask(cfg)
				must.NoError(t, err)
				after(time.Hour)
				must.Eq(t, 1, h.Logins(), must.Sprint("the session was kept before the start was over"))
				if how == "while the wrapped driver starts" {
					must.Eq(t, 1, h.Minted())
				}
				r := &run{h, cfg, handle}
				must.NotNil(t, r.process())
				r.stop()
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

// A process whose handle was lost, because the plugin died between its start and the writing down of the handle, must
// not run beside the next one.
func TestProcessThatNobodyKnowsOfIsEnded(t *testing.T) {
	lose := func(r *run) { // as the crash left it: the wrapped driver was asked, and has not answered
		r.crash()
		name := filepath.Join(r.config.StateDir, state.FileOf("alloc-1/web"))
		data, err := os.ReadFile(name)
		must.NoError(r, err)
		kept, err := state.DecodeRecord(state.FileOf("alloc-1/web"), data)
		must.NoError(r, err)
		must.False(r, kept.Launching)
		kept.Launching, kept.InnerVersion, kept.Inner = true, 0, nil
		data, err = json.Marshal(kept)
		must.NoError(r, err)
		must.NoError(r, os.WriteFile(name, data, 0o600))
		r.boot()
	}
	one := func(r *run, before *taskProcess) {
		r.Helper()
		must.True(r, r.process() != before)
		must.Eq(r, 1, r.Logins())
	}
	t.Run("by the same start", func(t *testing.T) {
		bubble(t, func(h *host) {
			r := h.start(whole)
			before := r.process()
			lose(r)
			_, _, err := h.StartTask(r.cfg)
			must.NoError(t, err)
			must.Eq(t, []string{"sweep alloc-1 web", "start"}, r.did())
			one(r, before)
			must.Eq(t, 1, h.Minted())
		})
	})
	t.Run("by a recovery that does not find it", func(t *testing.T) {
		bubble(t, func(h *host) {
			r := h.start(whole)
			before := r.process()
			kept := map[string]any{}
			must.NoError(t, r.handle.GetDriverState(&kept))
			kept["PID"] = 7 // of the process before it, which has ended
			must.NoError(t, r.handle.SetDriverState(kept))
			lose(r)
			must.ErrorContains(t, h.RecoverTask(r.stored()), "wrapped: no process")
			must.Len(t, 0, h.machine.running())
			must.NoError(t, h.DestroyTask(r.cfg.ID, true))
			h.inner.did()
			again := h.start(whole)
			one(again, before)
		})
	})
	t.Run("when nobody comes for it", func(t *testing.T) {
		bubble(t, func(h *host) {
			r := h.start(whole)
			lose(r)
			after(unclaimedAfter - time.Second)
			must.Len(t, 1, h.machine.running())
			after(time.Second)
			h.nothingLeft()
		})
	})
	t.Run("before anything else is tried", func(t *testing.T) {
		bubble(t, func(h *host) {
			r := h.start(whole)
			lose(r)
			h.inner.failing("sweep", errWrapped)
			_, _, err := h.StartTask(r.cfg)
			must.ErrorIs(t, err, errWrapped)
			must.True(t, structs.IsRecoverable(err))
			must.SliceNotContains(t, r.did(), "start")
			must.Eq(t, []string{state.FileOf("alloc-1/web")}, h.records(), must.Sprint("a crash now loses nothing"))
			h.inner.failing("sweep", nil)
			_, _, err = h.StartTask(r.cfg)
			must.NoError(t, err)
			must.Len(t, 1, h.machine.running())
			must.Eq(t, 1, h.Logins())
		})
	})
}

func TestSessionOfAnAllocationThatIsGoneIsRevokedAMinuteLater(t *testing.T) {
	bubble(t, func(h *host) {
		gone := h.elsewhere(whole)
		gone.AllocID = "alloc-2"
		_, _, err := h.StartTask(gone)
		must.NoError(t, err)
		lost := only(t, h.Users())
		r := h.start(whole)
		must.Len(t, 2, h.Users())
		h.crash()
		must.NoError(t, os.RemoveAll(gone.AllocDir))
		h.boot()
		r.recovered()
		after(unclaimedAfter - time.Second)
		must.Len(t, 2, h.Users())
		after(time.Second)
		must.NotEq(t, lost, only(t, h.Users()))
		must.Eq(t, 1, h.logged("revoking the session of a task that is gone"))
		must.Eq(t, []string{state.FileOf("alloc-1/web")}, h.records())
		after(time.Hour)
		must.Len(t, 1, h.Users())
		must.Eq(t, []string{"recover", "sweep alloc-2 web"}, r.did())
	})
}

// An agent recovers one task after the other, and one of them can keep it for minutes.
func TestRecoverThatComesLateFindsEverything(t *testing.T) {
	for _, late := range []time.Duration{2 * unclaimedAfter, claimedWithin - time.Minute, 2 * claimedWithin} {
		t.Run(late.String(), func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(whole)
				process, token, user := r.process(), only(t, h.Tokens()), only(t, h.Users())
				h.reboot()
				after(late)
				must.Eq(t, vaulttest.Planted+user, h.file("secrets/db"))
				r.recovered()
				after(time.Hour)
				must.Eq(t, []string{"recover"}, r.did())
				must.True(t, process == r.process())
				must.Eq(t, token, only(t, h.Tokens()))
				must.Eq(t, user, only(t, h.Users()))
				must.Eq(t, 1, h.Logins())
			})
		})
	}
}

// What a crash of the plugin leaves of a task for which nobody comes, and for how long.
func TestWhatNobodyComesForIsTakenBack(t *testing.T) {
	for how, test := range map[string]struct {
		crash func(*host) // until another plugin is there
		wait  time.Duration
	}{
		"a task that had ended": {func(h *host) { h.start(whole).exit(1); after(time.Second); h.reboot() }, unclaimedAfter},
		"a task that ends before the plugin starts": {func(h *host) {
			r := h.start(whole)
			h.crash()
			r.exit(1)
			h.boot()
		}, unclaimedAfter},
		"a task that ends long after it": {func(h *host) {
			r := h.start(whole)
			time.AfterFunc(claimedWithin+30*time.Second, func() { r.exit(1) })
			h.reboot()
		}, claimedWithin + time.Minute},
		"a task whose allocation goes": {func(h *host) {
			cfg := h.elsewhere(whole)
			_, _, err := h.StartTask(cfg)
			must.NoError(h, err)
			time.AfterFunc(4*time.Minute+30*time.Second, func() { must.NoError(h, os.RemoveAll(cfg.AllocDir)) })
			h.reboot()
		}, 5 * time.Minute},
		"a task whose secrets were being read": {func(h *host) {
			h.Break(vaulttest.Fault{Match: "GET kv/slow", Hang: true})
			go func() { _, _, _ = h.StartTask(h.job(slow)) }()
			after(time.Second)
			h.reboot()
		}, unclaimedAfter},
		"a task that was to be started": {func(h *host) {
			h.inner.slow("start", time.Hour)
			go func() { _, _, _ = h.StartTask(h.job(whole)) }()
			after(time.Second)
			h.reboot()
		}, unclaimedAfter},
		"a task that the agent did not know": {func(h *host) { h.startUnanswered(h.job(whole)); h.reboot() }, claimedWithin},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				test.crash(h)
				after(test.wait - time.Second)
				must.Len(t, 1, h.Users())
				after(time.Second)
				h.nothingLeft()
				must.MapEmpty(t, h.parking.parked)
			})
		})
	}
}

// A start may come at the moment at which is looked whether one may still come.
func TestStartWhileASessionIsLookedAt(t *testing.T) {
	for range 20 {
		bubble(t, func(h *host) {
			h.start(whole)
			h.reboot()
			time.Sleep(unclaimedAfter)
			again := h.start(whole)
			must.Eq(t, 1, h.Logins())
			must.NotNil(t, again.process())
			after(2 * claimedWithin)
			must.True(t, again.alive())
			must.Eq(t, vaulttest.Planted+only(t, h.Users()), h.file("secrets/db"))
		})
	}
}

// An agent that dies while it starts a task comes back without a handle of it, or with the one of the run before, and
// starts it under another ID. The plugin has lived on, and so has the start.
func TestAgentThatDiesInAStartGetsOneProcessAndOneToken(t *testing.T) {
	for when, lose := range map[string]func(*host, *drivers.TaskConfig){ // when it returns, the agent comes back
		"while Vault is asked": func(h *host, cfg *drivers.TaskConfig) {
			mend := h.Break(vaulttest.Fault{Match: "GET kv/slow", Hang: true})
			go func() { _, _, _ = h.Driver.StartTask(cfg) }()
			after(20 * time.Second)
			mend()
		},
		"while Vault is away, which it still is": func(h *host, cfg *drivers.TaskConfig) {
			h.Down(true)
			go func() { _, _, _ = h.Driver.StartTask(cfg) }()
			after(20 * time.Second)
			time.AfterFunc(30*time.Second, func() { h.Down(false) })
		},
		"while the wrapped driver starts it": func(h *host, cfg *drivers.TaskConfig) {
			h.inner.slow("start", 10*time.Minute)
			go func() { _, _, _ = h.Driver.StartTask(cfg) }()
			after(20 * time.Second)
			h.inner.slow("start", 0)
		},
		"before it has the answer": func(h *host, cfg *drivers.TaskConfig) {
			h.startUnanswered(cfg)
			after(20 * time.Second)
		},
		"and loses what it knew": func(h *host, cfg *drivers.TaskConfig) {
			_, _, err := h.StartTask(cfg)
			must.NoError(h, err)
			after(time.Hour)
		},
	} {
		t.Run(when, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Put("kv/slow", map[string]any{"k": "v"})
				lost := h.job(slow)
				lose(h, lost)
				r := h.start(slow)
				one := func() {
					t.Helper()
					after(time.Hour)
					must.True(t, h.find(r.cfg.ID) != nil)
					must.NotNil(t, r.process())
					must.Eq(t, 1, h.Logins())
					must.Eq(t, 1, h.Minted())
					must.Eq(t, only(t, h.Tokens()), h.file("secrets/vault_token"))
					must.Eq(t, vaulttest.Planted+only(t, h.Users()), h.file("secrets/db"))
				}
				one()
				// Whatever the agent still asks of the other run does not concern this one.
				must.NoError(t, h.StopTask(lost.ID, 0, ""))
				must.NoError(t, h.DestroyTask(lost.ID, true))
				_, err := h.WaitTask(t.Context(), lost.ID)
				must.ErrorIs(t, err, drivers.ErrTaskNotFound)
				_, err = h.InspectTask(lost.ID)
				must.ErrorIs(t, err, drivers.ErrTaskNotFound)
				must.ErrorContains(t, h.RecoverTask(&drivers.TaskHandle{Version: 1, Config: lost,
					DriverState: r.handle.DriverState}), r.cfg.ID)
				one()
				ended := r.wait()
				r.stop()
				must.NotNil(t, <-ended)
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestRunThatIsReplacedHasAsLongToEndAsAStartMayTake(t *testing.T) {
	for config, stop := range map[string]string{
		"": "stop 5s", "kill_timeout = \"2h\"\n kill_signal = \"SIGINT\"": "stop 1m0s SIGINT",
	} {
		bubble(t, func(h *host) {
			h.startUnanswered(h.job(config))
			h.inner.did()
			_, _, err := h.StartTask(h.job(config))
			must.NoError(t, err)
			must.Eq(t, []string{stop, "destroy", "start"}, h.inner.did())
		})
	}
}

func TestWhatIsAskedOfATaskThatStartsWaitsForTheStart(t *testing.T) {
	for how, fails := range map[string]error{"": nil, "which fails": errWrapped} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				cfg := h.job(whole)
				h.inner.slow("start", time.Minute)
				h.inner.failing("start", fails)
				go func() { _, _, _ = h.Driver.StartTask(cfg) }()
				after(30 * time.Second)
				began := time.Now()
				must.NoError(t, h.StopTask(cfg.ID, 0, ""))
				must.Eq(t, 30*time.Second, time.Since(began))
				must.Len(t, 0, h.machine.running())
				must.NoError(t, h.DestroyTask(cfg.ID, true))
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestTaskThatTheAgentNeverAsksAboutIsEnded(t *testing.T) {
	for how, test := range map[string]struct {
		host func(*host, *drivers.TaskConfig)
		wait time.Duration
	}{
		"": {func(*host, *drivers.TaskConfig) {}, claimedWithin},
		"and whose process has ended already": {func(h *host, _ *drivers.TaskConfig) {
			h.machine.exit(1, &drivers.ExitResult{})
		}, claimedWithin},
		"and whose end fails at first": {func(h *host, _ *drivers.TaskConfig) {
			h.inner.failing("stop", errWrapped)
			time.AfterFunc(claimedWithin+30*time.Second, func() { h.inner.failing("stop", nil) })
		}, claimedWithin + unclaimedAfter},
		"whose allocation goes": {func(h *host, cfg *drivers.TaskConfig) { must.NoError(h, os.RemoveAll(cfg.AllocDir)) },
			unclaimedAfter},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.config.Linger = time.Hour
				must.NoError(t, h.Configure(h.config))
				cfg := h.elsewhere(whole)
				h.startUnanswered(cfg)
				test.host(h, cfg)
				after(test.wait - time.Second)
				must.Len(t, 1, h.Users())
				must.True(t, h.find(cfg.ID) != nil)
				after(time.Second + stopLinger)
				must.Len(t, 0, h.machine.running())
				must.True(t, h.find(cfg.ID) == nil)
				after(2 * time.Hour)
				h.nothingLeft()
			})
		})
	}
}
