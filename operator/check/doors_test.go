package check

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/jobspec2"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
)

const (
	hiddenIdentity = "identity {\n name = \"vault\"\n aud = [\"vault.io\"]\n file = true\n filepath = " +
		"\"private/vault.jwt\"\n ttl = \"1h\"\n}\n"
	hiddenVault = "vault {\n identity_file = \"private/vault.jwt\"\n}\n"
	bearer      = "bearer = \"{{ with secret \\\"kv/data/a\\\" }}{{ .Data.data.key }}{{ end }}\"\n"
)

// apiDoor is a door to that URL with more options.
func apiDoor(url, more string) string {
	return hiddenVault + "door \"shop\" {\n url = \"" + url + "\"\n" + bearer + more + "}\n"
}

// doorsLooked returns what check says of a task's doors that is not ok.
func doorsLooked(t *testing.T, wraps, group, task, block string, local bool, op config.Doors) (said []string) {
	t.Helper()
	text := "job \"web\" {\n group \"g\" {\n" + group + "\ntask \"t\" {\n driver = \"vault-" + wraps + "\"\n" + task +
		"\n config {\n" + block + "\n}\n}\n}\n}"
	job, err := jobspec2.Parse("", strings.NewReader(text))
	must.NoError(t, err)
	job.Canonicalize()
	c := &checker{job: job}
	conf := config.Operator{Name: "vault-" + wraps, Doors: op,
		Clusters: []vault.Cluster{{Name: "default", Address: "http://v"}, {Name: "roles", Address: "http://v", Token: "t"}}}
	d := &taskDriver{name: conf.Name, wraps: wraps, local: local, conf: conf}
	g := job.TaskGroups[0]
	of, read, err := c.read(t.Context(), d, g, g.Tasks[0])
	must.NoError(t, err)
	asked, err := c.review(t.Context(), d, of, read)
	must.NoError(t, err)
	c.checkDispatch("task", g.Tasks[0])
	c.checkDoors(t.Context(), doorsOf{d, g, g.Tasks[0], of, read, asked})
	for _, f := range c.findings {
		if f.Status != statusOK {
			said = append(said, f.Status+" "+f.Message)
		}
	}
	return said
}

