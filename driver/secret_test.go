package driver

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
	"nomad-driver-vault/internal/need"
)

// secretHCL is a secret block for the path that the tests write to.
func secretHCL(name, more string) string {
	return "secret \"" + name + "\" {\n path = \"secret/web\"\n splay = \"0s\"\n " + more + "\n}\n"
}

// modeOf is the mode of one of the task's files.
func (h *host) modeOf(path string) os.FileMode {
	info, err := os.Stat(filepath.Join(h.alloc, "web", path))
	must.NoError(h, err)
	return info.Mode().Perm()
}

func (h *host) ownerOf(path string) (uid, gid uint32) {
	info, err := os.Stat(filepath.Join(h.alloc, "web", path))
	must.NoError(h, err)
	st := info.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

func TestSecretBlockIsAFile(t *testing.T) {
	for name, test := range map[string]struct{ config, file, holds string }{
		"by default": {secretHCL("db", ""), "secrets/db", `{"password":"hunter2","user":"web"}` + "\n"},
		"in a format": {secretHCL("db", "format = \"properties\"\n destination = \"local/x\""), "local/x",
			"password=hunter2\nuser=web\n"},
		"one field": {secretHCL("db", `key = "user"`), "secrets/db", "web"},
		"some, renamed": {secretHCL("db", "exclude = [\"user\"]\n rename = { password = \"PW\" }\n format = \"env\""),
			"secrets/db", "PW=hunter2\n"},
		"by the API's path": {"secret \"db\" {\n path = \"/secret/data/web\"\n key = \"user\"\n}", "secrets/db", "web"},
		"of KV version 1":   {"secret \"db\" {\n path = \"kv/web\"\n}", "secrets/db", `{"data":{"a":1}}` + "\n"},
		"of another engine": {"secret \"db\" {\n path = \"database/creds/app\"\n include = [\"user*\"]\n}", "secrets/db",
			`{"username":"v-`},
		"of a write": {"secret \"db\" {\n path = \"pki/issue/x\"\n method = \"write\"\n args = { ttl = \"2h\" }\n " +
			"key = \"certificate\"\n}", "secrets/db", "-----BEGIN CERTIFICATE-----"},
		"named by its block": {secretHCL("a-b_C9.txt", `key = "user"`), "secrets/a-b_C9.txt", "web"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Put("secret/web", map[string]any{"user": "web", "password": "hunter2"})
				h.Put("kv/web", map[string]any{"data": map[string]any{"a": 1}})
				r := h.start(asApp + test.config)
				must.StrHasPrefix(t, test.holds, h.file(test.file))
				must.Eq(t, 0o600, h.modeOf(test.file))
				must.MapEq(t, map[string]string{"NOMAD_TASK_NAME": "web"}, r.process().env)
				r.stop()
				after(2 * time.Minute)
				h.nothingLeft()
			})
		})
	}
}

func TestSecretBlockIsEnvironment(t *testing.T) {
	bubble(t, func(h *host) {
		h.Put("secret/web", map[string]any{"user": "web", "cert": "a\nb\n", "port": 5432})
		r := h.start(asApp + secretHCL("db", "env = true\n rename = { user = \"PGUSER\" }"))
		must.MapEq(t, map[string]string{"NOMAD_TASK_NAME": "web", "PGUSER": "web", "cert": "a\nb\n", "port": "5432"},
			r.process().env)
		must.Eq(t, "", h.file("secrets/db"), must.Sprint("nobody asked for a file"))

		h.Put("secret/web", map[string]any{"user": "job"})
		after(noticed)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.MapEq(t, map[string]string{"NOMAD_TASK_NAME": "web", "PGUSER": "job"}, r.process().env)
		must.Eq(t, []string{`Secrets changed: secret "db"; restarted by vault-fake`}, h.events())
		r.stop()
		after(2 * time.Minute)

		r = h.start(asApp + secretHCL("db", "env = true\n destination = \"secrets/db.env\"\n format = \"env\""))
		must.Eq(t, "user=job\n", h.file("secrets/db.env"), must.Sprint("both were asked for"))
		must.Eq(t, "job", r.process().env["user"])
	})
}

