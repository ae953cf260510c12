package driver

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/logpipe/logpipetest"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestRecoverAdopts(t *testing.T) {
	for how, test := range map[string]struct{ before, after func(*host) }{
		"":                    {},
		"while Vault is down": {func(h *host) { h.Down(true) }, func(h *host) { after(10 * time.Minute); h.Down(false) }},
		"after an hour":       {func(*host) { after(40 * time.Minute) }, nil},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(whole + templateHCL("local/color", kv, onSignal))
				process, token, user := r.process(), only(t, h.Tokens()), only(t, h.Users())
				h.crash()
				if test.before != nil {
					test.before(h)
				}
				h.boot()
				r.recovered()
				must.Eq(t, []string{"recover"}, r.did())
				if test.after != nil {
					test.after(h)
				}
				after(4 * time.Hour)
				must.SliceEmpty(t, r.did())
				must.SliceNotContains(t, h.events(), "Secrets changed", must.Sprint("no action"))
				must.True(t, process == r.process())
				must.Eq(t, token, only(t, h.Tokens()))
				must.Eq(t, user, only(t, h.Users()))
				must.Eq(t, 1, h.Logins())
				must.Eq(t, 1, h.Minted())

				h.write("blue")
				after(noticed)
				must.Eq(t, []string{"signal SIGHUP"}, r.did())
				must.NoError(t, h.SignalTask(r.cfg.ID, "SIGUSR1"))
				ended := r.wait()
				r.stop()
				must.Eq(t, 143, (<-ended).ExitCode)
				after(olderLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestRecoverOfASessionThatHasEndedIsOneRotationAndOneAction(t *testing.T) {
	for how, end := range map[string]func(*host){
		"by its TTL":         func(*host) { after(2 * time.Hour) },
		"by an operator":     func(h *host) { h.RevokeTokens() },
		"the leases only":    func(h *host) { h.RevokeLeases() },
		"and Vault was away": func(h *host) { h.RevokeTokens(); h.Down(true) },
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(asApp + templateHCL("secrets/env", "USER="+creds, "env = true"))
				process := r.process()
				h.crash()
				end(h)
				h.boot()
				r.recovered()
				after(10 * time.Second)
				if how == "and Vault was away" {
					after(10 * time.Minute)
					must.True(t, process == r.process())
					h.Down(false)
				}
				after(2 * time.Minute)
				must.True(t, process != r.process())
				must.Len(t, 1, slices.DeleteFunc(h.events(), func(e string) bool {
					return !strings.HasPrefix(e,
						"Secrets changed")
				}))
				must.Eq(t, only(t, h.Users()), r.process().env["USER"])
				must.Eq(t, 2, h.Minted())
				r.did()
				after(2 * time.Hour)
				must.SliceEmpty(t, r.did())
			})
		})
	}
}

func TestRecoverOfAKnownTaskIsNothing(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		r.recovered()
		must.SliceEmpty(t, r.did())
		must.True(t, r.alive())
	})
}

func TestRecoverFindsTheProcessThatWeHaveRestarted(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + templateHCL("secrets/env", "COLOR="+kv, "env = true"))
		h.write("blue")
		after(noticed)
		process := r.process()
		h.reboot()
		r.recovered()
		after(time.Hour)
		must.Eq(t, []string{"recover"}, r.did())
		must.True(t, process == r.process())
		must.Eq(t, "blue", process.env["COLOR"])
	})
}

