package driver

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// issuing makes the host's cluster one that makes tokens by a token role, of which tasks of every namespace may ask the policies app-*. It returns
// the cluster's own token.
func (h *host) issuing() (own string) {
	own = h.MakeOwn(24 * time.Hour)
	h.Makes["nomad"] = vaulttest.TokenRole{Period: time.Hour}
	cluster := h.Cluster()
	cluster.Role, cluster.Token = "nomad", vault.Token(own)
	h.config.Clusters, h.config.Allow = []vault.Cluster{cluster}, Allow{"default": {"*": {"app-*"}}}
	h.reboot()
	return own
}

// asking is a vault block with policies, and more.
func asking(policies string, more ...string) string {
	return "vault {\n policies = [" + policies + "]\n" + strings.Join(more, "\n") + "\n}\n"
}

func TestTaskOfATokenRole(t *testing.T) {
	bubble(t, func(h *host) {
		h.issuing()
		must.NoError(t, os.Mkdir(filepath.Join(h.alloc, "web/private"), 0o755))
		h.put("web/private/vault_token", "hvs.nomads") // Nomad's own is not asked for
		must.NoError(t, os.Remove(filepath.Join(h.alloc, "web/secrets/nomad_vault.jwt")))
		r := h.start(asking(`"app-web"`, "file = true") + block("secrets/user", creds, onNoop))
		first := sole(t, h.Tokens())
		must.Zero(t, h.Logins())
		h.reboot()
		r.recovered()
		after(5 * time.Hour)
		must.Eq(t, first, sole(t, h.Tokens()), must.Sprint("adopted"))
		must.Eq(t, 1, h.Minted())

		r.stop()
		r = h.start(asking(`"app-web", "app-more"`, "file = true") + block("secrets/user", creds, onNoop))
		after(time.Second)
		must.NotEq(t, first, sole(t, h.Tokens()), must.Sprint("other policies are another token, and the one before is revoked"))
		h.RevokeTokens()
		r.stop()
		after(stopLinger)
		h.nothingLeft()
	})
}

// A token that is lost while no run of the task has claimed its session is none to make anew without its policies.
func TestSessionOfATokenRoleIsRestoredWithItsPolicies(t *testing.T) {
	bubble(t, func(h *host) {
		h.issuing()
		h.start(asking(`"app-web", "app-more"`) + block("secrets/user", creds, onNoop))
		h.reboot()
		restored := h.restore(sole(t, h.store.all()))
		must.Eq(t, []string{"app-more", "app-web"}, restored.conf.vault("default").Policies)
		must.Eq(t, []string{"app-more", "app-web"}, restored.options(restored.conf.vault("default")).Login.Policies)
		waiting, lost := restored.close(h.Context())
		must.NoError(t, cmp.Or(waiting, lost))
		after(time.Hour)
	})
}

func TestStartsThatATokenRoleRefuses(t *testing.T) {
	for sentence, c := range map[string]struct{ config, says string }{
		"a template without a vault block": {block("secrets/user", creds, onNoop), `vault "default": policies is missing`},
		"a policy that is not allowed":     {asking(`"admin"`) + block("secrets/user", creds, onNoop), `vault "default": policies: "admin" is not allowed`},
		"a role":                           {asApp + block("secrets/user", creds, onNoop), `vault "default": role is set`},
		"a policy that nobody asks with":   {asking(`"admin"`), `vault "default": policies: "admin" is not allowed`},
	} {
		t.Run(sentence, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.issuing()
				must.ErrorContains(t, h.refused(c.config), c.says)
				must.Zero(t, h.Calls("PUT auth/token/create")+h.Calls("POST auth/token/create"))
			})
		})
	}
}

// What is configured while the plugin serves is looked after, too.
func TestClustersAreLookedAfterFromTheirConfigurationOn(t *testing.T) {
	bubble(t, func(h *host) {
		h.issuing()
		after(time.Second)
		status, changed := h.Clusters()
		must.Eq(t, map[string]string{"default": vault.Ready}, status)
		config := h.config
		config.Clusters[0].Token = "hvs.unknown"
		must.NoError(t, h.Configure(config))
		<-changed
		status, _ = h.Clusters()
		must.StrContains(t, status["default"], "look up the cluster's own token: denied by Vault")
	})
}

