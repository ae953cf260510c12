package driver

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// A generation is of one piece: what the process has in its environment, what its files say, and what is kept alive
// in Vault.

// threefold shows one user in three places, by paths that a careless reader takes for three questions.
const threefold = asApp +
	"template {\n destination = \"secrets/db.env\"\n data = \"{{ with secret \\\"database/creds/app\\\" }}DB={{ " +
	".Data.username }}\\nPASS={{ .Data.password }}{{ end }}\"\n env = true\n splay = \"1m\"\n}\n" +
	"template {\n destination = \"secrets/user\"\n data = \"{{ with secret \\\"/database/creds/app\\\" }}{{ " +
	".Data.username }}{{ end }}\"\n splay = \"1m\"\n poll_interval = \"5s\"\n}\n" +
	"template {\n destination = \"alloc/pass\"\n data = \"{{ with secret \\\"database/creds/app\\\" }}{{ " +
	".Data.password }}{{ end }}\"\n splay = \"1m\"\n}\n"

// crowd makes the configs of that many allocations with one task each.
func (h *host) crowd(n int, config string) (all []*drivers.TaskConfig) {
	for i := range n {
		cfg := h.job(config)
		cfg.ID, cfg.AllocID = fmt.Sprintf("crowd-%d/web/1", i), fmt.Sprintf("crowd-%d", i)
		cfg.AllocDir = filepath.Join(h.alloc, cfg.AllocID)
		for _, dir := range []string{"alloc", "web/local", "web/secrets"} {
			must.NoError(h, os.MkdirAll(filepath.Join(cfg.AllocDir, dir), 0o755))
		}
		h.put(cfg.AllocID+"/web/secrets/nomad_vault.jwt", h.JWT)
		all = append(all, cfg)
	}
	return all
}

// startAll starts them all at once; each must succeed.
func (h *host) startAll(all []*drivers.TaskConfig) {
	var starts sync.WaitGroup
	errs := make([]error, len(all))
	for i, cfg := range all {
		starts.Go(func() { _, _, errs[i] = h.StartTask(cfg) })
	}
	starts.Wait()
	for _, err := range errs {
		must.NoError(h, err)
	}
}

// checkConsistent checks that every task has one user, its own and alive, wherever it looks.
func (h *host) checkConsistent(all []*drivers.TaskConfig) (users map[string]bool) {
	h.Helper()
	alive := map[string]bool{}
	for _, user := range h.Users() {
		alive[user] = true
	}
	procs := map[string]*taskProcess{}
	for _, p := range h.machine.running() {
		must.Nil(h, procs[p.alloc], must.Sprint("two processes of one task"))
		procs[p.alloc] = p
	}
	users = map[string]bool{}
	for _, cfg := range all {
		p := procs[cfg.AllocID]
		must.NotNil(h, p)
		user, pass := p.env["DB"], p.env["PASS"]
		must.Eq(h, vaulttest.Planted+user, pass)
		must.Eq(h, "DB="+user+"\nPASS="+pass, contents(h, cfg.AllocDir, "web/secrets/db.env"))
		must.Eq(h, user, contents(h, cfg.AllocDir, "web/secrets/user"))
		must.Eq(h, pass, contents(h, cfg.AllocDir, "alloc/pass"))
		must.True(h, alive[user], must.Sprintf("%s of %s is not alive in Vault", user, cfg.AllocID))
		must.False(h, users[user], must.Sprint("two tasks have one user"))
		users[user] = true
	}
	return users
}

func contents(h *host, dir, path string) string {
	data, err := os.ReadFile(filepath.Join(dir, path))
	must.NoError(h, err)
	return string(data)
}

func TestEveryOneOfManyTasksHasOneUser(t *testing.T) {
	const tasks = 500
	bubble(t, func(h *host) {
		h.config.StartTimeout = 15 * time.Minute
		must.NoError(t, h.Configure(h.config))
		h.Break(vaulttest.Fault{Slow: time.Second}) // sixteen answers a second, for all of them
		all := h.crowd(tasks, threefold)
		h.startAll(all)
		first := h.checkConsistent(all)
		must.Eq(t, tasks, h.Minted())
		must.Eq(t, tasks, h.Logins())
		must.Len(t, tasks, h.Tokens())

		after(3 * time.Hour)
		must.Eq(t, first, h.checkConsistent(all), must.Sprint("the lease that is renewed is of another user"))
		must.Eq(t, tasks, h.Minted())

		h.RevokeLeases()
		after(50 * time.Minute) // renewals, a splay, and a queue before Vault
		second := h.checkConsistent(all)
		must.Eq(t, 2*tasks, h.Minted())
		for user := range first {
			must.False(t, second[user])
		}

		for _, cfg := range all {
			must.NoError(t, h.StopTask(cfg.ID, 0, ""))
		}
		after(30 * time.Minute)
		h.nothingLeft()
	})
}

