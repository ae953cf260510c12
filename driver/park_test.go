package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestStopRevokesAfterTwoSeconds(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		ended := r.wait()
		must.NoError(t, h.StopTask(r.cfg.ID, 7*time.Second, "SIGTERM"))
		must.Eq(t, []string{"stop 7s SIGTERM"}, r.did())
		must.Eq(t, &drivers.ExitResult{ExitCode: 143, Signal: 15}, <-ended)
		after(stopLinger - time.Second)
		must.Len(t, 1, h.Users())
		must.NotEq(t, "", h.file("secrets/db"))
		after(time.Second)
		h.nothingLeft()
		must.NoError(t, h.DestroyTask(r.cfg.ID, false))
		must.NoError(t, h.StopTask(r.cfg.ID, 0, ""), must.Sprint("an unknown task has been stopped"))
		must.MapEmpty(t, h.tasks)
		must.MapEmpty(t, h.parking.parked)
	})
}

// TestExitCodeIsKnownWhereTheExecutorEndsFirst: the executor of Nomad's exec may be gone before it has told WaitTask.
func TestExitCodeIsKnownWhereTheExecutorEndsFirst(t *testing.T) {
	bubble(t, func(h *host) {
		h.inner.lost = errors.New("executor: error waiting on process: EOF")
		r := h.start(whole)
		ended := r.wait()
		r.stop()
		must.Eq(t, &drivers.ExitResult{ExitCode: 143, Signal: 15}, <-ended)
	})
}

// TestStopOfATaskThatWasTakenOverRevokesAfterTenSeconds: its next start, where it is one of nomad alloc restart,
// takes Nomad longer.
func TestStopOfATaskThatWasTakenOverRevokesAfterTenSeconds(t *testing.T) {
	for from, end := range map[string]func(*host){"an agent": func(*host) {}, "a plugin": (*host).reboot} {
		t.Run("from "+from, func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(whole)
				end(h)
				r.recovered()
				r.stop()
				after(olderLinger - time.Second)
				again := h.start(whole)
				must.Eq(t, 1, h.Logins())
				must.Eq(t, 1, h.Minted())
				again.stop()
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestEndWithoutAStopRevokesAfterTheLinger(t *testing.T) {
	for _, linger := range []time.Duration{0, time.Second, time.Minute} {
		t.Run(linger.String(), func(t *testing.T) {
			bubble(t, func(h *host) {
				h.config.Linger = linger
				must.NoError(t, h.Configure(h.config))
				r := h.start(whole)
				r.exit(1)
				if linger > 0 {
					after(linger - time.Nanosecond)
					must.Len(t, 1, h.Users())
					after(time.Nanosecond)
				}
				h.nothingLeft()
			})
		})
	}
}

func TestStopCanBeAskedAtAnyTime(t *testing.T) {
	scriptly := severalTemplates(strings.ReplaceAll(onScript, "args =", "timeout = \"30m\"\n args ="))
	for name, test := range map[string]struct {
		config string
		busy   func(*host)
		within time.Duration
		starts int // of processes altogether
	}{
		"while nothing happens":        {config: severalTemplates(onSignal), within: 0},
		"while the splay runs":         {config: strings.ReplaceAll(severalTemplates(""), `"0s"`, `"1h"`), within: 0},
		"while changes are waited for": {config: severalTemplates("wait {\nmin = \"10m\"\n}"), within: 0},
		"while it is rendered": {config: asApp + templateHCL("local/0",
			kv+`{{ with secret "secret/data/web" }}{{ if eq .Data.data.k "blue" }}{{ with secret "kv/more" }}{{ end }}{{ end }}{{ end }}`, ""), busy: func(h *host) { h.Break(vaulttest.Fault{Match: "GET kv/more", Hang: true}) }, within: 0},
		"while Vault is away": {config: severalTemplates(""), busy: func(h *host) { h.Down(true) }, within: 0},
		"while a script runs": {config: scriptly, busy: func(h *host) { h.inner.slow("exec", 30*time.Minute) },
			within: 0},
		"while the old process ends": {config: severalTemplates(""), busy: func(h *host) { h.inner.slow("stop", stopGrace) },
			within: time.Minute},
		"while the new process starts": {config: severalTemplates(""),
			busy: func(h *host) { h.inner.slow("start", time.Minute) }, within: time.Minute, starts: 2},
		"while the old one is forgotten": {config: severalTemplates(""),
			busy: func(h *host) { h.inner.slow("destroy", time.Minute) }, within: time.Minute, starts: 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(test.config)
				ended := r.wait()
				if test.busy != nil {
					test.busy(h)
				}
				h.write("blue")
				after(noticed)
				began := time.Now()
				must.NoError(t, h.StopTask(r.cfg.ID, 5*time.Second, "SIGTERM"))
				must.Between(t, 0, time.Since(began), test.within)
				must.Eq(t, 143, (<-ended).ExitCode)
				must.Eq(t, max(1, test.starts), h.machine.pids)
				must.Len(t, 0, h.machine.running())
				h.Down(false)
				must.NoError(t, h.DestroyTask(r.cfg.ID, true))
				after(time.Hour)
				h.nothingLeft()
			})
		})
	}
}

