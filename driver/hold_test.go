package driver

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// forOthers is the config of an init task: the main task of its group reads alloc/db.
var forOthers = asApp + templateHCL("alloc/db", creds, "") + templateHCL("secrets/own", creds, "")

// given is how long what is held outlives the last task of the allocation.
const given = unneededAfter + lookEvery

// shared is a file that all tasks of the allocation see, empty when there is none.
func (h *host) shared(name string) string { return h.file("../alloc/" + name) }

// socket makes the socket of the task API of a task, as the agent does before the task starts.
func (h *host) socket(task string) (remove func()) {
	path := filepath.Join(h.alloc, task, "secrets", "api.sock")
	must.NoError(h, os.MkdirAll(filepath.Dir(path), 0o755))
	must.NoError(h, unix.Mknod(path, unix.S_IFSOCK|0o600, 0))
	return func() { must.NoError(h, os.Remove(path)) }
}

// main starts a process of another task of the allocation, which another driver serves.
func (h *host) main() (end func()) {
	h.machine.mu.Lock()
	defer h.machine.mu.Unlock()
	h.machine.pids++
	pid := h.machine.pids
	h.machine.procs[pid] = &taskProcess{pid: pid, alloc: "alloc-1", ended: make(chan struct{})}
	return func() { h.machine.exit(pid, &drivers.ExitResult{}) }
}

// initialized starts an init task with that config, which ends well at once.
func (h *host) initialized(config string) *run {
	h.Helper()
	r := h.start(config)
	all := h.machine.running()
	h.machine.exit(all[len(all)-1].pid, &drivers.ExitResult{})
	after(0)
	must.NoError(h, h.DestroyTask(r.cfg.ID, true))
	r.did()
	return r
}

func TestWhatAnInitTaskLeavesForOthersStaysAsLongAsOneRuns(t *testing.T) {
	for what, runs := range map[string]func(*host) func(){
		"Nomad has the init task, which has ended": func(h *host) func() { return h.socket("web") },
		"Nomad has another task":                   func(h *host) func() { return h.socket("main") },
		"a process of another task runs":           (*host).main,
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(h *host) {
				end := runs(h)
				h.initialized(forOthers)
				user := only(t, h.Users())
				must.Eq(t, "", h.file("secrets/own"), must.Sprint("nobody else reads it"))
				after(10 * time.Hour)
				must.Eq(t, user, only(t, h.Users()), must.Sprint("its lease is renewed"))
				must.Eq(t, user, h.shared("db"))
				must.Eq(t, 1, h.Logins())
				end()
				after(unneededAfter - time.Second)
				must.Len(t, 1, h.Users())
				after(given)
				h.nothingLeft()
			})
		})
	}
}

func TestOnlyATaskThatEndedWellAndSharesIsHeld(t *testing.T) {
	for what, test := range map[string]struct {
		config string
		end    func(*run)
		stays  time.Duration
	}{
		"it shares nothing": {asApp + templateHCL("secrets/db", creds, ""), func(r *run) { r.exit(0) }, time.Minute},
		"it failed":         {forOthers, func(r *run) { r.exit(1) }, time.Minute},
		"it was killed": {forOthers, func(r *run) {
			r.machine.exit(r.process().pid, &drivers.ExitResult{Signal: 9})
		}, time.Minute},
		"it was asked to end": {forOthers, (*run).stop, stopLinger},
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(h *host) {
				end := h.socket("web")
				r := h.start(test.config)
				test.end(r)
				after(test.stays - time.Second)
				must.Len(t, 1, h.Users())
				after(time.Second)
				end()
				h.nothingLeft()
			})
		})
	}
}

// The main task's image is pulled, and Nomad has no socket for the task API.
func TestWhatIsHeldWaitsForTheFirstTaskThatNeedsIt(t *testing.T) {
	for what, comes := range map[string]bool{"which comes": true, "which never comes": false} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.initialized(forOthers)
				after(claimedWithin - time.Minute)
				must.Len(t, 1, h.Users())
				end := func() {}
				if comes {
					end = h.main()
					after(time.Hour)
					must.Len(t, 1, h.Users())
				}
				end()
				after(map[bool]time.Duration{true: given, false: time.Minute + lookEvery}[comes])
				h.nothingLeft()
			})
		})
	}
}

