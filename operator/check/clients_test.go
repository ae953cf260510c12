package check

import (
	"slices"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/operator"
)

// TestClientsThatDiffer has nodes as Nomad lists them.
func TestClientsThatDiffer(t *testing.T) {
	client := func(name, clusters string, facts ...string) *nomad.NodeListStub {
		attributes := map[string]string{"driver.vault-exec.wraps": "exec", "driver.vault-exec.clusters": clusters}
		for _, fact := range facts {
			key, value, _ := strings.Cut(fact, "=")
			attributes["driver.vault-exec."+key] = value
		}
		return &nomad.NodeListStub{Name: name, Drivers: map[string]*nomad.DriverInfo{"vault-exec": {Detected: true,
			Attributes: attributes}}}
	}
	without := &nomad.NodeListStub{Name: "without"}
	for sentence, c := range map[string]struct {
		clients []*nomad.NodeListStub
		says    string
	}{
		"none has the driver": {clients: []*nomad.NodeListStub{without}},
		"all tell the same": {clients: []*nomad.NodeListStub{without, client("a", "default",
			"vault.default.address=http://v"),
			client("b", "default,west", "vault.default.address=http://v", "vault.west.address=http://w")}},
		"by the role": {clients: []*nomad.NodeListStub{client("a", "default", "vault.default.address=http://v"),
			client("a", "default", "vault.default.address=http://v"),
			client("b", "default", "vault.default.address=http://v", "vault.default.create_from_role=r")},
			says: `a, a: address = "http://v" jwt_auth_backend_path = "" create_from_role = "" namespace = ""; ` +
				`b: address = "http://v" jwt_auth_backend_path = "" create_from_role = "r" namespace = ""`},
		"by the address, and most of them": {clients: append(slices.Repeat([]*nomad.NodeListStub{client("a", "default",
			"vault.default.address=http://v")}, 7),
			client("b", "default", "vault.default.address=http://w")),
			says: `a, a, a, a, a and 2 more: address = "http://v"`},
		"one does not have it": {clients: []*nomad.NodeListStub{client("a", "default", "vault.default.address=http://v"),
			client("b", "west")},
			says: "; b: no such cluster"},
	} {
		t.Run(sentence, func(t *testing.T) {
			check := checker{options: options{cluster: "default"}, vault: operator.Vault{Client: new(api.Client)},
				clients: c.clients}
			other := check.driver("vault-exec").differ["default"]
			must.StrContains(t, other, c.says)
			must.Eq(t, c.says == "", other == "")
		})
	}
}

func TestAClientThatMayRunTheJob(t *testing.T) {
	for sentence, c := range map[string]struct {
		pool        string
		datacenters []string
		node        nomad.NodeListStub
		may         bool
	}{
		"in the default pool, anywhere": {node: nomad.NodeListStub{Status: "ready", NodePool: "default", Datacenter: "dc1"},
			may: true},
		"in another pool": {node: nomad.NodeListStub{Status: "ready", NodePool: "gpu", Datacenter: "dc1"}},
		"in any pool": {pool: "all", node: nomad.NodeListStub{Status: "ready", NodePool: "gpu",
			Datacenter: "dc1"}, may: true},
		"in its datacenters": {datacenters: []string{"eu-*", "dc1"}, node: nomad.NodeListStub{Status: "ready",
			NodePool: "default", Datacenter: "eu-2"}, may: true},
		"in another datacenter": {datacenters: []string{"eu-*"}, node: nomad.NodeListStub{Status: "ready",
			NodePool: "default", Datacenter: "us-1"}},
		"that is away": {node: nomad.NodeListStub{Status: "down", NodePool: "default", Datacenter: "dc1"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			must.Eq(t, c.may, mayRun(&nomad.Job{NodePool: &c.pool, Datacenters: c.datacenters}, &c.node))
		})
	}
}