// A secret block is in the same generation as everything else, and its changes are told as everybody's are.
func TestSecretBlockChangesAsATemplateDoes(t *testing.T) {
	for mode, test := range map[string]struct {
		more  string
		calls []string
		says  string
	}{
		"noop":    {onNoop, nil, `Secrets changed: secret "db"; noop`},
		"signal":  {onSignal, []string{"signal SIGHUP"}, `Secrets changed: secret "db"; sent SIGHUP`},
		"script":  {onScript, []string{"exec /bin/tell web"}, `Secrets changed: secret "db"; ran /bin/tell`},
		"restart": {"", []string{"stop 5s", "destroy", "start"}, `Secrets changed: secret "db"; restarted by vault-fake`},
	} {
		t.Run(mode, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(asApp + secretHCL("db", "key = \"k\"\n"+test.more))
				h.write("blue")
				after(noticed)
				must.Eq(t, test.calls, r.did())
				must.Eq(t, "blue", h.file("secrets/db"))
				must.Eq(t, []string{test.says}, h.events())
				after(time.Hour)
				must.SliceEmpty(t, r.did())
				must.Eq(t, 1, h.Logins())
			})
		})
	}
}

func TestSecretBlockAndTemplateShowTheSameCredentials(t *testing.T) {
	bubble(t, func(h *host) {
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		r := h.start(asApp + templateHCL("secrets/user", creds, onSignal) +
			"secret \"db\" {\n path = \"database/creds/app\"\n key = \"username\"\n splay = \"0s\"\n" +
			onSignal + "\n}\nsecret \"env\" {\n path = \"/database/creds/app\"\n env = true\n change_mode = \"noop\"\n}\n")
		must.Eq(t, 1, h.Minted())
		must.Eq(t, only(t, h.Users()), h.file("secrets/user"))
		must.Eq(t, only(t, h.Users()), h.file("secrets/db"))
		must.Eq(t, only(t, h.Users()), r.process().env["username"])
		after(time.Hour)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, 2, h.Minted())
		must.Eq(t, h.file("secrets/user"), h.file("secrets/db"))
		must.Eq(t, `Secrets changed: secrets/user, secret "db", secret "env"; sent SIGHUP`, only(t, h.events()))
	})
}

func TestOptionalSecretBlockIsAbsentUntilItIsThere(t *testing.T) {
	bubble(t, func(h *host) {
		h.put("web/secrets/db", "of an earlier run")
		config := asApp + secretHCL("db", "optional = true\n"+onSignal) + secretHCL("env",
			"optional = true\n env = true\n"+onNoop) + templateHCL("local/x", "x", "")
		cfg := h.job(config)
		handle, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		r := &run{h, cfg, handle}
		must.StrContains(t, only(t, h.events()), `Secrets ready: templates rendered: 1, secrets: 2, secret "db" is not there yet, secret "env" is not there yet, vault "default" token`)
		r.did()
		_, err = os.Stat(filepath.Join(h.alloc, "web/secrets/db"))
		must.ErrorIs(t, err, os.ErrNotExist)
		must.MapEq(t, map[string]string{"NOMAD_TASK_NAME": "web"}, r.process().env)
		after(10 * time.Minute)
		must.SliceEmpty(t, r.did())
		must.SliceEmpty(t, h.events())

		h.reboot()
		r.recovered()
		must.Eq(t, []string{"recover"}, r.did())
		h.write("green")
		after(noticed)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, "{\"k\":\"green\"}\n", h.file("secrets/db"))
		must.Eq(t, []string{`Secrets changed: secret "db", secret "env"; sent SIGHUP`}, h.events())

		h.Delete("secret/web", false)
		after(10 * time.Minute)
		must.SliceEmpty(t, r.did())
		must.Eq(t, "{\"k\":\"green\"}\n", h.file("secrets/db"), must.Sprint("the last known good stays"))
		must.StrContains(t, only(t, h.events()), "Vault: read secret/data/web: not found in Vault")

		r.exit(1) // and a start anew sees what is there now
		<-r.wait()
		must.NoError(t, h.DestroyTask(r.cfg.ID, true))
		r = h.start(config)
		must.Eq(t, "", h.file("secrets/db"))
		must.MapEq(t, map[string]string{"NOMAD_TASK_NAME": "web"}, r.process().env)
	})
}