func TestStopThatFailsLeavesTheTaskAsItWas(t *testing.T) {
	for name, more := range map[string]string{"running": onSignal, "in a script": strings.ReplaceAll(onScript, "args =",
		"timeout = \"30m\"\n args =")} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(severalTemplates(more))
				h.inner.failing("stop", errWrapped)
				h.inner.slow("exec", time.Minute)
				h.write("blue")
				after(noticed)
				must.True(t, h.StopTask(r.cfg.ID, 0, "") == errWrapped)
				after(stopTries / 2)
				must.Eq(t, "blue", h.file("local/0"))
				must.Len(t, 1, h.events(), must.Sprint("what was begun is ended"))
				h.write("red")
				after(noticed)
				must.Eq(t, "red", h.file("local/0"), must.Sprint("secrets are kept current"))
				h.inner.failing("stop", nil)
				r.stop()
				must.False(t, r.alive())
			})
		})
	}
}

func TestDestroyOfARunningTaskNeedsForce(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		ended := r.wait()
		must.ErrorContains(t, h.DestroyTask(r.cfg.ID, false), "it is running")
		must.True(t, r.alive())
		must.NoError(t, h.DestroyTask(r.cfg.ID, true))
		must.NotNil(t, <-ended)
		must.False(t, r.alive())
		again := h.start(whole) // at once: what was left is found
		must.Eq(t, 1, h.Logins())
		again.stop()
		after(stopLinger)
		h.nothingLeft()
	})
}

func TestStopReturnsWhenTheNextRunFindsWhatIsLeft(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		task, _ := h.task(r.cfg.ID)
		stopped := make(chan error, 1)
		task.saving.Lock() // holds up the end of the run
		go func() { stopped <- h.StopTask(r.cfg.ID, 0, "") }()
		for len(h.machine.running()) > 0 {
			runtime.Gosched()
		}
		for range 10000 { // a stop that did not wait would be over by now
			runtime.Gosched()
		}
		must.Zero(t, len(stopped))
		task.saving.Unlock()
		must.NoError(t, <-stopped)
		h.start(whole)
		must.Eq(t, 1, h.Logins())
	})
}

func TestCrashLoopKeepsTheSession(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		config := whole + templateHCL("local/color", kv, "")
		r := h.start(config)
		token, user, password := only(t, h.Tokens()), only(t, h.Users()), h.file("secrets/db")
		for i := range 20 {
			h.write(fmt.Sprint("color ", i))
			r.exit(1)
			after(time.Second)
			must.NoError(t, h.DestroyTask(r.cfg.ID, true))
			r = h.start(config)
			must.Eq(t, fmt.Sprint("color ", i), h.file("local/color"), must.Sprint("what has no lease is read anew"))
		}
		after(3 * time.Hour)
		must.True(t, r.alive())
		must.Eq(t, token, only(t, h.Tokens()))
		must.Eq(t, user, only(t, h.Users()))
		must.Eq(t, password, h.file("secrets/db"))
		must.Eq(t, 1, h.Logins())
		must.Eq(t, 1, h.Minted())
		must.SliceEmpty(t, r.did())
		r.stop()
		after(stopLinger)
		h.nothingLeft()
	})
}

