package config

import (
	"maps"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
)

// operator has a door of its own, whose credential is read with a token that the cluster "roles" makes.
func operator(change func(*OperatorDoor)) Operator {
	d := &OperatorDoor{Door: *api(func(d *Door) { d.Of = "roles" }), Namespaces: []string{"prod"},
		Policies: []string{"Pay"}}
	change(d)
	return Operator{Name: "vault-exec", StateDir: "/run/x", StartTimeout: time.Minute, PollInterval: time.Minute,
		MinPollInterval: time.Second, Doors: Doors{Own: map[string]*OperatorDoor{"pay": d}},
		Clusters: []vault.Cluster{{Name: "default"}, {Name: "roles", Role: "r", Token: "hvs.x"}}}
}

func TestDoorsOfAnOperatorThatAreRefused(t *testing.T) {
	for says, change := range map[string]func(*OperatorDoor){
		`cluster "west" is unknown`:           func(d *OperatorDoor) { d.Of = "west" },
		`vault "default" has no token`:        func(d *OperatorDoor) { d.Of = "" },
		"namespaces is required":              func(d *OperatorDoor) { d.Namespaces = nil },
		"policies is required":                func(d *OperatorDoor) { d.Policies = nil },
		`policies: "root" is not for tasks`:   func(d *OperatorDoor) { d.Policies = []string{"root"} },
		"client_cert is for doors of a job":   func(d *OperatorDoor) { d.ClientCert = &ClientCert{PKI: "x"} },
		"listen is for the job":               func(d *OperatorDoor) { d.Listen = 4000 },
		"url: over http everybody on the way": func(d *OperatorDoor) { d.URL = "http://a.example" },
		"poll_interval":                       func(d *OperatorDoor) { d.PollInterval = "soon" },
	} {
		err := operator(change).Validate()
		must.ErrorContains(t, err, says)
		must.StrHasPrefix(t, `door "pay": `, err.Error())
	}
	must.NoError(t, operator(func(*OperatorDoor) {}).Validate())
}

// naming is a task that names a door of the operator, and has an identity that it can read.
func naming(door string) *Task {
	return &Task{KillTimeout: "5s", Doors: map[string]*Door{door: {Listen: 4000}}}
}

func TestJobNamesADoorOfTheOperator(t *testing.T) {
	op := operator(func(*OperatorDoor) {})
	must.NoError(t, op.Validate())
	c := naming("pay")
	asked := maps.Clone(c.Doors)
	must.NoError(t, c.Validate(op))
	must.NoError(t, c.Permit(op, "prod"))
	d := c.Doors["pay"]
	must.Eq(t, "https://api.example.com/v1", d.Spec.HTTP.URL)
	must.Eq(t, 4000, d.Listen)
	must.Eq(t, []string{"pay"}, c.Vault(d.Common().Vault).Policies)
	must.Eq(t, "roles", c.Vault(d.Common().Vault).Cluster)
	must.False(t, op.LogsIn(c, d))
	must.Eq(t, asked, naming("pay").Doors, must.Sprint("the job's own block is as it was"))
	must.Zero(t, op.Doors.Own["pay"].Listen)

	must.ErrorContains(t, c.Permit(op, "test"), `door "pay": this node's operator lets tasks of the Nomad namespaces ["prod"]`)
	op.Doors.Own["pay"].Namespaces = []string{"*"}
	must.NoError(t, c.Permit(op, "test"))
}

// What a job sets of a door that is not its own would be ignored, or would change the operator's rules.
func TestJobChangesNoDoorOfTheOperator(t *testing.T) {
	op := operator(func(*OperatorDoor) {})
	for _, change := range []func(*Door){func(d *Door) { d.Scrub = "off" }, func(d *Door) { d.Record = "off" },
		func(d *Door) { d.Paths = []string{"/x"} }, func(d *Door) { d.CAPEM = "x" }} {
		c := naming("pay")
		change(c.Doors["pay"])
		must.ErrorContains(t, c.Validate(op), `door "pay": it is the operator's, and a job can set listen only`)
	}
}

// A task that runs goes on without the door that its operator has taken away.
func TestDoorThatTheOperatorDoesNotHave(t *testing.T) {
	op := operator(func(*OperatorDoor) {})
	c := naming("stripe")
	must.NoError(t, c.Validate(op))
	must.MapEmpty(t, c.Doors)
	must.ErrorContains(t, c.Permit(op, "prod"), `door "stripe": set url for an API, postgres for a database, or vault = `+
		`"default" for Vault itself; or name a door of this node's operator, who has ["pay"]`)
}

// TestNoBlockOfAJobReadsWhatADoorOfTheOperatorReads: the job's author could read the credential by it.
func TestNoBlockOfAJobReadsWhatADoorOfTheOperatorReads(t *testing.T) {
	op := operator(func(*OperatorDoor) {})
	for what, add := range map[string]func(*Task){
		"template": func(c *Task) {
			c.Templates = []Template{{Data: "x", Destination: "local/x", Output: Output{Vault: "door pay"}}}
		},
		"secret": func(c *Task) { c.Secrets = map[string]*Secret{"x": {Output: Output{Vault: "door pay"}}} },
		"pki":    func(c *Task) { c.PKIs = map[string]*PKI{"x": {Output: Output{Vault: "door pay"}}} },
		"door":   func(c *Task) { c.Doors["x"] = api(func(d *Door) { d.Label, d.Of = "x", "door pay" }) },
		"auth":   func(c *Task) { c.Auth = &ImageAuth{VaultPath: "kv/x", Vault: "door pay"} },
	} {
		c := naming("pay")
		add(c)
		must.ErrorContains(t, c.Validate(op), `the task has no vault block`, must.Sprint(what))
	}
	c := naming("pay")
	c.Vaults = []Vault{{Name: "door pay", Identity: "vault", ChangeMode: "noop", File: true}}
	must.Error(t, c.Validate(op))
}