func TestSecretBlockOnce(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		config := asApp + strings.Replace(secretHCL("db", "once = true\n env = true\n destination = \"secrets/db\""),
			"secret/web", "secret/data/web", 1) + templateHCL("local/color", kv, onSignal)
		r := h.start(config)
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"signal SIGHUP"}, r.did(), must.Sprint("of the template"))
		must.Eq(t, "{\"k\":\"green\"}\n", h.file("secrets/db"))
		h.reboot()
		r.recovered()
		r.did()
		h.write("red")
		after(noticed)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, "{\"k\":\"green\"}\n", h.file("secrets/db"), must.Sprint("after a crash, too"))
	})
}

// Each of these is refused before anybody is asked, with one line that names the block and the field.
var invalidSecrets = map[string]struct{ config, says string }{
	"no path":           {`secret "db" {}`, `secret "db": path is required: name a secret such as "kv/data/app"`},
	"a name that hides": {"secret \".x\" {\n path = \"x/y\"\n}", `secret ".x": name: use letters`},
	"a write that is polled": {"secret \"x\" {\n path = \"x/y\"\n method = \"write\"\n poll_interval = \"5s\"\n}",
		`secret "x": poll_interval is for what is read again`},
	"a name with a slash": {"secret \"a/b\" {\n path = \"x/y\"\n}",
		`secret "a/b": name: use letters, digits, -, _ and ., which is not the first`},
	"parameters in the path": {"secret \"db\" {\n path = \"kv/data/x?version=2\"\n}",
		`secret "db": path: parameters belong into args`},
	"unknown method": {secretHCL("db", `method = "GET"`),
		`secret "db": method "GET" is unknown: use "read" or "write"`},
	"version of a write": {secretHCL("db", "method = \"write\"\nversion = 2"),
		`secret "db": version is that of a KV secret to read`},
	"version below 0": {secretHCL("db", "version = -1"), `secret "db": version is that of a KV secret to read`},
	"version twice": {secretHCL("db", "version = 1\nargs = { version = \"2\" }"),
		`secret "db": both version and args.version are set: keep one`},
	"optional write": {secretHCL("db", "method = \"write\"\noptional = true"),
		`secret "db": optional is for what may not be there yet`},
	"unknown format": {secretHCL("db", `format = "xml"`),
		`secret "db": format "xml" is unknown: use "json", "env", "properties" or "yaml"`},
	"format without a file": {secretHCL("db", "format = \"json\"\nenv = true"),
		`secret "db": format is that of a file: set destination too`},
	"unknown encoding": {secretHCL("db", "key = \"k\"\nencoding = \"rot13\""),
		`secret "db": encoding "rot13" is unknown: use "utf-8", "base64" or "hex"`},
	"unknown vault": {secretHCL("db", `vault = "west"`),
		`secret "db": vault = "west": the task has no vault block with that name`},
	"destination outside": {secretHCL("db", `destination = "../x"`),
		`secret "db": destination: path "../x" is not below the task's directory`},
	"destination of a template": {templateHCL("secrets/db", "x", "") + secretHCL("db", ""),
		`secret "db": destination: template "secrets/db" has the same: choose another`},
	"destination of another": {secretHCL("a", "") + secretHCL("b", `destination = "/secrets/a"`),
		`secret "b": destination: secret "a" has the same: choose another`},
	"destination of the token": {"vault {\nfile = true\n}\n" + secretHCL("vault_token", ""),
		`secret "vault_token": destination: vault "default" puts its token there: choose another`},
	"perms is no mode": {secretHCL("db", `perms = "rw"`), `secret "db": perms "rw" is not an octal file mode`},
	"uid below -1":     {secretHCL("db", `uid = -2`), `secret "db": uid and gid are numbers from 0`},
	"a signal for env": {secretHCL("db", "env = true\n"+onSignal),
		`secret "db": change_mode "signal" with env = true`},
	"poll_interval is short": {secretHCL("db", `poll_interval = "4s"`),
		`secret "db": poll_interval 4s is below the 5s that this node's operator allows`},
	"wait.max before wait.min": {secretHCL("db", "wait {\nmin = \"9s\"\nmax = \"8s\"\n}"),
		`secret "db": wait.max 8s is shorter than wait.min 9s`},
	"script without its block": {secretHCL("db", `change_mode = "script"`),
		`secret "db": change_mode "script" and a change_script block go together`},
}

func TestInvalidSecretBlockFailsAtOnceAndNamesTheField(t *testing.T) {
	for name, test := range invalidSecrets {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				err := h.refused(test.config)
				must.StrContains(t, err.Error(), test.says)
				must.False(t, structs.IsRecoverable(err))
				must.Zero(t, h.Calls(""))
				must.SliceEmpty(t, h.inner.did())
			})
		})
	}
}