// A poststop task comes after the others, and the agent is restarted, or the plugin: a moment without a task is not the
// end.
func TestWhatIsHeldOutlivesAMomentWithoutATask(t *testing.T) {
	bubble(t, func(h *host) {
		end := h.socket("main")
		h.initialized(forOthers)
		for _, task := range []string{"sidecar", "poststop"} {
			after(time.Hour)
			end()
			after(unneededAfter - 2*lookEvery)
			end = h.socket(task)
		}
		after(time.Hour)
		must.Len(t, 1, h.Users())
		end()
		after(given)
		h.nothingLeft()
	})
}

func TestWhatIsHeldGoesWithTheDirectoryOfTheAllocation(t *testing.T) {
	bubble(t, func(h *host) {
		cfg := h.elsewhere(forOthers)
		_, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		h.machine.exit(1, &drivers.ExitResult{})
		after(0)
		must.NoError(t, h.DestroyTask(cfg.ID, true))
		must.NoError(t, os.RemoveAll(cfg.AllocDir))
		after(2 * lookEvery)
		h.nothingLeft()
	})
}

// held are ways of a run that is held: with the plugin process that served it, and with the one after that.
var held = map[string]func(*host){"": func(*host) {}, " after a crash of the plugin": (*host).reboot}

func TestWhatIsHeldIsRenderedAnew(t *testing.T) {
	for how, then := range held {
		t.Run("then"+how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				end := h.socket("web")
				r := h.initialized(forOthers + templateHCL("alloc/color", kv, onSignal) +
					templateHCL("alloc/data/color", kv, onNoop))
				then(h)
				after(time.Hour)
				h.events()
				h.write("blue")
				after(noticed)
				must.Eq(t, "blue", h.shared("color"))
				must.Eq(t, "blue", h.shared("data/color"))
				must.Eq(t, []string{"Secrets changed: alloc/color, alloc/data/color; the task has ended"}, h.events())
				must.SliceEmpty(t, r.did())
				must.Eq(t, 1, h.Logins())
				end()
				after(given)
				must.NoError(t, os.Remove(filepath.Join(h.alloc, "alloc/data")))
				h.nothingLeft()
			})
		})
	}
}

// Nobody knows who still uses what was replaced: it is left to end by itself.
func TestWhatIsHeldIsReplacedBeforeItsLeaseEnds(t *testing.T) {
	for how, then := range held {
		t.Run("then"+how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
				h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, MaxTTL: 2 * time.Hour}
				end := h.socket("web")
				h.initialized(forOthers)
				then(h)
				first := only(t, h.Users())
				after(2*time.Hour - time.Minute)
				must.Len(t, 2, h.Users())
				must.NotEq(t, first, h.shared("db"))
				must.SliceContains(t, h.Users(), h.shared("db"))
				for range 10 {
					after(time.Hour)
					must.SliceContains(t, h.Users(), h.shared("db"))
				}
				end()
				after(given)
				h.nothingLeft()
			})
		})
	}
}

func TestRunOfATaskThatIsHeldAdoptsWhatIsThere(t *testing.T) {
	for how, then := range held {
		t.Run("then"+how, func(t *testing.T) {
			bubble(t, func(h *host) {
				end := h.socket("web")
				h.initialized(forOthers)
				user := only(t, h.Users())
				after(time.Hour)
				then(h)
				again := h.start(forOthers)
				must.Eq(t, user, only(t, h.Users()))
				must.Eq(t, user, h.file("secrets/own"))
				must.Eq(t, 1, h.Logins())
				after(3 * time.Hour)
				must.True(t, again.alive())
				again.stop()
				end()
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

// The agent asks for a dead task at each of its starts.
func TestWhatIsHeldIsNotATaskToRecover(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		end := h.socket("web")
		r := h.initialized(forOthers + templateHCL("alloc/color", kv, ""))
		h.reboot()
		must.ErrorContains(t, r.RecoverTask(r.stored()), "it has ended")
		must.SliceEmpty(t, r.did())
		h.write("blue")
		after(noticed)
		must.Eq(t, "blue", h.shared("color"))
		end()
		after(given)
		h.nothingLeft()
	})
}

func TestStatusTellsWhatIsHeld(t *testing.T) {
	bubble(t, func(h *host) {
		end := h.socket("web")
		h.initialized(forOthers)
		after(time.Hour)
		one := only(t, h.Status().Parked)
		must.True(t, one.Held)
		must.True(t, one.Until.IsZero())
		must.Len(t, 1, one.Sessions)
		end()
		after(given)
		must.SliceEmpty(t, h.Status().Parked)
		h.nothingLeft()
	})
}