func TestActionThatWasPendingHappensAfterACrash(t *testing.T) {
	withSplay(t, asApp+templateHCL("secrets/env", "COLOR="+kv, "env = true"), func(r *run) (over bool) {
		r.write("blue")
		after(6 * time.Second)
		must.Eq(t, "COLOR=blue", r.file("secrets/env"))
		if len(r.did()) > 0 {
			return true
		}
		r.reboot()
		r.recovered()
		after(time.Hour)
		must.Eq(t, []string{"recover", "stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "blue", r.process().env["COLOR"])
		must.Eq(t, []string{"Secrets changed: secrets/env; restarted by vault-fake"}, r.events())
		return false
	})
}

// What the scheduler has got from Vault since the last action is in no record that only actions write.
func TestCredentialsThatNobodyWasToldOfAreNotLostInACrash(t *testing.T) {
	for until, more := range map[string]string{"the action": "", "they are rendered": "wait {\nmin = \"5m\"\n}"} {
		t.Run("before "+until, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Fixed: true}) // at 85 % another login, and a lease with it
				r := h.start(strings.ReplaceAll(asApp+templateHCL("secrets/db", creds, more), `"0s"`, `"1000h"`))
				for h.Minted() == 1 {
					after(time.Second)
				}
				after(time.Second)
				must.SliceEmpty(t, r.did())
				must.Len(t, 2, h.Tokens())
				h.reboot()
				r.recovered()
				must.Eq(t, 2, h.Logins())
				must.Eq(t, 2, h.Minted())
				r.stop()
				after(olderLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestRecoverWithoutStateLogsInAgainAndActsOnce(t *testing.T) {
	garbage := func(data string) func(*host) {
		return func(h *host) {
			must.NoError(h, os.WriteFile(filepath.Join(h.config.StateDir, state.FileOf("alloc-1/web")), []byte(data), 0o600))
		}
	}
	for how, test := range map[string]struct {
		lose func(*host)
		down bool
	}{
		"gone": {lose: func(h *host) {
			must.NoError(h, os.Remove(filepath.Join(h.config.StateDir, state.FileOf("alloc-1/web"))))
		}},
		"gone and Vault is down": {lose: func(h *host) {
			must.NoError(h, os.Remove(filepath.Join(h.config.StateDir, state.FileOf("alloc-1/web"))))
		}, down: true},
		"garbage":                      {lose: garbage("\x00\xff{")},
		"empty":                        {lose: garbage("")},
		"of a newer plugin":            {lose: garbage(`{"Version":2,"Key":"alloc-1/web"}`)},
		"a record without its session": {lose: garbage(`{"Version":1,"Key":"alloc-1/web","Sessions":{"default":{"Login":{"Cluster":"default","Role":"app","Identity":"vault"},"State":"e30="}}}`)},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(asApp + templateHCL("secrets/db", creds, "env = false"))
				process := r.process()
				h.crash()
				test.lose(h)
				h.Down(test.down)
				h.boot()
				r.recovered()
				if test.down {
					after(10 * time.Minute)
					must.Eq(t, []string{"recover"}, r.did())
					must.True(t, process == r.process(), must.Sprint("the process is not touched"))
					h.Down(false)
					after(2 * time.Minute)
					must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
				} else {
					must.Eq(t, []string{"recover", "stop 5s", "destroy", "start"}, r.did())
				}
				must.Eq(t, 2, h.Logins())
				must.Eq(t, 2, h.Minted())
				must.SliceContains(t, h.Users(), h.file("secrets/db"))
				after(time.Hour)
				must.SliceEmpty(t, r.did())
			})
		})
	}
}

func TestRecoverWaitsForNoLogCollectorAndTellsTheNextOne(t *testing.T) {
	bubble(t, func(h *host) {
		h.stderr = filepath.Join(h.alloc, "stderr")
		must.NoError(t, unix.Mkfifo(h.stderr, 0o600))
		collector := logpipetest.Collect(t, h.stderr)
		h.write("green")
		r := h.start(severalTemplates(onSignal))
		must.StrContains(t, collector.Read(), "[vault-fake] secrets ready")
		h.crash()
		collector.Close()
		h.boot()
		r.recovered()
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"recover", "signal SIGHUP"}, r.did())
		collector = logpipetest.Collect(t, h.stderr) // the agent starts one when it gets there
		h.write("red")
		after(noticed)
		must.Eq(t, "[vault-fake] taken over after the end of the plugin before, vault \"default\" token accessor-1 with "+
			"policies [default]\n"+
			"[vault-fake] local/0 changed; sent SIGHUP\n", collector.Read())
		collector.Close()
	})
}

// A task that runs is not ended because what only a start needs has changed meanwhile.
func TestRecoverDoesNotAskWhatOnlyAStartNeeds(t *testing.T) {
	for how, test := range map[string]struct {
		change func(*host)
		says   string
	}{
		"poll intervals are limited": {change: func(h *host) {
			h.config.PollInterval, h.config.MinPollInterval = time.Hour,
				time.Hour
		}},
		"the user is denied": {change: func(h *host) { h.config.DeniedUsers = []string{"daemon"} }},
		"the cluster is taken away": {change: func(h *host) { h.config.Clusters[0].Name = "other" },
			says: `cluster "default" is unknown`},
		"the source has gone": {change: func(h *host) {
			must.NoError(h,
				os.Remove(filepath.Join(h.alloc, "web/local/x.tpl")))
		}, says: "no such file or directory"},
		"the source is wrong": {change: func(h *host) { h.put("web/local/x.tpl", "{{ none }}") },
			says: `function "none" not defined`},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				h.put("web/local/x.tpl", kv)
				cfg := h.job(asApp + "template {\n destination = \"local/x\"\n source = \"local/x.tpl\"\n poll_interval = " +
					"\"5s\"\n}")
				cfg.User = "daemon"
				handle, _, err := h.StartTask(cfg)
				must.NoError(t, err)
				r := &run{h, cfg, handle}
				process := r.process()
				h.crash()
				test.change(h)
				h.boot()
				r.recovered()
				after(time.Hour)
				must.Eq(t, []string{"recover"}, r.did())
				must.True(t, process == r.process())
				must.Eq(t, "green", h.file("local/x"))
				if test.says != "" {
					must.StrContains(t, only(t, h.events()), "Secrets not updated: ")
					must.Between(t, 10, h.logged("still: the last known good secrets stay in use: "), 12,
						must.Sprint("reminders of an hour"))
					must.Eq(t, 1, h.logged("]  the last known good secrets stay in use: "))
					must.StrContains(t, h.log.String(), test.says)
				}
			})
		})
	}
}