func TestPoliciesThatATaskMayAskFor(t *testing.T) {
	op := Config{Clusters: []vault.Cluster{{Name: "default"}, {Name: "roles", TokenFile: "/t"}, {Name: "none", Token: "hvs.x"}},
		Allow: Allow{"roles": {"*": {"app-*", "team/*"}, "prod": {"Db", "cache-[0-9]"}}}}
	for sentence, c := range map[string]struct {
		block     VaultConfig
		namespace string
		says      string // empty: admitted
	}{
		"what every namespace may":             {VaultConfig{Cluster: "roles", Policies: []string{"app-x", "team/a"}}, "dev", ""},
		"what its namespace may, too":          {VaultConfig{Cluster: "roles", Policies: []string{"app-x", "db", "cache-1"}}, "prod", ""},
		"capitals, which Vault makes small":    {VaultConfig{Cluster: "roles", Policies: []string{"APP-X"}}, "dev", ""},
		"what another namespace may":           {VaultConfig{Cluster: "roles", Policies: []string{"db"}}, "dev", `policies: "db" is not allowed in Nomad namespace "dev": the operator allows ["app-*" "team/*"] there`},
		"a namespace by the name of all":       {VaultConfig{Cluster: "roles", Policies: []string{"db"}}, "*", `policies: "db" is not allowed`},
		"one of several":                       {VaultConfig{Cluster: "roles", Policies: []string{"app-x", "admin"}}, "prod", `policies: "admin" is not allowed in Nomad namespace "prod"`},
		"a folder that the star does not mean": {VaultConfig{Cluster: "roles", Policies: []string{"team/a/b"}}, "prod", `policies: "team/a/b" is not allowed`},
		"a cluster that allows nothing":        {VaultConfig{Cluster: "none", Policies: []string{"app-x"}}, "prod", `policies: "app-x" is not allowed in Nomad namespace "prod": the operator allows [] there (allow in vault "none" of the plugin's config)`},
		"root":                                 {VaultConfig{Cluster: "roles", Policies: []string{"ROOT"}}, "prod", `policies: "root" is not for tasks`},
		"two in one":                           {VaultConfig{Cluster: "roles", Policies: []string{"app-x,admin"}}, "prod", `policies: "app-x,admin" is not the name of a policy`},
		"a space":                              {VaultConfig{Cluster: "roles", Policies: []string{"app-x "}}, "prod", `policies: "app-x " is not the name of a policy`},
		"nothing":                              {VaultConfig{Cluster: "roles", Policies: []string{""}}, "prod", `policies: "" is not the name of a policy`},
		"no policies":                          {VaultConfig{Cluster: "roles"}, "prod", `policies is missing: cluster "roles" makes tokens by its token role`},
		"a role":                               {VaultConfig{Cluster: "roles", Role: "api"}, "prod", `role is set, but cluster "roles" makes tokens by its token role: leave role out and name policies`},
		"a namespace of Vault's":               {VaultConfig{Cluster: "roles", Namespace: "a"}, "prod", `namespace is set, but`},
		"another identity":                     {VaultConfig{Cluster: "roles", Identity: "mine"}, "prod", `identity is set, but`},
		"a file of an identity":                {VaultConfig{Cluster: "roles", IdentityFile: "secrets/x"}, "prod", `identity_file is set, but`},
		"policies where tasks log in":          {VaultConfig{Cluster: "default", Policies: []string{"app-x"}}, "prod", `policies is set, but cluster "default" has no token role`},
		"none where tasks log in":              {VaultConfig{Cluster: "default", Role: "api"}, "prod", ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			c.block.Name, c.block.ChangeMode = "default", "noop"
			if c.block.Identity == "" {
				c.block.Identity = "vault"
			}
			conf := TaskConfig{Vaults: []VaultConfig{c.block}}
			err := conf.validateVaults()
			if err == nil {
				err = conf.permitted(op, c.namespace)
			}
			if c.says == "" {
				must.NoError(t, err)
				return
			}
			must.ErrorContains(t, err, `vault "default": `+c.says)
			must.StrNotContains(t, err.Error(), "\n")
		})
	}
}