// Five templates and a token that is shown are one login, and one error where that fails.
func TestTemplatesOfOneTaskLogInOnce(t *testing.T) {
	for how, test := range map[string]struct {
		host func(*host)
		says string
		most int // logins
	}{
		"refused": {func(h *host) { delete(h.Roles, "app") }, `role "app" could not be found`, 1},
		"down":    {func(h *host) { h.Down(true) }, "connection refused", 0},
		"hung":    {func(h *host) { h.Break(vaulttest.Fault{Hang: true}) }, "Vault unavailable", 1},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				test.host(h)
				config := "vault {\n role = \"app\"\n file = true\n}\n"
				for i := range 5 {
					config += templateHCL(fmt.Sprintf("local/%d", i), kv+creds, "")
				}
				_, _, err := h.StartTask(h.job(config))
				must.ErrorContains(t, err, test.says)
				must.LessEq(t, test.most, h.Logins())
				must.Len(t, 0, h.machine.running())
			})
		})
	}
}

// ofAllKinds shows one secret of each kind in the environment.
var ofAllKinds = asApp + templateHCL("secrets/env", "COLOR="+kv+"\nDB="+creds+
	"\nSTATIC="+`{{ with secret "database/static-creds/app" }}{{ .Data.password }}{{ end }}`, "env = true")

// What changes between the rendering of a generation and the start of its process is told to the process right after.
func TestRotationBetweenRenderAndStartIsNotLost(t *testing.T) {
	for how, test := range map[string]struct {
		host  func(*host)
		takes time.Duration // of the start
		meets func(*host)   // in the middle of it
		edits bool          // which writes "blue"
	}{
		"a lease near its end": {takes: 55 * time.Minute, host: func(h *host) {
			h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		}},
		"a token near its end": {takes: 55 * time.Minute, host: func(h *host) {
			h.SetRole("app", vaulttest.Role{TTL: time.Hour, Fixed: true, Revoke: true})
		}},
		"a lease that is revoked":    {takes: 100 * time.Minute, meets: func(h *host) { h.RevokeLeases() }},
		"a token that is revoked":    {takes: 2 * time.Minute, meets: func(h *host) { h.RevokeTokens() }},
		"a password that is rotated": {takes: 15 * time.Minute, host: func(h *host) { h.Static("app", 10*time.Minute) }},
		"an edit":                    {takes: 2 * time.Minute, meets: func(h *host) { h.write("blue") }, edits: true},
		"an edit while a part of Vault is down": {takes: 2 * time.Minute, edits: true, meets: func(h *host) {
			h.Break(vaulttest.Fault{Match: "GET database/", Status: 500})
			h.write("blue")
		}},
		// It does not end together with a period of the password: within seconds after that there may be another restart.
		"one thing after the other": {takes: 4*time.Hour + 5*time.Minute, edits: true,
			host: func(h *host) { h.Static("app", 10*time.Minute) }, meets: func(h *host) {
				h.write("blue")
				h.RevokeLeases()
				time.AfterFunc(time.Hour, h.RevokeTokens)
			}},
	} {
		for _, during := range []string{"the first start", "a restart"} {
			t.Run(how+", during "+during, func(t *testing.T) {
				bubble(t, func(h *host) {
					h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour, Revoke: true})
					h.Static("app", 1000*time.Hour)
					h.write("green")
					if test.host != nil {
						test.host(h)
					}
					r, color := &run{host: h, cfg: h.job(ofAllKinds)}, "green"
					if during == "a restart" {
						r, color = h.start(ofAllKinds), "yellow"
						h.write(color)
						h.inner.slow("start", test.takes)
					} else {
						h.inner.slow("start", test.takes)
						go func() { _, _, _ = h.StartTask(r.cfg) }()
					}
					for !slices.Contains(r.did(), "start") {
						after(time.Second)
					}
					h.inner.slow("start", 0) // the next one
					h.events()
					before := h.file("secrets/env")
					if test.meets != nil {
						time.AfterFunc(test.takes/2, func() { test.meets(h) })
					}
					after(test.takes + 100*time.Millisecond)
					must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
					events := h.events()
					must.StrHasPrefix(t, "Secrets changed: secrets/env; restarted", events[len(events)-1])
					must.NotEq(t, before, h.file("secrets/env"))
					says := r.process().env
					must.Eq(t, "COLOR="+says["COLOR"]+"\nDB="+says["DB"]+"\nSTATIC="+says["STATIC"], h.file("secrets/env"))
					if test.edits {
						color = "blue"
					}
					must.Eq(t, color, says["COLOR"])
					after(time.Second)
					must.Eq(t, says["DB"], only(t, h.Users()), must.Sprint("what the process uses, and nothing else"))
				})
			})
		}
	}
}