func TestRestartByNomadKeepsTheSession(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		user := only(t, h.Users())
		r.stop()
		again := h.start(whole)
		after(time.Hour)
		must.Eq(t, user, only(t, h.Users()))
		must.Eq(t, 1, h.Logins())
		must.True(t, again.alive())
	})
}

func TestStartDuringAnOutageUsesTheSessionThatIsThere(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(whole + templateHCL("local/color", kv, ""))
		h.Down(true)
		r.exit(1)
		after(time.Second)
		must.NoError(t, h.DestroyTask(r.cfg.ID, true))
		h.start(whole + templateHCL("local/color", kv, ""))
		must.Eq(t, "green", h.file("local/color"))
	})
}

// The moment at which a session expires is also one at which the next run may come. Either that has all of the old
// one, or all is new; never are its files removed, or its token revoked, by the end of the run before.
func TestStartAtTheMomentTheLingerEnds(t *testing.T) {
	for how, early := range map[string]time.Duration{"before": time.Nanosecond, "then": 0,
		"afterwards": -time.Nanosecond} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(whole)
				run, _ := h.task(r.cfg.ID)
				r.exit(1)
				synctest.Wait()
				must.NoError(t, h.DestroyTask(r.cfg.ID, true))
				h.parking.mu.Lock()
				old := h.parking.parked["alloc-1/web"]
				h.parking.mu.Unlock()
				if early == 0 {
					run.saving.Lock() // holds up the removal of its files
				}
				time.Sleep(h.config.Linger - early)
				started := make(chan error, 1)
				go func() {
					_, _, err := h.StartTask(h.job(whole))
					started <- err
				}()
				if early == 0 {
					must.False(t, old.timer.Stop(), must.Sprint("it has expired"))
					for range 10000 { // a start that did not wait would be over by now
						runtime.Gosched()
					}
					run.saving.Unlock()
				}
				must.NoError(t, <-started)
				after(time.Minute)
				must.Eq(t, vaulttest.Planted+only(t, h.Users()), h.file("secrets/db"))
				must.Eq(t, only(t, h.Tokens()), h.file("secrets/vault_token"))
				must.Eq(t, map[bool]int{true: 1, false: 2}[how == "before"], h.Logins())
				must.Eq(t, []string{state.FileOf("alloc-1/web")}, h.records())
			})
		})
	}
}

func TestWhatBecomesOfALingeringSessionIsSaved(t *testing.T) {
	bubble(t, func(h *host) {
		h.config.Linger = 2 * time.Hour
		must.NoError(t, h.Configure(h.config))
		r := h.start(whole)
		r.exit(1)
		h.RevokeTokens()
		after(time.Hour)
		must.Eq(t, 2, h.Logins())
		h.reboot()
		h.start(whole)
		must.Eq(t, 2, h.Logins())
		must.Eq(t, only(t, h.Tokens()), h.file("secrets/vault_token"))
	})
}

func TestRunThatWasSucceededSavesNothingMore(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		late, _ := h.task(r.cfg.ID)
		r.stop()
		after(stopLinger)
		late.save()
		h.nothingLeft()
	})
}

func TestTimersOfAPluginThatHasEndedDoNothing(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		r.exit(1)
		synctest.Wait()
		h.crash()
		after(2 * h.config.Linger)
		must.NotEq(t, "", h.file("secrets/db"))
		must.Len(t, 1, h.Users())
		h.boot()
		after(unclaimedAfter)
		h.nothingLeft()
	})
}

