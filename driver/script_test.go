package driver

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// exits has every script end with that code.
func exits(code int) func([]string) (*drivers.ExecTaskResult, error) {
	return func([]string) (*drivers.ExecTaskResult, error) {
		return &drivers.ExecTaskResult{ExitResult: &drivers.ExitResult{ExitCode: code}}, nil
	}
}

func TestScriptThatFailsIsNotRunAgain(t *testing.T) {
	fatal := strings.ReplaceAll(onScript, "args =", "fail_on_error = true\n args =")
	for name, test := range map[string]struct {
		more, says, end string
		takes           time.Duration
	}{
		"exit code": {more: onScript, says: `change_script "/bin/tell" failed: exit code 7`},
		"late": {more: onScript, says: `change_script "/bin/tell" failed: it did not end within its timeout of 5s`,
			takes: time.Hour},
		"fatal": {more: fatal, says: `change_script "/bin/tell" failed: exit code 7`,
			end: `change_script "/bin/tell": exit code 7`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(severalTemplates(test.more))
				ended := r.wait()
				h.inner.exec = exits(7)
				h.inner.slow("exec", test.takes)
				h.write("blue")
				after(noticed)
				must.Eq(t, []string{"Secrets changed: local/0; " + test.says}, h.events())
				must.Eq(t, 1, h.logged("[WARN]  local/0 changed; "+test.says))
				must.Eq(t, test.end == "", r.alive())
				if test.end != "" {
					must.Eq(t, test.end, (<-ended).Err.Error())
					must.Len(t, 0, h.machine.running())
					return
				}
				r.did()
				after(2 * time.Hour)
				must.SliceEmpty(t, r.did())
				must.SliceEmpty(t, h.events())
			})
		})
	}
}

// The process may have changed over, or not.
func TestCredentialsOfAScriptThatFailedAreLeftToEnd(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true} // at 85 %: 49 to 53 minutes
		h.inner.exec = exits(1)
		began := time.Now()
		r := h.start(asApp + templateHCL("secrets/db", creds, onScript))
		first := only(t, h.Users())
		for h.Minted() == 1 {
			after(time.Second)
		}
		after(59*time.Minute - time.Since(began))
		must.Eq(t, []string{"exec /bin/tell web"}, r.did())
		must.SliceContains(t, h.Users(), first)
		after(2 * time.Minute)
		must.SliceNotContains(t, h.Users(), first)
		h.inner.exec = exits(0)
		for h.Minted() == 2 {
			after(time.Second)
		}
		after(render.ChangeOver + 2*time.Second)
		must.Eq(t, h.file("secrets/db"), only(t, h.Users()), must.Sprint("the next time is another"))
	})
}

func TestNextPluginKnowsOfAScriptThatFailed(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: 8 * time.Hour, Revoke: true})
		h.Creds["second"] = vaulttest.Creds{TTL: time.Hour}
		h.write("app")
		r := h.start(asApp + templateHCL("secrets/db", chosen, onScript) + templateHCL("local/1", kv, onSignal))
		first := only(t, h.Users())
		h.inner.exec = exits(1)
		h.inner.failing("signal", errWrapped)
		h.write("second")
		after(noticed)
		must.SliceContains(t, r.did(), "exec /bin/tell web")
		h.inner.failing("signal", nil)
		h.reboot()
		r.recovered()
		after(render.ChangeOver + time.Minute)
		must.Eq(t, []string{"recover", "signal SIGHUP"}, r.did())
		must.SliceContains(t, h.Users(), first)
		after(time.Hour)
		must.Eq(t, h.file("secrets/db"), only(t, h.Users()), must.Sprint("left to end"))
	})
}

func TestScriptThatTakesItsTimeHoldsUpNoSignal(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(strings.ReplaceAll(onScript, "args =", "timeout = \"2h\"\n args =")))
		h.inner.slow("exec", time.Hour)
		h.write("blue")
		after(noticed)
		began := time.Now()
		must.NoError(t, h.SignalTask(r.cfg.ID, "SIGUSR1"))
		must.Zero(t, time.Since(began))
		h.write("red")
		after(2 * time.Hour)
		must.Eq(t, []string{"exec /bin/tell web", "signal SIGUSR1", "exec /bin/tell web"}, r.did())
		must.Eq(t, "red", h.file("local/0"))
	})
}

