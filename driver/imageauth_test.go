package driver

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// auth is an auth block that reads the KV version 2 secret, with more in it, in a job with the role app.
func auth(more string) string {
	return asApp + fmt.Sprintf("auth {\n vault_path = \"secret/data/registry\"\n %s\n}\n", more)
}

// registry writes that secret.
func (h *host) registry(user, password string) {
	h.Put("secret/registry", map[string]any{"username": user, "password": password})
}

// pulledAs is what the wrapped driver was told of the registry when it started the process.
func (r *run) pulledAs() string {
	r.Helper()
	auth := r.process().auth
	return fmt.Sprint(auth["username"], ":", auth["password"])
}

func TestRegistryCredentialsAreFoundWhereverVaultHasThem(t *testing.T) {
	for sentence, test := range map[string]struct{ config, want string }{
		"in KV version 2":                 {auth(""), "u:p"},
		"by the path of vault kv":         {asApp + `auth { vault_path = "secret/registry" }`, "u:p"},
		"with slashes around":             {asApp + `auth { vault_path = "/secret/data/registry/" }`, "u:p"},
		"in a version":                    {asApp + `auth { vault_path = "secret/data/registry?version=1" }`, "u:p"},
		"in KV version 1":                 {asApp + `auth { vault_path = "kv/registry" }`, "u1:p1"},
		"in a KV version 1 with its keys": {asApp + `auth { vault_path = "kv/like-v2" }`, "u2:p2"},
		"under other keys":                {auth("username_key = \"login\"\n password_key = \"token\""), "l:t"},
		"stored as a number":              {auth(`password_key = "pin"`), "u:12345678901234567890"},
		"but for the user":                {auth("username = \"_json_key\"\n password_key = \"token\""), "_json_key:t"},
		"for another vault block": {"vault {\n name = \"b\"\n role = \"app\"\n}\nauth {\n vault_path = " +
			"\"kv/registry\"\n vault = \"b\"\n}", "u1:p1"},
	} {
		t.Run(sentence, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.Put("secret/registry", map[string]any{"username": "u", "password": "p", "login": "l", "token": "t",
					"pin": json.Number("12345678901234567890")})
				h.Put("kv/registry", map[string]any{"username": "u1", "password": "p1"})
				h.Put("kv/like-v2", map[string]any{"data": "d", "metadata": "m", "username": "u2", "password": "p2"})
				r := h.start(test.config)
				must.Eq(t, test.want, r.pulledAs())
				must.Eq(t, 1, h.Logins())
				r.stop()
				after(stopLinger)
				h.nothingLeft()
			})
		})
	}
}

func TestRegistryCredentialsOfADynamicEngineAreRevokedWithTheTask(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(asApp + `auth { vault_path = "database/creds/app" }`)
		must.StrHasPrefix(t, only(t, h.Users())+":", r.pulledAs())
		after(3 * time.Hour)
		must.Eq(t, 1, h.Minted(), must.Sprint("the lease is renewed"))
		r.stop()
		after(stopLinger)
		h.nothingLeft()
	})
}

func TestRegistryCredentialsGoToTheWrappedDriverOnly(t *testing.T) {
	bubble(t, func(h *host) {
		const user, password = vaulttest.Planted + "-user", vaulttest.Planted + "-password"
		h.registry(user, password)
		cfg := h.job(auth(`server_address = "registry.example"`))
		before := *cfg
		handle, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		r := &run{h, cfg, handle}
		given := r.process().auth
		must.Eq(t, user+":"+password, r.pulledAs())
		must.Eq[any](t, "registry.example", given["server_address"])
		must.Eq(t, map[string]string{"NOMAD_TASK_NAME": "web"}, r.process().env)

		must.Eq(t, &before, cfg, must.Sprint("Nomad's own copy has changed"))
		stored := r.stored()
		events := strings.Join(h.events(), "\n")
		must.StrContains(t, events, "templates rendered: 0, registry credentials read, vault \"default\" token")
		task, _ := h.task(cfg.ID)
		for place, content := range map[string]string{"handle": string(stored.DriverState) +
			fmt.Sprintf("%+v", stored.Config), "events": events,
			"log": h.log.String(), "generation": fmt.Sprintf("%v %#v", task.current.Auth, task.current.Auth)} {
			must.StrNotContains(t, content, vaulttest.Planted, must.Sprint(place))
		}
		r.stop()
	})
}