// Vault is told of two secrets, one after the other. The process hears of both, or of neither.
func TestSecretsThatChangeTogetherBecomeOneGeneration(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour, Revoke: true})
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		write := func(v int) {
			h.Put("kv/cert", map[string]any{"k": fmt.Sprint(v)})
			h.Put("secret/web", map[string]any{"k": fmt.Sprint(v)})
		}
		write(1)
		const cert = `{{ with secret "kv/cert" }}{{ .Data.k }}{{ end }}`
		r := h.start(asApp + templateHCL("secrets/key.env", "KEY="+kv, "env = true\npoll_interval = \"17s\"") +
			templateHCL("secrets/cert.env", "CERT="+cert, "env = true\npoll_interval = \"10m\"") +
			templateHCL("secrets/db.env", "DB="+creds, "env = true"))
		user := only(t, h.Users())
		agree := func(v string) {
			t.Helper()
			must.Eq(t, "KEY="+v, h.file("secrets/key.env"))
			must.Eq(t, "CERT="+v, h.file("secrets/cert.env"))
			if all := h.machine.running(); len(all) > 0 {
				must.Eq(t, v, all[0].env["KEY"])
				must.Eq(t, v, all[0].env["CERT"])
			}
		}
		for v := 2; v < 12; v++ {
			before := strings.TrimPrefix(h.file("secrets/key.env"), "KEY=")
			write(v)
			for h.file("secrets/key.env") == "KEY="+before && h.file("secrets/cert.env") == "CERT="+before {
				after(50 * time.Millisecond)
			}
			after(time.Millisecond)
			agree(fmt.Sprint(v))
			must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
			must.Len(t, 1, h.events())
			after(time.Duration(v) * 29 * time.Second)
			must.SliceEmpty(t, r.did(), must.Sprint("it is told of them one by one"))
		}
		must.Eq(t, user, r.process().env["DB"])
		must.Eq(t, 1, h.Minted())
	})
}

// One template of two cannot be executed when both have something new. The files and the leases of the generation
// before stay, and when the template is right again there is one step to the newest.
func TestTemplateThatFailsLeavesTheWholeGenerationBefore(t *testing.T) {
	bubble(t, func(h *host) {
		// replaced after seven hours, and lives for eight
		h.SetRole("app", vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true})
		h.Creds["app"] = vaulttest.Creds{TTL: 10 * time.Minute}
		began := time.Now()
		h.write("1")
		const fussy = `{{ with secret "secret/data/web" }}{{ .Data.data.k | parseInt }}{{ end }}`
		r := h.start(asApp + templateHCL("secrets/n.env", "N="+fussy+"\nDB="+creds, "env = true") +
			templateHCL("secrets/db", creds, ""))
		user := only(t, h.Users())
		stays := func() {
			t.Helper()
			must.SliceEmpty(t, r.did())
			must.Eq(t, "N=1\nDB="+user, h.file("secrets/n.env"))
			must.Eq(t, user, h.file("secrets/db"))
			must.Eq(t, user, r.process().env["DB"])
			must.SliceContains(t, h.Users(), user, must.Sprint("the lease in use was revoked, or not renewed"))
		}
		after(6 * time.Hour)
		h.write(vaulttest.Planted)
		for time.Since(began) < 7*time.Hour+50*time.Minute {
			after(10 * time.Second)
			stays()
		}
		must.Eq(t, 2, h.Logins())
		must.Eq(t, 2, h.Minted(), must.Sprint("what cannot be shown is not read again and again"))
		must.Len(t, 2, h.Users())
		must.StrHasPrefix(t, `Secrets not updated: execute template "secrets/n.env": line 1`, only(t, h.events()))

		h.write("2")
		after(2 * time.Minute)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		next := only(t, h.Users())
		must.NotEq(t, user, next)
		must.Eq(t, "N=2\nDB="+next, h.file("secrets/n.env"))
		must.Eq(t, next, h.file("secrets/db"))
		must.Eq(t, map[string]string{"NOMAD_TASK_NAME": "web", "N": "2", "DB": next}, r.process().env)
		must.Len(t, 1, h.events())
	})
}