// loopback lets doors connect to an upstream of the test.
var loopback = config.Doors{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

// TestWhatIsWrongWithADoor is about mistakes that need no Vault and no Nomad to be found. The upstream of the test
// stands for UP.
func TestWhatIsWrongWithADoor(t *testing.T) {
	calls := 0
	up := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	gone := httptest.NewServer(nil)
	gone.Close()
	open := apiDoor("UP", "insecure = true\n")
	pays := loopback
	pays.Own = map[string]*config.OperatorDoor{"pay": {Namespaces: []string{"*"}, Policies: []string{"pay"},
		Door: config.Door{Of: "roles", URL: up.URL, Insecure: true, Bearer: "x"}}}
	shown := strings.Replace(hiddenIdentity, ` filepath = "private/vault.jwt"`, "", 1)
	for sentence, c := range map[string]struct {
		wraps, group, task, block string
		op                        config.Doors
		elsewhere                 bool   // the client's configuration is not at hand
		says                      string // the beginning of all that is not ok
	}{
		"nothing": {op: loopback},
		"headers and parameters": {op: loopback,
			block: apiDoor("UP", "insecure = true\n header = {\n X-Key = \"x\"\n}\n query = {\n key = \"x\"\n}\n")},
		"a driver that hides nothing": {wraps: "raw_exec", op: loopback,
			says: "problem door: a task that sees the node's files can read its identity"},
		"a door of the operator": {task: shown, block: `door "pay" {}`, op: pays},
		"a door that the clients' operator may have": {task: shown, block: `door "pay" {}`, elsewhere: true,
			says: `warning unless the clients' configuration of the plugin allows it: door "pay": set url for an API`},
		"an identity in the environment": {task: strings.Replace(hiddenIdentity, "ttl", "env = true\n ttl", 1), op: loopback,
			says: `problem the task can read the variable NOMAD_TOKEN_vault, an identity for "vault.io" as well`},
		"another identity of that audience": {task: hiddenIdentity + strings.NewReplacer(`"vault"`, `"b"`,
			` filepath = "private/vault.jwt"`, "").Replace(hiddenIdentity), op: loopback,
			says: `problem the task can read secrets/nomad_b.jwt, an identity for "vault.io" as well`},
		"another identity of another audience": {task: hiddenIdentity + strings.NewReplacer(`"vault"`, `"b"`, "vault.io", "b.io",
			` filepath = "private/vault.jwt"`, "").Replace(hiddenIdentity), op: loopback},
		"a port without a network": {block: apiDoor("UP", "insecure = true\n listen = 4000\n"), op: loopback,
			says: "problem listen: the task has no network of its own"},
		"a port in one": {group: "network {\n mode = \"bridge\"\n}", op: loopback,
			block: apiDoor("UP", "insecure = true\n listen = 4000\n")},
		"a host that is not allowed": {op: config.Doors{AllowHosts: []string{"api.example.com"}},
			says: "problem url: not allowed: the host is not among allow_hosts"},
		"a host that clients may not allow": {op: config.Doors{AllowHosts: []string{"api.example.com"}}, elsewhere: true,
			says: "warning unless the clients' configuration of the plugin allows it: url: not allowed: the host"},
		"an address that is not allowed": {says: "problem url: not allowed: 127.0.0.1 is a loopback address"},
		"a name of such an address": {block: apiDoor("LOCAL", "insecure = true\n"),
			says: `problem connect to "localhost:`},
		"an upstream that has gone": {block: apiDoor(gone.URL, "insecure = true\n"), op: loopback,
			says: `problem connect to "127.0.0.1:`},
		"one that nobody here can ask": {block: apiDoor(gone.URL, "insecure = true\n"), op: loopback, elsewhere: true},
		"an authority that is not known": {block: apiDoor(secure.URL, ""), op: loopback,
			says: `problem connect to "127.0.0.1:`},
		"authorities that are none": {block: apiDoor("UP", "insecure = true\n ca_pem = \"x\"\n"), op: loopback,
			says: "problem ca_pem: there is no certificate in it"},
		"a template with the same secret": {block: open + alsoReads("kv/a"), op: loopback,
			says: `warning the task gets the secret of door "shop" bearer line 1 too: template "secrets/a" line 1 asks for kv/a`},
		"a template with another secret": {block: open + alsoReads("kv/b"), op: loopback},
		"a certificate whose key the task has": {op: loopback, block: apiDoor("UP", "insecure = true\n client_cert {\n "+
			"pki = \"web\"\n}\n") + "pki \"web\" {\n path = \"pki/issue/web\"\n key_file = \"secrets/key\"\n}\n",
			says: `warning the task gets the key of client_cert too: pki "web" has key_file`},
		"a certificate whose key it has not": {op: loopback, block: apiDoor("UP", "insecure = true\n client_cert {\n pki = "+
			"\"web\"\n}\n") + "pki \"web\" {\n path = \"pki/issue/web\"\n ca_file = \"secrets/ca\"\n}\n"},
	} {
		t.Run(sentence, func(t *testing.T) {
			for _, of := range []struct {
				value     *string
				otherwise string
			}{{&c.wraps, "exec"}, {&c.task, hiddenIdentity},
				{&c.block, open}} {
				if *of.value == "" {
					*of.value = of.otherwise
				}
			}
			block := strings.NewReplacer("UP", up.URL, "LOCAL", strings.Replace(up.URL, "127.0.0.1", "localhost", 1)).Replace(
				"command = \"x\"\n" + c.block)
			said := doorsLooked(t, c.wraps, c.group, c.task, block, !c.elsewhere, c.op)
			if c.says == "" {
				must.SliceEmpty(t, said, must.Sprint(said))
				return
			}
			must.SliceLen(t, 1, said, must.Sprint(said))
			must.StrHasPrefix(t, c.says, said[0])
		})
	}
	must.Zero(t, calls)
}

// alsoReads is a template that asks for a path.
func alsoReads(at string) string {
	return fmt.Sprintf("template {\n data = \"{{ secret \\\"%s\\\" }}\"\n destination = \"secrets/a\"\n}\n", at)
}