func TestAnotherLoginIsNotServedByTheOldSession(t *testing.T) {
	for name, vault := range map[string]string{
		"role":          "role = \"other\"",
		"namespace":     "role = \"app\"\n namespace = \"team\"",
		"identity":      "role = \"app\"\n identity = \"second\"",
		"identity file": "role = \"app\"\n identity_file = \"local/my.jwt\"",
		"cluster":       "role = \"app\"\n cluster = \"west\"",
	} {
		for how, reboot := range map[string]bool{"": false, " after a crash of the plugin": true} {
			t.Run(name+how, func(t *testing.T) {
				bubble(t, func(h *host) {
					west := h.Cluster()
					west.Name = "west"
					h.config.Clusters = append(h.config.Clusters, west)
					must.NoError(t, h.Configure(h.config))
					h.SetRole("other", vaulttest.Role{TTL: time.Hour})
					h.put("web/secrets/nomad_second.jwt", h.JWT)
					h.put("web/local/my.jwt", h.JWT)
					r := h.start(whole)
					token, user := only(t, h.Tokens()), only(t, h.Users())
					r.exit(1)
					after(time.Second)
					if reboot {
						h.reboot()
					}
					must.NoError(t, h.DestroyTask(r.cfg.ID, true))
					again := h.start(strings.Replace(whole, "role = \"app\"", vault, 1))
					after(time.Second)
					must.NotEq(t, token, only(t, h.Tokens()))
					must.NotEq(t, user, only(t, h.Users()))
					must.Eq(t, 2, h.Logins())
					again.stop()
					after(stopLinger)
					must.NoError(t, os.Remove(filepath.Join(h.alloc, "web/local/my.jwt")))
					h.nothingLeft()
				})
			})
		}
	}
}

func TestRevocationThatVaultDoesNotAnswerIsTriedAgain(t *testing.T) {
	for how, reboot := range map[string]bool{"": false, "and survives a crash of the plugin": true} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(whole)
				h.Down(true)
				r.stop()
				after(time.Minute)
				must.Len(t, 1, h.Users())
				must.Eq(t, "", h.file("secrets/db"), must.Sprint("files do not wait for Vault"))
				must.Eq(t, 1, h.logged("cannot revoke yet"))
				if reboot {
					h.reboot()
					after(time.Minute)
				}
				h.Down(false)
				after(time.Minute)
				h.nothingLeft()
			})
		})
	}
}

func TestRevocationIsGivenUpWhenEverythingHasEndedByItself(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: time.Hour})
		r := h.start(whole)
		h.Down(true)
		r.stop()
		after(59 * time.Minute)
		must.Len(t, 1, h.records())
		after(5 * time.Minute)
		must.Len(t, 0, h.records())
		must.Eq(t, 1, h.logged("revoked at last, or ended by its TTL"))
	})
}

func TestRunWhileTheOneBeforeIsStillBeingRevoked(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(whole)
		old := only(t, h.Users())
		mend := h.Break(vaulttest.Fault{Match: "PUT auth/token/revoke-self", Status: 503})
		r.stop()
		after(time.Minute)
		again := h.start(whole)
		must.Len(t, 2, h.Users())
		mend()
		after(time.Minute)
		user := only(t, h.Users())
		must.NotEq(t, old, user)
		must.Eq(t, vaulttest.Planted+user, h.file("secrets/db"))
		h.reboot()
		again.recovered()
		after(time.Hour)
		must.Eq(t, user, only(t, h.Users()), must.Sprint("the end of the old one did not take the state of the new one"))
		must.Eq(t, []string{"recover"}, again.did())
	})
}

// west adds another Vault to the configuration.
func (h *host) west() *vaulttest.Server {
	other := vaulttest.New(h.T)
	other.JWT, other.Creds["app"] = h.JWT, vaulttest.Creds{TTL: time.Hour}
	cluster := other.Cluster()
	cluster.Name, cluster.Address = "west", "http://127.0.0.1:8201"
	h.config.Clusters = append(h.config.Clusters, cluster)
	must.NoError(h, h.Configure(h.config))
	return other
}

