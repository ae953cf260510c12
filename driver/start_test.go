package driver

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/logpipe/logpipetest"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestFirstGenerationIsWholeBeforeTheProcessStarts(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start("vault {\n role = \"app\"\n env = true\n file = true\n}\n" +
			templateHCL("secrets/db.env", "USER="+creds, "env = true") + templateHCL("local/color", kv, "perms = \"0640\""))
		user, token := only(t, h.Users()), only(t, h.Tokens())
		must.Eq(t, "green", h.file("local/color"))
		must.Eq(t, "USER="+user, h.file("secrets/db.env"))
		must.Eq(t, token, h.file("secrets/vault_token"))
		must.Eq(t, map[string]string{"NOMAD_TASK_NAME": "web", "USER": user, "VAULT_TOKEN": token,
			"VAULT_ADDR": "http://127.0.0.1:8200"}, r.process().env)
		info, err := os.Stat(filepath.Join(h.alloc, "web/local/color"))
		must.NoError(t, err)
		must.Eq(t, 0o640, info.Mode().Perm())
		must.Eq(t, 1, h.Logins())
		must.Eq(t, 1, h.Minted())
		after(time.Hour)
		must.SliceEmpty(t, r.did(), must.Sprint("nothing has changed"))
	})
}

func TestTaskWithoutOurBlocksAsksVaultNothing(t *testing.T) {
	bubble(t, func(h *host) {
		handle, network, err := h.StartTask(h.job("vault {\n role = \"app\"\n}"))
		must.NoError(t, err)
		must.Eq(t, "10.0.0.7", network.IP)
		must.Eq(t, []string{"start"}, h.inner.did())
		must.Zero(t, h.Calls(""))
		must.SliceEmpty(t, h.events())
		must.NoError(t, h.StopTask(handle.Config.ID, 0, ""))
		after(stopLinger)
		h.nothingLeft()
	})
}

func TestOneIDStartsOnce(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start("")
		_, _, err := h.StartTask(r.cfg)
		must.ErrorContains(t, err, "already started")
		must.True(t, r.alive())
	})
}

// whole asks for something of every kind, so that a start that fails has everything to take back.
const whole = "vault {\n role = \"app\"\n file = true\n}\ntemplate {\n data = \"{{ with secret " +
	"\\\"database/creds/app\\\" }}{{ .Data.password }}{{ end }}\"\n destination = \"secrets/db\"\n}\n"

var (
	errWrapped     = errors.New("wrapped: no such image")
	errRecoverable = structs.NewRecoverableError(errWrapped, true)
)

