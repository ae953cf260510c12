package config

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/vault"
)

func api(change func(*Door)) *Door {
	d := &Door{Label: "shop", URL: "https://api.example.com/v1", Bearer: "{{ key }}"}
	change(d)
	return d
}

func database(change func(*Door)) *Door {
	d := &Door{Label: "db", Postgres: "postgres://db.example.com/app", Username: "u", Password: "p"}
	change(d)
	return d
}

func toVault(change func(*Door)) *Door {
	d := &Door{Label: "vault", Of: "default"}
	change(d)
	return d
}

// hidden is a task whose identity no process of it can read, with that door.
func hidden(d *Door) *Task {
	return &Task{KillTimeout: "5s", Doors: map[string]*Door{d.Label: d}, Vaults: []Vault{{Name: "default",
		Identity: "vault", IdentityFile: "private/vault.jwt", Cluster: "default", ChangeMode: "noop"}}}
}

func TestDoorsThatAreRefused(t *testing.T) {
	for says, d := range map[string]*Door{
		"name: secrets/api.sock is Nomad's own API": api(func(d *Door) { d.Label = "api" }),
		"name: use letters":                         api(func(d *Door) { d.Label = "a/b" }),
		"both url and postgres are set":             api(func(d *Door) { d.Postgres = "postgres://db/app" }),
		"role means nothing for a door to an API":   api(func(d *Door) { d.Role = "r" }),
		"mode means nothing for a door to an API":   api(func(d *Door) { d.Mode = "force" }),
		"url: give an origin":                       api(func(d *Door) { d.URL = "api.example.com" }),
		"url: a user and a password":                api(func(d *Door) { d.URL = "https://u:hunter2@a.example" }),
		"url: parameters do not":                    api(func(d *Door) { d.URL = "https://a.example/?k=hunter2" }),
		"url: over http everybody":                  api(func(d *Door) { d.URL = "http://a.example" }),
		`scheme "ftp"`:                              api(func(d *Door) { d.URL = "ftp://a.example" }),
		"empty or dot segments":                     api(func(d *Door) { d.URL = "https://a.example/v1/../admin" }),
		"no credential is set":                      api(func(d *Door) { d.Bearer = "" }),
		"are one and the same header": api(func(d *Door) {
			d.Header = map[string]string{"authorization": "x"}
		}),
		"basic_auth: username and password": api(func(d *Door) {
			d.Bearer, d.BasicAuth = "", &BasicAuth{Username: "u"}
		}),
		"client_cert: pki is required":                 api(func(d *Door) { d.ClientCert = &ClientCert{} }),
		`client_cert: the task has no pki block "web"`: api(func(d *Door) { d.ClientCert = &ClientCert{PKI: "web"} }),
		`"Host" is not a header`:                       api(func(d *Door) { d.Header = map[string]string{"Host": "x"} }),
		`"X Y" is not a header`:                        api(func(d *Door) { d.Header = map[string]string{"X Y": "x"} }),
		`"connect" is not a method`:                    api(func(d *Door) { d.Methods = []string{"connect"} }),
		`paths: "v1" is not a path`:                    api(func(d *Door) { d.Paths = []string{"v1"} }),
		`paths: "/a/../b": "*" is a whole segment`:     api(func(d *Door) { d.Paths = []string{"/a/../b"} }),
		`paths: "/a*b/c": "*" is a whole segment`:      api(func(d *Door) { d.Paths = []string{"/a*b/c"} }),
		`paths: "/a%2fb" is not a path`:                api(func(d *Door) { d.Paths = []string{"/a%2fb"} }),
		`scrub "none" is unknown`:                      api(func(d *Door) { d.Scrub = "none" }),
		`rate "fast" is not a rate`:                    api(func(d *Door) { d.Rate = "fast" }),
		`rate "5:0" is not a rate`:                     api(func(d *Door) { d.Rate = "5:0" }),
		`rate "NaN" is not a rate`:                     api(func(d *Door) { d.Rate = "NaN" }),
		"listen: 65536 is not a port":                  api(func(d *Door) { d.Listen = 65536 }),
		"max_conns is a number":                        api(func(d *Door) { d.MaxConns = -1 }),
		"max_conns is a number from 1 to 1000":         database(func(d *Door) { d.MaxConns = 1001 }),
		"sample is a number":                           api(func(d *Door) { d.Sample = -1 }),
		`record "none" is unknown`:                     api(func(d *Door) { d.Record = "none" }),
		`idle_timeout "soon" is not a duration`:        api(func(d *Door) { d.IdleTimeout = "soon" }),
		"header_timeout is zero":                       api(func(d *Door) { d.HeaderTimeout = "0s" }),
		"poll_interval":                                api(func(d *Door) { d.PollInterval = "x" }),
		"header means nothing for a door to Vault":     toVault(func(d *Door) { d.Header = map[string]string{"a": "b"} }),
		"scrub means nothing for a door to Vault":      toVault(func(d *Door) { d.Scrub = "full" }),
		`mode "on" is unknown`:                         toVault(func(d *Door) { d.Mode = "on" }),
		`vault = "other": the task has no vault block`: toVault(func(d *Door) { d.Of = "other" }),
		"paths means nothing for a door to PostgreSQL": database(func(d *Door) { d.Paths = []string{"/x"} }),
		"postgres: give a database": database(func(d *Door) {
			d.Postgres = "postgres://db.example.com"
		}),
		"postgres: a user and a password do not": database(func(d *Door) {
			d.Postgres = "postgres://u:hunter2@db/app"
		}),
		"with sslmode=require anybody can take the server": database(func(d *Door) { d.Postgres += "?sslmode=require" }),
		"username and password are required":               database(func(d *Door) { d.Password = "" }),
	} {
		err := hidden(d).Validate(Operator{PollInterval: time.Minute})
		must.ErrorContains(t, err, says)
		must.StrHasPrefix(t, `door "`+d.Label+`": `, err.Error())
		must.StrNotContains(t, err.Error(), "hunter2")
	}
}