// A Vault that hangs delays no revocation but its own.
func TestRevocationDoesNotWaitForAnotherCluster(t *testing.T) {
	bubble(t, func(h *host) {
		west := h.west()
		inWest := "vault {\n name = \"west\"\n role = \"app\"\n cluster = \"west\"\n}\n" +
			templateHCL("secrets/west", creds, "vault = \"west\"")
		all := h.crowd(180, asApp+templateHCL("secrets/db", creds, ""))
		for i, cfg := range all {
			switch {
			case i%18 == 0:
				must.NoError(t, encode(t, cfg, asApp+templateHCL("secrets/db", creds, "")+inWest))
			case i%9 == 0:
				must.NoError(t, encode(t, cfg, inWest))
			}
		}
		h.startAll(all)
		must.Len(t, 20, west.Tokens())
		must.Len(t, 170, h.Tokens())
		mend := h.Break(vaulttest.Fault{Hang: true})
		for _, cfg := range all {
			must.NoError(t, h.StopTask(cfg.ID, 0, ""))
		}
		after(stopLinger + 100*time.Millisecond)
		must.SliceEmpty(t, west.Tokens())
		must.SliceEmpty(t, west.Users())
		must.Len(t, 170, h.records())
		mend()
		after(5 * time.Minute)
		h.nothingLeft()
	})
}

func TestManyStopsAtOnceAllEnd(t *testing.T) {
	bubble(t, func(h *host) {
		const tasks = 200
		h.Break(vaulttest.Fault{Match: "PUT auth/token/revoke-self", Slow: time.Second})
		var all sync.WaitGroup
		for i := range tasks {
			cfg := h.job(asApp + templateHCL("alloc/"+fmt.Sprint(i), creds, ""))
			cfg.AllocID = fmt.Sprint("alloc-", i)
			_, _, err := h.StartTask(cfg)
			must.NoError(t, err)
			all.Go(func() { must.NoError(t, h.StopTask(cfg.ID, 0, "")) })
		}
		all.Wait()
		after(stopLinger + 15*time.Second) // a second each, several at a time
		h.nothingLeft()
		must.Eq(t, tasks, h.Calls("PUT auth/token/revoke-self"))
	})
}

// Vault may be making something for a task at the moment at which that ends.
func TestTaskThatEndsWhileVaultMakesSomethingLeavesNothing(t *testing.T) {
	for what, test := range map[string]struct {
		slow vaulttest.Fault
		ask  func(*run)
	}{
		"a token": {vaulttest.Fault{Match: "PUT auth/jwt-nomad/login", Slow: 4 * time.Second}, func(r *run) {
			running, _ := r.task(r.cfg.ID)
			_, err := running.credentials.Snapshot(false).Token(running.ctx, "other")
			must.ErrorIs(r, err, session.ErrClosed)
		}},
		"a database user": {vaulttest.Fault{Match: "GET database/", Slow: 4 * time.Second, Forget: true}, func(r *run) {
			running, _ := r.task(r.cfg.ID)
			_, _ = running.credentials.Snapshot(false).Source("default", 0).Read(running.ctx, "database/creds/other", nil)
		}},
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Creds["other"] = vaulttest.Creds{TTL: time.Hour}
				r := h.start(whole + "vault {\n name = \"other\"\n role = \"app\"\n}\n")
				h.Break(test.slow)
				go test.ask(r)
				after(time.Second)
				r.stop()
				after(stopLinger + 5*time.Second)
				h.nothingLeft()
			})
		})
	}
}

// The agent kills a plugin process that does not end in time.
func TestEndOfAPluginWaitsForWhatVaultIsMaking(t *testing.T) {
	for what, test := range map[string]struct {
		fault vaulttest.Fault
		takes time.Duration
	}{
		"that takes a moment": {vaulttest.Fault{Match: "GET database/", Slow: 1200 * time.Millisecond, Forget: true},
			200 * time.Millisecond},
		"that takes too long": {vaulttest.Fault{Match: "GET database/", Hang: true}, endWithin},
		"that is nothing":     {vaulttest.Fault{Match: "GET kv/", Hang: true}, 0},
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Break(test.fault)
				go func() { _, _, _ = h.Driver.StartTask(h.job(slow)) }()
				after(time.Second)
				h.kill()
				began := time.Now()
				h.End()
				must.Eq(t, test.takes, time.Since(began))
			})
		})
	}
}