func TestARotatedRegistryPasswordIsUsedAtTheNextStart(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		h.registry("u", "first")
		config := auth("") + templateHCL("local/color", kv, "")
		r := h.start(config)
		reads := h.Calls("GET secret/data/registry")
		h.registry("u", "second")
		after(2 * time.Hour)
		must.SliceEmpty(t, r.did(), must.Sprint("nobody is told"))
		must.Eq(t, reads, h.Calls("GET secret/data/registry"), must.Sprint("it is not polled"))

		h.write("blue")
		after(2 * time.Minute)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "u:first", r.pulledAs(), must.Sprint("a restart by the driver uses what was read last"))

		r.reboot()
		r.recovered()
		h.write("red")
		after(2 * time.Minute)
		must.Eq(t, []string{"recover", "stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "u:first", r.pulledAs(), must.Sprint("also by the next plugin process"))
		must.Eq(t, reads, h.Calls("GET secret/data/registry"))

		r.exit(1)
		must.NoError(t, h.DestroyTask(r.cfg.ID, true))
		again := h.start(config)
		must.Eq(t, "u:second", again.pulledAs())
		must.Eq(t, 1, h.Logins())

		h.Down(true)
		again.exit(1)
		must.NoError(t, h.DestroyTask(again.cfg.ID, true))
		must.Eq(t, "u:second", h.start(config).pulledAs(), must.Sprint("the last known good"))
		h.Down(false)
	})
}

// What is denied by now is no reason to keep a running task's own secrets from it.
func TestRegistryCredentialsThatAreLostDoNotStopARotation(t *testing.T) {
	bubble(t, func(h *host) {
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, MaxTTL: time.Hour}
		h.write("green")
		r := h.start(asApp + `auth { vault_path = "database/creds/app" }` + "\n" + templateHCL("local/color", kv, ""))
		as := r.pulledAs()
		h.Break(vaulttest.Fault{Match: "GET database/", Status: 403})
		after(2 * time.Hour)
		must.Len(t, 0, h.Users())
		must.SliceEmpty(t, r.did())
		h.write("blue")
		after(2 * time.Minute)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, "blue", h.file("local/color"))
		must.Eq(t, as, r.pulledAs())
	})
}

func TestRegistryCredentialsThatCannotBeHad(t *testing.T) {
	for sentence, test := range map[string]struct{ config, says string }{
		"not asked for, but how": {`auth { password_key = "token" }`,
			`auth: vault_path is missing: name the secret that has the credentials`},
		"not asked for, but who": {`auth { vault = "b" }`, `auth: vault_path is missing`},
		"two passwords":          {auth(`password = "x"`), `auth: both password and vault_path are set: keep one`},
		"two users": {auth("username = \"x\"\n username_key = \"y\""),
			`auth: both username and username_key are set: keep one`},
		"an unknown vault block": {auth(`vault = "west"`),
			`auth: vault = "west": the task has no vault block with that name`},
		"a path that is none": {`auth { vault_path = "kv/%zz" }`,
			`auth: vault_path "kv/%zz" is not a path such as "kv/data/app/registry"`},
		"a path that is empty": {`auth { vault_path = "/" }`, `auth: vault_path "/" is not a path`},

		"no such secret": {asApp + `auth { vault_path = "secret/data/none" }`,
			`auth: vault_path: read secret/data/none: not found in Vault`},
		"no such version": {asApp + `auth { vault_path = "secret/data/registry?version=7" }`,
			`auth: vault_path: read secret/data/registry: not found in Vault: there is no version 7`},
		"denied": {asApp + `auth { vault_path = "database/creds/app" }`,
			`auth: vault_path: read database/creds/app: denied by Vault`},
		"no user": {auth(`username_key = "none"`),
			`auth: vault_path: secret/data/registry has no text under the key "none": write it, or correct username_key`},
		"no password": {auth(`password_key = "none"`),
			`auth: vault_path: secret/data/registry has no text under the key "none": write it, or correct password_key`},
		"a list":        {auth(`password_key = "list"`), `has no text under the key "list"`},
		"an empty text": {auth(`password_key = "empty"`), `has no text under the key "empty"`},
	} {
		t.Run(sentence, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Deny: []string{"database/"}})
				h.Put("secret/registry", map[string]any{"username": vaulttest.Planted, "password": vaulttest.Planted,
					"list":  []string{"x"},
					"empty": ""})
				err := h.refused(test.config)
				must.StrContains(t, err.Error(), test.says)
				must.StrNotContains(t, err.Error()+h.log.String(), vaulttest.Planted)
				mended := strings.Contains(err.Error(), "denied by Vault") || strings.Contains(err.Error(), "not found in Vault")
				must.Eq(t, mended, structs.IsRecoverable(err), must.Sprint("in Vault, while Nomad tries again"))
				must.SliceNotContains(t, h.inner.did(), "start")
			})
		})
	}
}

// Docker's own forms stay what they are, and so does a task that an older version has started.
func TestAnAuthBlockOfTheWrappedDriverIsPassedOn(t *testing.T) {
	bubble(t, func(h *host) {
		config := map[string]any{"command": "app", "kill_timeout": "5s", "auth": map[string]any{"username": "u",
			"password": "p"}}
		cfg := h.job("")
		must.NoError(t, cfg.EncodeConcreteDriverConfig(config))
		_, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		r := &run{h, cfg, nil}
		must.Eq(t, config["auth"], any(maps.Clone(r.process().auth)))
		must.Zero(t, h.Calls(""))
		r.stop()
	})
}
