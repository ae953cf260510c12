package config

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
)

func TestPoliciesThatATaskMayAskFor(t *testing.T) {
	op := Operator{Clusters: []vault.Cluster{{Name: "default"}, {Name: "roles", TokenFile: "/t"},
		{Name: "none", Token: "hvs.x"}},
		Allow: Allow{"roles": {"*": {"app-*", "team/*"}, "prod": {"Db", "cache-[0-9]"}}}}
	for sentence, c := range map[string]struct {
		block     Vault
		namespace string
		says      string // empty: admitted
	}{
		"what every namespace may": {Vault{Cluster: "roles", Policies: []string{"app-x", "team/a"}}, "dev", ""},
		"what its namespace may, too": {Vault{Cluster: "roles", Policies: []string{"app-x", "db", "cache-1"}},
			"prod", ""},
		"capitals, which Vault makes small": {Vault{Cluster: "roles", Policies: []string{"APP-X"}}, "dev", ""},
		"what another namespace may": {Vault{Cluster: "roles", Policies: []string{"db"}}, "dev",
			`policies: "db" is not allowed in Nomad namespace "dev": the operator allows ["app-*" "team/*"] there`},
		"a namespace by the name of all": {Vault{Cluster: "roles", Policies: []string{"db"}}, "*",
			`policies: "db" is not allowed`},
		"one of several": {Vault{Cluster: "roles", Policies: []string{"app-x", "admin"}}, "prod",
			`policies: "admin" is not allowed in Nomad namespace "prod"`},
		"a folder that the star does not mean": {Vault{Cluster: "roles", Policies: []string{"team/a/b"}}, "prod",
			`policies: "team/a/b" is not allowed`},
		"a cluster that allows nothing": {Vault{Cluster: "none", Policies: []string{"app-x"}}, "prod",
			`policies: "app-x" is not allowed in Nomad namespace "prod": the operator allows [] there (allow in vault "none" of the plugin's config)`},
		"root": {Vault{Cluster: "roles", Policies: []string{"ROOT"}}, "prod",
			`policies: "root" is not for tasks`},
		"two in one": {Vault{Cluster: "roles", Policies: []string{"app-x,admin"}}, "prod",
			`policies: "app-x,admin" is not the name of a policy`},
		"a space": {Vault{Cluster: "roles", Policies: []string{"app-x "}}, "prod",
			`policies: "app-x " is not the name of a policy`},
		"nothing": {Vault{Cluster: "roles", Policies: []string{""}}, "prod",
			`policies: "" is not the name of a policy`},
		"no policies": {Vault{Cluster: "roles"}, "prod",
			`policies is missing: cluster "roles" makes tokens by its token role`},
		"a role": {Vault{Cluster: "roles", Role: "api"}, "prod",
			`role is set, but cluster "roles" makes tokens by its token role: leave role out and name policies`},
		"a namespace of Vault's": {Vault{Cluster: "roles", Namespace: "a"}, "prod", `namespace is set, but`},
		"another identity":       {Vault{Cluster: "roles", Identity: "mine"}, "prod", `identity is set, but`},
		"a file of an identity": {Vault{Cluster: "roles", IdentityFile: "secrets/x"}, "prod",
			`identity_file is set, but`},
		"policies where tasks log in": {Vault{Cluster: "default", Policies: []string{"app-x"}}, "prod",
			`policies is set, but cluster "default" has no token role`},
		"none where tasks log in": {Vault{Cluster: "default", Role: "api"}, "prod", ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			c.block.Name, c.block.ChangeMode = "default", "noop"
			if c.block.Identity == "" {
				c.block.Identity = "vault"
			}
			conf := Task{Vaults: []Vault{c.block}}
			err := conf.validateVaults()
			if err == nil {
				err = conf.Permit(op, c.namespace)
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