// A task that has its own token, or can log in for one, needs no door to read the credential.
func TestDoorNeedsAHiddenIdentity(t *testing.T) {
	for says, change := range map[string]func(*Task){
		`filepath = "private/vault.jwt"`:           func(c *Task) { c.Vaults[0].IdentityFile = "" },
		"could log in to Vault with its own":       func(c *Task) { c.Vaults = nil },
		"identity_file = \"private/":               func(c *Task) { c.Vaults[0].IdentityFile = "secrets/nomad_vault.jwt" },
		`vault "default" shows the task the token`: func(c *Task) { c.Vaults[0].File = true },
		"leave env and file out":                   func(c *Task) { c.Vaults[0].Env = true },
		`could log in to Vault`:                    func(c *Task) { c.Vaults[0].IdentityFile = "private/../local/vault.jwt" },
	} {
		c := hidden(api(func(*Door) {}))
		change(c)
		must.NoError(t, c.Validate(jwtLogin))
		must.ErrorContains(t, c.Permit(jwtLogin, "default"), says)
	}
}

// jwtLogin is an operator with a cluster that tasks log in to.
var jwtLogin = Operator{PollInterval: time.Minute, Clusters: []vault.Cluster{{Name: "default"}}}

func TestTwoDoorsAreToldApart(t *testing.T) {
	c := hidden(api(func(d *Door) { d.Label, d.Listen = "a.b", 4000 }))
	c.Doors["a-b"] = api(func(d *Door) { d.Label = "a-b" })
	must.ErrorContains(t, c.Validate(Operator{PollInterval: time.Minute}), `door "a-b" has the variable A_B_SOCK too`)
	delete(c.Doors, "a-b")
	c.Doors["b"] = api(func(d *Door) { d.Label, d.Listen = "b", 4000 })
	must.ErrorContains(t, c.Validate(Operator{PollInterval: time.Minute}), `listen: door "a.b" has the port 4000 too`)
}

func TestSpecOfADoor(t *testing.T) {
	d := api(func(d *Door) {
		d.Header, d.Query = map[string]string{"X-Key": "k"}, map[string]string{"key": "k"}
		d.Methods, d.Paths, d.Rate, d.Sample = []string{"get"}, []string{"/a/*"}, "50:100", 10
		d.Stale, d.Record = "2h", "denied"
	})
	must.NoError(t, hidden(d).Validate(Operator{PollInterval: time.Minute}))
	must.Eq(t, door.Spec{Name: "shop", Rate: 50, Burst: 100, MaxConns: 100, HeaderTime: 10 * time.Second,
		IdleTimeout: 5 * time.Minute, Stale: 2 * time.Hour, Record: door.Record{Calls: door.RecordDenied, Sample: 10},
		HTTP: &door.HTTP{URL: "https://api.example.com/v1", Methods: []string{"GET"}, Paths: []string{"/a/*"},
			Scrub: door.ScrubFull, Header: []string{"X-Key", "Authorization"}, Query: []string{"key"}, CAs: []byte{}}}, d.Spec)

	d = database(func(d *Door) { d.Role = "owner" })
	must.NoError(t, hidden(d).Validate(Operator{PollInterval: time.Minute}))
	must.Zero(t, d.Spec.IdleTimeout)
	must.Zero(t, d.Spec.Stale, must.Sprint("no task stops working because Vault is away"))
	must.Eq(t, &door.Postgres{URL: "postgres://db.example.com/app", Role: "owner", CAs: []byte{}}, d.Spec.Postgres)

	d = toVault(func(d *Door) { d.Mode, d.Paths = "passthrough", []string{"kv/data/*"} })
	must.NoError(t, hidden(d).Validate(Operator{PollInterval: time.Minute}))
	must.Eq(t, &door.Vault{Paths: []string{"kv/data/*"}, Passthrough: true}, d.Spec.Vault)
}

// An address is judged when the door connects, but for one that the job names: nothing can change that.
func TestDoorToAHostThatTheOperatorDoesNotAllow(t *testing.T) {
	op := Operator{Doors: Doors{AllowHosts: []string{"api.example.com", "127.0.0.1"}}}
	for says, d := range map[string]*Door{
		"": api(func(*Door) {}),
		`url: not allowed: the host is not among allow_hosts of the plugin's doors block: the operator must add ` +
			`"other.example.com" there`: api(func(d *Door) { d.URL = "https://other.example.com:8443/v1" }),
		`postgres: not allowed: the host is not among allow_hosts`: database(func(*Door) {}),
		`url: not allowed: 127.0.0.1 is a loopback address`:        api(func(d *Door) { d.URL = "https://127.0.0.1" }),
	} {
		c := hidden(d)
		must.NoError(t, c.Validate(op))
		spec, err := op.DoorSpec(c, d, "alloc/task")
		if says == "" {
			must.NoError(t, err)
			must.Eq(t, "alloc/task/shop", spec.ID)
			continue
		}
		must.ErrorContains(t, err, says)
	}
}