// What a failed start says, whether Nomad is to try again, and how long it took.
var failures = map[string]struct {
	host        func(*host)
	config      string
	says        []string
	recoverable bool
	took        time.Duration
}{
	"no identity": {host: func(h *host) {
		must.NoError(h,
			os.Remove(filepath.Join(h.alloc, "web/secrets/nomad_vault.jwt")))
	},
		says:        []string{`identity "vault"`, `add to the task: identity { name = "vault" aud = ["vault.io"] file = true }`},
		recoverable: true, took: 3150 * time.Millisecond},
	"half an identity": {host: func(h *host) { h.identity(jwt("x")[:40]) }, says: []string{`identity "vault"`,
		"not a complete JWT"},
		recoverable: true, took: time.Minute},
	"an identity that has expired": {host: func(h *host) { h.identity(expired) },
		says:        []string{`identity "vault"`, "expired"},
		recoverable: true, took: time.Minute},
	"an identity that Vault calls expired": {host: func(h *host) { h.identity(jwt("two")) },
		says:        []string{"log in to vault", "expired"},
		recoverable: true, took: time.Minute},

	"a file of Nomad's own token": {host: func(h *host) {
		must.NoError(h, os.Remove(filepath.Join(h.alloc, "web/secrets/nomad_vault.jwt")))
		must.NoError(h, os.Mkdir(filepath.Join(h.alloc, "web/private"), 0o755))
		h.put("web/private/vault_token", "hvs.derived")
	}, config: "vault {\n file = true\n}\n" + templateHCL("local/x", kv, ""), says: []string{`vault "default": file = true: `, "leave file out"}},

	"Vault is down": {host: func(h *host) { h.Down(true) }, says: []string{"Vault unavailable", "connection refused"},
		recoverable: true, took: time.Minute},
	"Vault hangs": {host: func(h *host) { h.Break(vaulttest.Fault{Hang: true}) }, says: []string{"Vault unavailable"},
		recoverable: true, took: time.Minute},
	"Vault is sealed": {host: func(h *host) { h.Break(vaulttest.Fault{Status: 503}) }, says: []string{"Vault unavailable"},
		recoverable: true, took: time.Minute},
	"Vault has enough": {host: func(h *host) { h.Break(vaulttest.Fault{Match: "GET database/", Status: 429}) },
		says: []string{"read database/creds/app: "}, recoverable: true, took: time.Minute},

	"denied": {host: func(h *host) { h.SetRole("app", vaulttest.Role{TTL: time.Hour, Deny: []string{"database/"}}) },
		says: []string{"read database/creds/app: denied by Vault",
			`path "database/creds/app" { capabilities = ["read"] }`}, recoverable: true, took: time.Second},
	"no such role": {config: "vault {\n role = \"nobody\"\n}\n" + templateHCL("local/x", kv, ""),
		says: []string{`with role "nobody"`, "could not be found"}, recoverable: true},
	"no such secret": {config: whole + templateHCL("local/x", `{{ with secret "secret/data/none" }}{{ end }}`, ""),
		says: []string{"read secret/data/none: not found in Vault", "write it first"}, recoverable: true},
	"not what Vault has there": {config: whole + templateHCL("local/x",
		`{{ with secret "database/creds/app" "a=b" }}{{ end }}{{ with secret "database/creds/none" }}{{ end }}`, ""),
		says: []string{"refused by Vault", "unknown role: none"}},

	"a template fails": {config: whole + templateHCL("local/x",
		`{{ with secret "database/creds/app" }}{{ .Data.password | toInt }}{{ .Data.password | parseJSON }}{{ end }}`, ""),
		says: []string{`template "local/x": line 1`}},
	"a template's lines are no environment": {config: whole + templateHCL("local/x", "A=1\nB", "env = true"),
		says: []string{`template "local/x": env = true: parse environment: line 2`}},
	"a destination is taken": {host: func(h *host) {
		must.NoError(h, unix.Mkfifo(filepath.Join(h.alloc, "web/local/x"),
			0o600))
	},
		config: whole + templateHCL("local/x", "x", ""), says: []string{`destination "local/x" is a named pipe`}},
	"no variable of Nomad's": {config: whole + templateHCL("local/x", `{{ with nomadVar "a/b" }}{{ end }}`, ""),
		says: []string{`template "local/x": line 1`}, recoverable: true},

	"nobody reads the log": {host: func(h *host) {
		h.stderr = filepath.Join(h.alloc, "web/log")
		must.NoError(h, unix.Mkfifo(h.stderr, 0o600))
	},
		says: []string{"no log collector reads the task's output"}, recoverable: true},
	"the log is not there": {host: func(h *host) { h.stderr = "/none/such" }, says: []string{"open log pipe /none/such"},
		recoverable: true},
}

