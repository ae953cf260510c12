package driver

import (
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// TestNamespaceIsInTheHeaderOfEveryRequest looks at what is sent, since Vault's community edition has no namespaces:
// at logins, reads, renewals, rotations and revocations, by the plugin process that logged in and by the next one.
func TestNamespaceIsInTheHeaderOfEveryRequest(t *testing.T) {
	const team, second = "namespace = \"team\"\n", "vault {\n name = \"second\"\n role = \"app\"\n namespace = " +
		"\"second\"\n}\n"
	for name, test := range map[string]struct {
		cluster, block, more string
		want                 []string
		env                  string
	}{
		"none":                            {want: []string{""}},
		"of the cluster":                  {cluster: "org", want: []string{"org"}, env: "org"},
		"of the task":                     {block: team, want: []string{"team"}, env: "team"},
		"of the task, not of the cluster": {cluster: "org", block: team, want: []string{"team"}, env: "team"},
		"two": {cluster: "org", more: second + templateHCL("secrets/second", creds+kv, "vault = \"second\"\n"+onSignal),
			want: []string{"org", "second"}, env: "org"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.config.Clusters[0].Namespace = test.cluster
				must.NoError(t, h.Configure(h.config))
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
				h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, MaxTTL: 2 * time.Hour}
				h.write("green")
				r := h.start("vault {\n role = \"app\"\n env = true\n" + test.block + "}\n" + test.more +
					templateHCL("secrets/first", creds+kv, onSignal))
				must.Eq(t, test.env, r.process().env["VAULT_NAMESPACE"])
				after(3 * time.Hour)
				mend := h.Break(vaulttest.Fault{Match: "GET secret/data/web", Status: 403})
				after(5 * time.Minute)
				mend()
				h.reboot()
				r.recovered()
				after(3 * time.Hour)
				r.stop()
				after(olderLinger)
				h.nothingLeft()
				for _, call := range []string{"PUT auth/jwt-nomad/login", "GET database/creds/app", "GET secret/data/web",
					"GET sys/internal/ui/mounts/",
					"PUT auth/token/renew-self", "PUT sys/leases/renew", "PUT sys/leases/revoke",
					"GET auth/token/lookup-self", "PUT auth/token/revoke-self"} {
					must.Positive(t, h.Calls(call), must.Sprint(call))
				}
				must.Eq(t, strings.Join(test.want, ","), strings.Join(h.Namespaces(), ","))
			})
		})
	}
}
