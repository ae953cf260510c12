package driver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// noticed is long enough for a change in KV to be noticed and acted on.
const noticed = 40 * time.Second

func TestChangeModes(t *testing.T) {
	for mode, test := range map[string]struct {
		more  string
		calls []string
		says  string
	}{
		"noop":    {onNoop, nil, "Secrets changed: local/color; noop"},
		"signal":  {onSignal, []string{"signal SIGHUP"}, "Secrets changed: local/color; sent SIGHUP"},
		"script":  {onScript, []string{"exec /bin/tell web"}, "Secrets changed: local/color; ran /bin/tell"},
		"restart": {"", []string{"stop 5s", "destroy", "start"}, "Secrets changed: local/color; restarted by vault-fake"},
	} {
		t.Run(mode, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(asApp + templateHCL("local/color", kv, test.more))
				h.write("blue")
				after(noticed)
				must.Eq(t, test.calls, r.did())
				must.Eq(t, "blue", h.file("local/color"))
				must.Eq(t, []string{test.says}, h.events())
				after(time.Hour)
				must.SliceEmpty(t, r.did())
				must.SliceEmpty(t, h.events())
				must.Eq(t, 1, h.Logins())
			})
		})
	}
}

// severalTemplates are templates that all show the same secret.
func severalTemplates(more ...string) string {
	config := asApp
	for i, m := range more {
		config += templateHCL(fmt.Sprintf("local/%d", i), kv, m)
	}
	return config
}

func TestSeveralChangesBecomeOneAction(t *testing.T) {
	script := func(command string) string { return strings.ReplaceAll(onScript, "/bin/tell", command) }
	usr := strings.ReplaceAll(onSignal, "SIGHUP", "SIGUSR1")
	for name, test := range map[string]struct {
		config string
		calls  []string
	}{
		"a restart replaces all others": {severalTemplates(onSignal, onScript, "", onNoop),
			[]string{"stop 5s", "destroy", "start"}},
		"one restart for several": {severalTemplates("", ""), []string{"stop 5s", "destroy", "start"}},
		"each script, then each signal once": {severalTemplates(onSignal, script("/a"), onSignal, usr, script("/b"), onNoop),
			[]string{"exec /a web", "exec /b web", "signal SIGHUP", "signal SIGUSR1"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(test.config)
				h.write("blue")
				after(noticed)
				must.Eq(t, test.calls, r.did())
				must.Len(t, 1, h.events())
				after(10 * time.Minute)
				must.SliceEmpty(t, r.did())
			})
		})
	}
}

func TestRestartUsesTheTasksKillSignalAndTimeout(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start("kill_signal = \"sigint\"\nkill_timeout = \"7s\"\n" + severalTemplates(""))
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"stop 7s SIGINT", "destroy", "start"}, r.did())
	})
}

func TestEqualBytesAreNoChange(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(""))
		h.write("green") // another version of the same
		after(time.Hour)
		h.Put("secret/web", map[string]any{"k": "green", "more": "that nothing shows"})
		after(time.Hour)
		must.SliceEmpty(t, r.did())
		must.SliceEmpty(t, h.events())
		must.Greater(t, 200, h.Calls("GET secret/data/web"))
	})
}

func TestSplayDelaysTheActionAndTheLongestCounts(t *testing.T) {
	must.Eq(t, 40*time.Second, render.Change{Splay: 5 * time.Second}.Join(render.Change{Splay: 40 * time.Second}).Splay)
	longest := time.Duration(0)
	for range 200 {
		d := render.Change{Splay: time.Minute}.Delay()
		must.Between(t, 0, d, time.Minute)
		longest = max(longest, d)
	}
	must.Greater(t, time.Minute/2, longest)
	must.Zero(t, render.Change{}.Delay())

	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(strings.ReplaceAll(severalTemplates("poll_interval = \"5s\"", onSignal), `"0s"`, `"1h"`))
		h.write("blue")
		after(6 * time.Second)
		must.Eq(t, "blue", h.file("local/0"), must.Sprint("the files do not wait"))
		after(time.Hour)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
	})
}

// withSplay repeats a scenario until chance draws a splay that is not over when the scenario asks; it returns whether
// it was.
func withSplay(t *testing.T, config string, scenario func(*run) bool) {
	for over := true; over; {
		bubble(t, func(h *host) {
			h.write("green")
			over = scenario(h.start(strings.ReplaceAll(config, `splay = "0s"`, "poll_interval = \"5s\"\nsplay = \"20m\"")))
		})
	}
}