// As in Nomad's own template block, with the token of a vault block that shows it.
func TestTemplateSeesTheTokenAndTheNode(t *testing.T) {
	bubble(t, func(h *host) {
		cfg := h.job("vault {\n role = \"app\"\n env = true\n}\n" + templateHCL("secrets/conf",
			`{{ env "VAULT_TOKEN" }} {{ env "VAULT_ADDR" }} {{ env "node.unique.id" }} {{ env "node.unique.name" }} `+
				`{{ env "node.datacenter" }} {{ env "node.region" }}`, onSignal))
		cfg.NodeID, cfg.NodeName, cfg.Env["NOMAD_DC"], cfg.Env["NOMAD_REGION"] = "7c5f", "worker-1", "dc1", "eu"
		handle, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		r := &run{h, cfg, handle}
		want := func() string {
			return only(t, h.Tokens()) + " " + h.config.Clusters[0].Address + " 7c5f worker-1 dc1 eu"
		}
		before := want()
		must.Eq(t, before, h.file("secrets/conf"))
		must.Eq(t, only(t, h.Tokens()), r.process().env["VAULT_TOKEN"])
		h.RevokeTokens()
		after(2 * time.Hour)
		must.NotEq(t, before, want())
		must.Eq(t, want(), h.file("secrets/conf"))
		must.SliceContains(t, r.process().signals, "SIGHUP")
	})
}

// As Nomad has it with the token that it derives: its variables do not replace what the job sets.
func TestVariablesOfTheJobStay(t *testing.T) {
	const address = "http://127.0.0.1:8200"
	for sentence, c := range map[string]struct {
		env      map[string]string // of the job, or of the agent
		template string
		agents   string // its VAULT_ADDR
		derived  bool
		token    string // the one that was made where empty
		address  string
	}{
		"none":               {address: address},
		"an address":         {env: map[string]string{"VAULT_ADDR": "http://proxy"}, address: "http://proxy"},
		"a token of its own": {env: map[string]string{"VAULT_TOKEN": "its own"}, token: "its own", address: address},
		"of a template":      {template: "VAULT_ADDR=http://proxy", address: "http://proxy"},
		"of the agent": {env: map[string]string{"VAULT_ADDR": "http://agent"}, agents: "http://agent",
			address: address},
		"the job's and another's": {env: map[string]string{"VAULT_ADDR": "http://proxy"}, agents: "http://agent",
			address: "http://proxy"},
		"the token of Nomad's": {env: map[string]string{"VAULT_TOKEN": "hvs.before"}, derived: true, address: address},
	} {
		t.Run(sentence, func(t *testing.T) {
			if c.agents != "" {
				t.Setenv("VAULT_ADDR", c.agents)
			}
			bubble(t, func(h *host) {
				cfg := h.job("args = [\"$(VAULT_ADDR)\"]\nvault {\n role = \"app\"\n env = true\n}\n" +
					templateHCL("secrets/env", cmp.Or(c.template, "A=b"), "env = true"))
				maps.Copy(cfg.Env, c.env)
				if c.derived {
					must.NoError(t, os.Mkdir(filepath.Join(h.alloc, "web/private"), 0o755))
					h.put("web/private/vault_token", "hvs.derived")
				}
				handle, _, err := h.StartTask(cfg)
				must.NoError(t, err)
				r := &run{h, cfg, handle}
				must.Eq(t, c.address, r.process().env["VAULT_ADDR"])
				must.Eq(t, cmp.Or(c.token, only(t, h.Tokens())), r.process().env["VAULT_TOKEN"])
				must.Eq(t, []string{c.address}, r.process().args)
			})
		})
	}
}