// expired is a JWT of before the time at which every bubble begins.
var expired = func() string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"EdDSA"}`)) + "." + part([]byte(`{"exp":900000000}`)) + "." + part(make([]byte, 64))
}()

func TestStartThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	for name, test := range failures {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				if test.host != nil {
					test.host(h)
				}
				if test.config == "" {
					test.config = whole
				}
				cfg := h.job(test.config)
				said := func(error) {}
				if cfg.StderrPath == os.DevNull { // which the test leaves to us
					said = logged(t, cfg)
				}
				began := time.Now()
				_, _, err := h.StartTask(cfg)
				must.Error(t, err)
				said(err)
				for _, words := range test.says {
					must.StrContains(t, err.Error(), words)
				}
				must.StrNotContains(t, err.Error(), vaulttest.Planted)
				_, outermost := err.(structs.Recoverable)
				must.Eq(t, test.recoverable, outermost && structs.IsRecoverable(err), must.Sprint(err))
				if test.took > 0 {
					must.Between(t, test.took-time.Second, time.Since(began), test.took+time.Second)
				}
				_ = os.Remove(filepath.Join(h.alloc, "web/local/x"))
				h.Down(false)
				after(2 * time.Minute)
				h.nothingLeft()
				must.MapEmpty(t, h.tasks)
			})
		})
	}
}

// logged gives the task a log, and checks later that it ends with a start that failed for that reason.
func logged(t *testing.T, cfg *drivers.TaskConfig) (check func(error)) {
	cfg.StdoutPath, cfg.StderrPath = logpipetest.FIFOs(t, cfg.AllocDir)
	stdout, stderr := logpipetest.Collect(t, cfg.StdoutPath), logpipetest.Collect(t, cfg.StderrPath)
	return func(err error) {
		must.StrHasSuffix(t, "[vault-fake] not started: "+err.Error()+"\n", stderr.Read())
		must.True(t, stdout.Ended() && stderr.Ended(), must.Sprint("the log collector must see the end"))
		stdout.Close()
		stderr.Close()
	}
}

func TestErrorOfTheWrappedDriverIsPassedOnUnchanged(t *testing.T) {
	for name, test := range map[string]struct {
		method string
		err    error
	}{
		"start":                          {"start", errWrapped},
		"start that can be tried again":  {"start", errRecoverable},
		"start that ran out of its time": {"start", fmt.Errorf("wrapped: %w", context.DeadlineExceeded)},
		"wait":                           {"wait", errWrapped},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.inner.failing(test.method, test.err)
				must.True(t, h.refused(whole) == test.err)
				must.Eq(t, 1, h.Logins())
				must.Eq(t, 1, h.Minted())
			})
		})
	}
}

func TestStartThatCannotTellVaultRevokesLater(t *testing.T) {
	bubble(t, func(h *host) {
		h.inner.slow("start", time.Second)
		h.inner.failing("start", errWrapped)
		go func() { after(time.Second / 2); h.Down(true) }()
		began := time.Now()
		_, _, err := h.StartTask(h.job(whole))
		must.True(t, err == errWrapped)
		must.Less(t, time.Second+undoWithin+time.Second, time.Since(began))
		must.Len(t, 1, h.Users())
		must.Len(t, 1, h.records(), must.Sprint("a crash must not lose what is to be revoked"))
		must.StrHasSuffix(t, ".revoke", only(t, h.records()))
		after(10 * time.Minute)
		h.Down(false)
		after(time.Minute)
		h.nothingLeft()
		must.Eq(t, 1, h.logged("cannot revoke yet"))
	})
}

func TestSecretThatChangesWhileTheProcessStartsIsNotLost(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		h.inner.slow("start", 10*time.Minute) // docker pulls an image
		go func() { after(time.Minute); h.write("blue") }()
		r := h.start(asApp + templateHCL("local/color", kv, onSignal))
		h.inner.slow("start", 0)
		after(time.Second)
		must.Eq(t, []string{"SIGHUP"}, r.process().signals)
		must.Eq(t, "blue", h.file("local/color"))
	})
}

func TestSourceIsNeverReadOutsideOfTheTasksDirectories(t *testing.T) {
	for name, make := range map[string]func(h *host, path string) error{
		"a link to another task's secret": func(h *host, path string) error {
			return os.Symlink("../../other/secrets/db",
				path)
		},
		"a pipe that nobody writes": func(h *host, path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory":               func(h *host, path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				must.NoError(t, os.MkdirAll(filepath.Join(h.alloc, "other/secrets"), 0o700))
				h.put("other/secrets/db", vaulttest.Planted)
				path := filepath.Join(h.alloc, "web/local/x.tpl")
				must.NoError(t, make(h, path))
				_, _, err := h.StartTask(h.job("template {\n source = \"local/x.tpl\"\n destination = \"local/x\"\n}"))
				must.ErrorContains(t, err, `template "local/x": source "local/x.tpl"`)
				must.StrNotContains(t, err.Error(), h.alloc)
				must.Eq(t, "", h.file("local/x"))
			})
		})
	}
}

func TestHandleIsEnoughToRecoverAndHoldsNoSecret(t *testing.T) {
	bubble(t, func(h *host) {
		h.write(vaulttest.Planted)
		r := h.start("vault {\n role = \"app\"\n env = true\n}\n" + templateHCL("secrets/env", "K="+kv, "env = true"))
		must.Eq(t, vaulttest.Planted, r.process().env["K"])
		must.MapEq(t, map[string]string{"NOMAD_TASK_NAME": "web"}, r.handle.Config.Env)
		must.StrNotContains(t, string(r.handle.DriverState), vaulttest.Planted)
		var state handleState
		must.NoError(t, r.handle.GetDriverState(&state))
		must.Eq(t, "app", state.JobConfig["command"].(string), must.Sprint("the wrapped driver's own options are kept"))
		var inner wrappedState
		must.NoError(t, r.handle.GetDriverState(&inner), must.Sprint("what the built-in driver would find"))
		must.Eq(t, r.process().pid, inner.PID)
		must.Eq(t, "alloc-1/web/1", inner.TaskConfig.ID)
		synctest.Wait()
	})
}