func TestChangeTakenBackBeforeTheActionIsNone(t *testing.T) {
	withSplay(t, severalTemplates(""), func(r *run) (over bool) {
		r.write("blue")
		after(6 * time.Second)
		must.Eq(t, "blue", r.file("local/0"))
		r.write("green")
		after(6 * time.Second)
		must.Eq(t, "green", r.file("local/0"))
		if len(r.did()) > 0 {
			return true
		}
		after(time.Hour)
		must.SliceEmpty(t, r.did())
		must.SliceEmpty(t, r.events())
		return false
	})
}

func TestChangesDuringTheSplayAreOneActionWithTheLatest(t *testing.T) {
	config := asApp + templateHCL("secrets/env", "COLOR="+kv, "env = true") + templateHCL("local/x", kv, onSignal)
	withSplay(t, config, func(r *run) (over bool) {
		for _, color := range []string{"blue", "red", "black"} {
			r.write(color)
			after(6 * time.Second)
			must.Eq(t, color, r.file("local/x"))
		}
		if len(r.did()) > 0 {
			return true
		}
		after(time.Hour)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "black", r.process().env["COLOR"])
		must.Len(t, 1, r.events())
		return false
	})
}

func TestWaitCollectsChangesAndHasAnEnd(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("0")
		r := h.start(severalTemplates("poll_interval = \"5s\"\n" + onSignal + "\nwait {\nmin = \"20s\"\nmax = \"50s\"\n}"))
		h.write("1")
		after(15 * time.Second)
		must.Eq(t, "0", h.file("local/0"), must.Sprint("the wait is not over"))
		after(15 * time.Second)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		for i := range 12 { // more often than the least, for longer than the most
			h.write(fmt.Sprint("again ", i))
			after(10 * time.Second)
		}
		must.Between(t, 1, len(r.did()), 3)
		must.StrHasPrefix(t, "again", h.file("local/0"))
	})
}

func TestOnceIsRenderedOnceAndItsLeaseIsKept(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
		h.write("green")
		r := h.start(severalTemplates("") + templateHCL("local/once", kv+" "+creds, "once = true"))
		user := only(t, h.Users())
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "blue", h.file("local/0"))
		must.Eq(t, "green "+user, h.file("local/once"))
		after(4 * time.Hour)
		must.Eq(t, user, only(t, h.Users()), must.Sprint("what the process uses is not revoked"))
		h.reboot()
		r.recovered()
		h.write("red")
		after(noticed)
		must.Eq(t, []string{"recover", "stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "green "+user, h.file("local/once"))
		must.Eq(t, user, only(t, h.Users()))
	})
}

func TestRotatedCredentialsAreRevokedWhenTheNewOnesAreInUse(t *testing.T) {
	for mode, test := range map[string]struct {
		more   string
		old    time.Duration // for how long after the action the old user is there
		leaves bool
	}{
		"restart": {more: "env = true"},
		"signal":  {more: onSignal, old: render.ChangeOver},
		"noop":    {more: onNoop, leaves: true},
	} {
		t.Run(mode, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
				h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true} // at 85 %: 49 to 53 minutes
				began := time.Now()
				h.start(asApp + templateHCL("secrets/env", "USER="+creds, test.more))
				first := only(t, h.Users())
				for h.file("secrets/env") == "USER="+first {
					after(time.Second)
				}
				after(time.Second)
				if test.leaves {
					must.Len(t, 2, h.Users())
					after(59*time.Minute - time.Since(began)) // its own end is near
					must.Len(t, 2, h.Users())
					return
				}
				if test.old > 0 {
					must.Len(t, 2, h.Users())
					after(test.old + time.Second)
				}
				second := only(t, h.Users())
				must.NotEq(t, first, second)
				must.Eq(t, "USER="+second, h.file("secrets/env"))
				must.Len(t, 1, h.events())
			})
		})
	}
}

// A process that is told of one change by a signal still uses what a noop template of the same generation has replaced.
func TestWhatTheProcessWasNotToldOfIsLeftToEnd(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		h.write("green")
		r := h.start(severalTemplates(onSignal) + templateHCL("secrets/db", creds, onNoop))
		after(45 * time.Minute) // when it is near its end, the lease is replaced together with what changes
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, []string{"Secrets changed: local/0, secrets/db; sent SIGHUP"}, h.events())
		after(10 * time.Minute)
		must.Len(t, 2, h.Users())
	})
}