func TestSecretBlockThatDoesNotFitSaysWhyAndLeavesNothing(t *testing.T) {
	for name, test := range map[string]struct{ config, says string }{
		"no such field": {secretHCL("db", `key = "pasword"`), `secret "db": key: the secret has no field "pasword"`},
		"a newline in env": {secretHCL("db", `format = "env"`),
			`secret "db": field "cert" has a newline or another control character`},
		"not base64": {secretHCL("db", "key = \"cert\"\n encoding = \"base64\""),
			`secret "db": field "cert" is not encoded in base64`},
		"nothing there": {"secret \"db\" {\n path = \"secret/none\"\n}",
			`secret "db": read secret/data/none: not found in Vault`},
		"a variable twice": {secretHCL("a", "env = true\n key = \"k\"") + secretHCL("b", "env = true\n key = \"k\""),
			`secret "b": env = true: secret "a" sets k too: rename one of them`},
		"a template's, too": {templateHCL("local/x", "k=1", "env = true") + secretHCL("b", "env = true\n key = \"k\""),
			`secret "b": env = true: template "local/x" sets k too`},
		"no variable's name": {secretHCL("db", "env = true"),
			`secret "db": field "no-name" cannot be the name of a variable`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Put("secret/web", map[string]any{"k": vaulttest.Planted, "cert": vaulttest.Planted + "\n!", "no-name": "x"})
				_, _, err := h.StartTask(h.job(asApp + test.config))
				must.ErrorContains(t, err, test.says)
				must.StrNotContains(t, err.Error(), vaulttest.Planted)
				must.Eq(t, name == "nothing there", structs.IsRecoverable(err), must.Sprint("it may come"))
				after(2 * time.Minute)
				h.nothingLeft()
			})
		})
	}
}

// What does not fit while the task runs changes nothing, and is told without the value.
func TestSecretBlockThatDoesNotFitAnyMoreKeepsTheLastKnownGood(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + secretHCL("db", "format = \"env\"\n"+onSignal))
		h.write(vaulttest.Planted + "\n")
		after(time.Hour)
		must.SliceEmpty(t, r.did())
		must.Eq(t, "k=green\n", h.file("secrets/db"))
		event := only(t, h.events())
		must.StrHasPrefix(t, `Secrets not updated: secret "db": field "k" has a newline`, event)
		must.StrNotContains(t, h.log.String()+event, vaulttest.Planted)
	})
}

func TestSecretBlockBelongsToTheTasksUser(t *testing.T) {
	for name, test := range map[string]struct {
		user, more string
		uid, gid   uint32
	}{
		"as the job says":    {"nobody", "", 65534, 65534},
		"by numbers":         {"1000:1001", "", 1000, 1001},
		"nobody says":        {"", "", 0, 0},
		"as the block says":  {"nobody", "uid = 7\n gid = 8", 7, 8},
		"half of it by both": {"nobody", "uid = 7", 7, 65534},
	} {
		t.Run(name, func(t *testing.T) {
			need.Root(t)
			bubble(t, func(h *host) {
				h.write("green")
				cfg := h.job(asApp + secretHCL("db", test.more) + templateHCL("local/x", "x", ""))
				cfg.User = test.user
				_, _, err := h.StartTask(cfg)
				must.NoError(t, err)
				uid, gid := h.ownerOf("secrets/db")
				must.Eq(t, test.uid, uid)
				must.Eq(t, test.gid, gid)
				uid, _ = h.ownerOf("local/x")
				must.Zero(t, uid, must.Sprint("a template's is root's, as in Nomad"))
			})
		})
	}
	bubble(t, func(h *host) {
		cfg := h.job(asApp + secretHCL("db", ""))
		cfg.User = "no-such-user"
		_, _, err := h.StartTask(cfg)
		must.ErrorContains(t, err, `secret "db": user "no-such-user": this host does not know it: name a user of the host, or a number, or set uid and gid in this block`)
		h.write("green")
		for _, needsNone := range []string{"uid = 7\n gid = 8", "env = true"} { // as users of an image
			cfg = h.job(asApp + secretHCL("db", needsNone))
			cfg.User = "no-such-user"
			_, _, err = h.StartTask(cfg)
			must.NoError(t, err)
			(&run{host: h, cfg: cfg}).stop()
			after(2 * time.Minute)
		}
	})
}