// A process that was not told uses what it had.
func TestProcessThatCannotBeReachedIsToldLater(t *testing.T) {
	for call, test := range map[string]struct{ more, did, fails, done string }{
		"signal": {onSignal, "signal SIGHUP", "send SIGHUP failed", "sent SIGHUP"},
		"exec":   {onScript, "exec /bin/tell web", `change_script "/bin/tell" failed`, "ran /bin/tell"},
	} {
		t.Run(call, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
				h.Creds["second"] = vaulttest.Creds{TTL: time.Hour}
				h.write("app")
				r := h.start(asApp + templateHCL("secrets/db", chosen, test.more))
				first := only(t, h.Users())
				h.inner.failing(call, errWrapped)
				h.write("second")
				after(noticed)
				must.Eq(t, []string{"Secrets changed: secrets/db; " + test.fails + ": wrapped: no such image; trying again"},
					h.events())
				must.Eq(t, 1, h.logged("secrets/db changed; "+test.fails+": wrapped: no such image; trying again"))
				after(5 * time.Hour)
				must.Between(t, 300, len(r.did()), 620) // a minute apart, less the jitter
				must.SliceEmpty(t, h.events(), must.Sprint("the same is told once"))
				must.Len(t, 2, h.Users())
				must.SliceContainsAll(t, h.Users(), []string{first, h.file("secrets/db")})

				h.inner.failing(call, errors.New("another"))
				after(time.Minute)
				must.Eq(t, []string{"Secrets changed: secrets/db; " + test.fails + ": another; trying again"}, h.events())
				r.did()
				h.inner.failing(call, nil)
				for len(h.inner.did()) == 0 {
					after(time.Second)
				}
				must.Eq(t, []string{"Secrets changed: secrets/db; " + test.done}, h.events())
				after(render.ChangeOver - 2*time.Second)
				must.Len(t, 2, h.Users(), must.Sprint("it changes over"))
				after(4 * time.Second)
				must.Eq(t, h.file("secrets/db"), only(t, h.Users()))
				after(time.Hour)
				must.SliceEmpty(t, r.did())

				h.inner.failing(call, errors.New("another"))
				h.write("app")
				after(noticed)
				must.SliceNotEmpty(t, r.did())
				must.Len(t, 1, h.events(), must.Sprint("that is another change"))
			})
		})
	}
}

// What has reached the process does not again, because of something else that has not.
func TestOnlyWhatWasNotDoneIsTriedAgain(t *testing.T) {
	usr := strings.ReplaceAll(onSignal, "SIGHUP", "SIGUSR1")
	config := "vault {\n role = \"app\"\n file = true\n" + usr + "\n}\n" + templateHCL("local/0", kv, onSignal) +
		templateHCL("local/1", kv, onScript) + templateHCL("local/2", kv, onNoop)
	began := func(h *host) *run {
		h.write("green")
		r := h.start(config)
		h.inner.failing("exec", errWrapped)
		h.write("blue")
		after(noticed)
		calls := r.did()
		must.SliceContainsAll(t, []string{"exec /bin/tell web", "signal SIGHUP"}, calls[:2])
		must.SliceNotContains(t, calls[2:], "signal SIGHUP")
		must.SliceNotContains(t, calls, "signal SIGUSR1", must.Sprint("the token is the same"))
		return r
	}
	for name, then := range map[string]func(*run){
		"it works again": func(r *run) {
			r.inner.failing("exec", nil)
			after(time.Hour)
			must.Eq(t, []string{"exec /bin/tell web"}, r.did())
			must.Eq(t, []string{
				`Secrets changed: local/0, local/1, local/2; change_script "/bin/tell" failed: wrapped: no such image, sent SIGHUP; trying again`,
				"Secrets changed: local/1, local/2; ran /bin/tell"}, r.events())
		},
		"the plugin dies": func(r *run) {
			r.reboot()
			r.recovered()
			after(time.Hour)
			must.Eq(t, []string{"recover", "exec /bin/tell web"}, r.did())
		},
		"the change is taken back": func(r *run) {
			r.write("green")
			after(2 * time.Minute)
			must.SliceContains(t, r.did(), "signal SIGHUP", must.Sprint("it was told of the other"))
			after(time.Hour)
			must.SliceEmpty(t, r.did())
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) { then(began(h)) })
		})
	}
}