func TestChangeWhileRenderingIsPartOfTheSameAction(t *testing.T) {
	slow := `{{ with secret "secret/data/web" }}{{ .Data.data.k }}{{ if eq .Data.data.k "blue" }}{{ with secret "kv/slow" }}{{ .Data.k }}{{ end }}{{ end }}{{ end }}`
	withSplay(t, asApp+templateHCL("local/0", slow, onSignal), func(r *run) (over bool) {
		r.Put("kv/slow", map[string]any{"k": "!"})
		r.Break(vaulttest.Fault{Match: "GET kv/slow", Slow: 7 * time.Second})
		r.write("blue")
		for r.Calls("GET kv/slow") == 0 {
			after(time.Second)
		}
		r.write("red")
		after(12 * time.Second)
		if len(r.did()) > 0 {
			return true
		}
		must.Eq(t, "red", r.file("local/0"))
		after(time.Hour)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		return false
	})
}

// chosen shows the credentials of the role that the KV secret names: a change of that replaces a lease that could
// live on.
const chosen = `{{ with secret "secret/data/web" }}{{ with secret (printf "database/creds/%s" .Data.data.k) }}{{ .Data.username }}{{ end }}{{ end }}`

// The end of a task does not wait for what never ends.
func TestTemplateThatDoesNotEndHoldsUpNoStop(t *testing.T) {
	for how, ask := range map[string]func(*run) error{
		"a stop":           func(r *run) error { return r.StopTask(r.cfg.ID, 5*time.Second, "SIGTERM") },
		"a forced destroy": func(r *run) error { return r.DestroyTask(r.cfg.ID, true) },
		"its own end":      func(r *run) error { r.exit(143); return nil },
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(severalTemplates(onSignal))
				ended := r.wait()
				running, _ := h.task(r.cfg.ID)
				made, goOn := running.renderer.Funcs[0], make(chan struct{})
				var late error
				running.renderer.Funcs[0] = func(ctx context.Context, from *credentials.Source, in template.Input) ([][]byte,
					error) {
					<-goOn
					_, late = running.credentials.Snapshot(false).Source("default", 0).Services(ctx, "")
					return made(ctx, from, in)
				}
				h.write("blue")
				after(noticed)
				began := time.Now()
				must.NoError(t, ask(r))
				must.Eq(t, 143, (<-ended).ExitCode)
				must.LessEq(t, abandonAfter, time.Since(began))
				after(h.config.Linger)
				h.nothingLeft()
				close(goOn)
				after(time.Hour)
				must.Error(t, late)
				h.nothingLeft()
			})
		})
	}
}

func TestTokenIsShownAnewWithItsOwnChangeMode(t *testing.T) {
	for mode, calls := range map[string][]string{
		"change_mode = \"noop\"":    nil,
		onSignal:                    {"signal SIGHUP"},
		"change_mode = \"restart\"": {"stop 5s", "destroy", "start"},
	} {
		t.Run(mode, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Fixed: true})
				r := h.start("vault {\n role = \"app\"\n file = true\n env = true\n" + mode + "\n}\n")
				first := h.file("secrets/vault_token")
				must.Eq(t, only(t, h.Tokens()), first)
				for h.Logins() == 1 {
					after(time.Second)
				}
				after(time.Second)
				must.Eq(t, calls, r.did())
				must.NotEq(t, first, h.file("secrets/vault_token"))
				must.SliceContains(t, h.Tokens(), h.file("secrets/vault_token"))
				must.Len(t, 1, h.events())
				if len(calls) == 3 {
					must.Eq(t, h.file("secrets/vault_token"), r.process().env["VAULT_TOKEN"])
				}
			})
		})
	}
}

func TestWhatNoTemplateAsksAnyMoreIsRevoked(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
		h.write("green")
		h.put("web/local/flag", "on")
		r := h.start(asApp + "vault {\n name = \"db\"\n role = \"app\"\n}\n" + templateHCL("local/color", kv, "") +
			templateHCL("local/user", `{{ if eq (file "local/flag") "on" }}`+creds+`{{ end }}`, "vault = \"db\""))
		must.Len(t, 1, h.Users())
		h.put("web/local/flag", "off")
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "", h.file("local/user"))
		must.SliceEmpty(t, h.Users(), must.Sprint("of a session that no template asks"))
	})
}
