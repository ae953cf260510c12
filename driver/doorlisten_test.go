package driver

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/state"
)

// listening is a task with doors over TCP, in the network of its group.
func listening(h *host, doors string) *drivers.TaskConfig {
	h.write("green")
	cfg := h.job("vault {\n role = \"app\"\n identity_file = \"private/vault.jwt\"\n}\n" + doors)
	cfg.NetworkIsolation = &drivers.NetworkIsolationSpec{Mode: drivers.NetIsolationModeGroup, Path: "/run/netns/one"}
	cfg.Env["NOMAD_SECRETS_DIR"] = "/secrets"
	return cfg
}

const (
	apiDoor   = "door \"shop\" {\n url = \"https://api.example.com\"\n listen = 4000\n bearer = \"x\"\n}\n"
	vaultDoor = "door \"kv\" {\n vault = \"default\"\n listen = 8200\n}\n"
)

// postgresDoor is a door to the database "app" with more options.
func postgresDoor(name, options string) string {
	return "door \"" + name + "\" {\n postgres = \"postgres://db.example.com/app\"\n username = \"u\"\n " +
		"password = \"p\"\n " + options + "\n}\n"
}

// startIn starts a task, and returns it with the environment of its process.
func (h *host) startIn(cfg *drivers.TaskConfig) (*run, map[string]string) {
	handle, _, err := h.StartTask(cfg)
	must.NoError(h, err)
	r := &run{h, cfg, handle}
	return r, r.process().env
}

// TestDoorOverTCPIsTheTasksAlone: each process of the group's network can connect, but only the task knows the secret.
func TestDoorOverTCPIsTheTasksAlone(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		r, env := h.startIn(listening(h, apiDoor+vaultDoor+postgresDoor("db", "listen = 6432")))
		secret := map[string]string{}
		for name, port := range map[string]int{"shop": 4000, "kv": 8200, "db": 6432} {
			d := k.open[state.Key("alloc-1", "web")+"/"+name]
			must.Eq(t, process.Listen{Socket: d.listen.Socket, Port: port, Namespace: "/run/netns/one"}, d.listen)
			secret[name] = d.spec.Secret
			must.GreaterEq(t, 26, len(secret[name]))
			must.StrNotContains(t, h.log.String(), secret[name][1:])
		}
		must.NotEq(t, secret["shop"], secret["kv"])
		must.Eq(t, "http://127.0.0.1:4000/"+secret["shop"], env["SHOP_URL"])
		must.Eq(t, "http://127.0.0.1:8200/"+secret["kv"], env["KV_URL"])
		must.Eq(t, "postgres://door:"+secret["db"]+"@127.0.0.1:6432/app?sslmode=disable", env["DB_URL"])
		must.Eq(t, "unix:///secrets/kv.sock", env["VAULT_ADDR"])
		r.exit(0)
		<-r.wait()
		must.MapEmpty(t, k.open, must.Sprint("Nomad takes the network away as soon as the task has ended"))
		r.stop()
	})
}

// TestDoorOverTCPIsTakenOver: what the door is opened with is the same, and so is what the environment has.
func TestDoorOverTCPIsTakenOver(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		r, before := h.startIn(listening(h, apiDoor+templateHCL("local/x", kv, "")))
		d := k.only(h)
		secret := d.spec.Secret
		h.crash()
		h.boot()
		reopened := &doorkeeperOfTests{open: map[string]*doorOfTests{}}
		h.Driver.doors = reopened
		r.recovered()
		again := reopened.only(h)
		must.Eq(t, secret, again.spec.Secret)
		must.Eq(t, d.listen, again.listen)
		pid := r.process().pid
		h.write("blue")
		after(time.Minute)
		must.NotEq(t, pid, r.process().pid)
		must.Eq(t, before["SHOP_URL"], r.process().env["SHOP_URL"])
		r.stop()
	})
}

func TestDoorOverTCPNeedsANetworkOfTheTasksOwn(t *testing.T) {
	for says, change := range map[string]func(*drivers.TaskConfig){
		`door "shop": listen: the task has no network of its own: write network { mode = "bridge" } in the group, or leave ` +
			"listen out and use the socket secrets/shop.sock": func(cfg *drivers.TaskConfig) { cfg.NetworkIsolation = nil },
		`door "shop": listen: with network_mode the container is not in the network of its group`: func(cfg *drivers.TaskConfig) {
			var block map[string]any
			must.NoError(t, cfg.DecodeDriverConfig(&block))
			block["network_mode"] = "host"
			must.NoError(t, cfg.EncodeConcreteDriverConfig(block))
		},
	} {
		bubble(t, func(h *host) {
			h.keeps()
			cfg := listening(h, apiDoor)
			change(cfg)
			_, _, err := h.StartTask(cfg)
			must.ErrorContains(t, err, says)
			must.Zero(t, h.Calls(""))
			h.nothingLeft()
		})
	}
}

// TestClientsOfPostgreSQLFindTheDoor by the variables that all of them know, or by a URL where there are several.
func TestClientsOfPostgreSQLFindTheDoor(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		r, env := h.startIn(listening(h, postgresDoor("db", "")))
		must.Eq(t, ".s.PGSQL.5432", k.only(h).listen.Socket.Link)
		for name, value := range map[string]string{"PGHOST": "/secrets", "PGPORT": "5432", "PGDATABASE": "app",
			"PGUSER": "door", "DB_SOCK": "/secrets/db.sock", "DB_URL": "postgres://door@/app?host=/secrets&port=5432"} {
			must.Eq(t, value, env[name], must.Sprint(name))
		}
		r.stop()
		cfg := listening(h, postgresDoor("db", ""))
		cfg.Env["PGHOST"] = "db.example.com"
		r, env = h.startIn(cfg)
		must.Eq(t, "db.example.com", env["PGHOST"])
		must.MapNotContainsKeys(t, env, []string{"PGPORT", "PGDATABASE", "PGUSER"})
		r.stop()
		three := postgresDoor("one", "") + postgresDoor("three", "") + postgresDoor("two", "listen = 5433")
		r, env = h.startIn(listening(h, three))
		must.MapNotContainsKeys(t, env, []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER"})
		must.Eq(t, "postgres://door@/app?host=/secrets&port=5432", env["ONE_URL"])
		must.StrContains(t, env["TWO_URL"], "@127.0.0.1:5433/app?")
		must.Eq(t, "postgres://door@/app?host=/secrets&port=5434", env["THREE_URL"])
		r.stop()
	})
}