func TestRecoverOfATaskThatTheBuiltInDriverHasStarted(t *testing.T) {
	bubble(t, func(h *host) {
		cfg := h.job("")
		handle, _, err := h.inner.StartTask(cfg)
		must.NoError(t, err)
		must.NoError(t, handle.Config.EncodeConcreteDriverConfig(nil))
		r := &run{h, cfg, handle}
		process := r.process()
		for range 2 { // and so on, at each restart of the plugin: Nomad goes on to store the same handle
			h.reboot()
			r.recovered()
			after(time.Hour)
			must.Eq(t, []string{"recover"}, r.did())
			must.True(t, process == r.process())
			must.NoError(t, h.SignalTask(cfg.ID, "SIGUSR1"))
			r.did()
		}
		must.Zero(t, h.Logins())
		ended := r.wait()
		r.stop()
		must.Eq(t, 143, (<-ended).ExitCode)
		h.write("green")
		again := h.start(whole) // the next run has what the job says by then
		must.True(t, again.alive())
		must.Len(t, 1, h.Tokens())
	})
}

func TestRecoverOfWhatIsGoneFailsAndTheNextStartAdopts(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		user := only(t, h.Users())
		h.crash()
		h.machine.exit(r.process().pid, &drivers.ExitResult{ExitCode: 1})
		h.boot()
		must.ErrorContains(t, h.RecoverTask(r.stored()), "wrapped: no process")
		must.NoError(t, h.DestroyTask(r.cfg.ID, true), must.Sprint("the agent does so"))
		after(30 * time.Second)
		again := h.start(whole)
		after(time.Hour)
		must.Eq(t, user, only(t, h.Users()))
		must.Eq(t, 1, h.Logins())
		must.True(t, again.alive())
	})
}

func TestRecoverThatFailsHalfWayIsDestroyedInTheWrappedDriverToo(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		h.reboot()
		h.inner.failing("wait", errWrapped)
		must.True(t, h.RecoverTask(r.stored()) == errWrapped)
		must.NoError(t, h.DestroyTask(r.cfg.ID, true))
		must.Len(t, 0, h.machine.running())
		after(h.config.Linger)
		h.nothingLeft()
	})
}

func TestHandleThatIsNoneOfOursIsAnError(t *testing.T) {
	bubble(t, func(h *host) {
		must.ErrorContains(t, h.RecoverTask(nil), "the handle has no config")
		must.ErrorContains(t, h.RecoverTask(&drivers.TaskHandle{}), "the handle has no config")
		must.ErrorContains(t, h.RecoverTask(&drivers.TaskHandle{Config: h.job(""), DriverState: []byte("no msgpack")}),
			"decode task handle")
		must.ErrorContains(t, h.RecoverTask(&drivers.TaskHandle{Config: h.job("")}), "decode task handle")
	})
}

var slow = whole + templateHCL("local/slow", `{{ with secret "kv/slow" }}{{ .Data.k }}{{ end }}`, "")

func TestPluginThatEndsLeavesTheTasksAlone(t *testing.T) {
	bubble(t, func(h *host) {
		h.config.Linger = 0
		must.NoError(t, h.Configure(h.config))
		h.write("green")
		r := h.start(whole + strings.ReplaceAll(templateHCL("local/color", kv, ""), `"0s"`, `"1h"`))
		old := h.plugin
		h.write("blue")
		after(noticed)
		h.crash()
		must.Len(t, 1, h.machine.running())
		must.Len(t, 1, h.Users())
		must.NotEq(t, "", h.file("secrets/db"))
		must.ErrorIs(t, old.StopTask(r.cfg.ID, 0, ""), errPluginEnds)
		must.ErrorIs(t, old.SignalTask(r.cfg.ID, "SIGHUP"), errPluginEnds)
	})
}
