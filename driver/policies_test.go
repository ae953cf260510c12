package driver

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/tokenrole"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// issuing makes the host's cluster one that makes tokens by a token role, of which tasks of every namespace may ask
// the policies app-*. It returns the cluster's own token.
func (h *host) issuing() (own string) {
	own = h.MakeOwn(24 * time.Hour)
	h.Makes["nomad"] = vaulttest.TokenRole{Period: time.Hour}
	cluster := h.Cluster()
	cluster.Role, cluster.Token = "nomad", vault.Token(own)
	h.config.Clusters, h.config.Allow = []vault.Cluster{cluster}, config.Allow{"default": {"*": {"app-*"}}}
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
		r := h.start(asking(`"app-web"`, "file = true") + templateHCL("secrets/user", creds, onNoop))
		first := only(t, h.Tokens())
		must.Zero(t, h.Logins())
		h.reboot()
		r.recovered()
		after(5 * time.Hour)
		must.Eq(t, first, only(t, h.Tokens()), must.Sprint("adopted"))
		must.Eq(t, 1, h.Minted())

		r.stop()
		r = h.start(asking(`"app-web", "app-more"`, "file = true") + templateHCL("secrets/user", creds, onNoop))
		after(time.Second)
		must.NotEq(t, first, only(t, h.Tokens()), must.Sprint("other policies are another token, and the one before is "+
			"revoked"))
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
		h.start(asking(`"app-web", "app-more"`) + templateHCL("secrets/user", creds, onNoop))
		h.reboot()
		record := only(t, h.store.All())
		must.Eq(t, "app-more,app-web", record.Sessions["default"].Login.Policies)
		restored := credentials.Restore(h.env(), taskOf(record), record)
		must.Eq(t, []string{"default", "app-more", "app-web"}, restored.Session("default").Policies())
		waiting, lost := restored.Revoke(h.Context())
		must.NoError(t, cmp.Or(waiting, lost))
		after(time.Hour)
	})
}

func TestStartsThatATokenRoleRefuses(t *testing.T) {
	for sentence, c := range map[string]struct{ config, says string }{
		"a template without a vault block": {templateHCL("secrets/user", creds, onNoop),
			`vault "default": policies is missing`},
		"a policy that is not allowed": {asking(`"admin"`) + templateHCL("secrets/user", creds, onNoop),
			`vault "default": policies: "admin" is not allowed`},
		"a role": {asApp + templateHCL("secrets/user", creds, onNoop),
			`vault "default": role is set`},
		"a policy that nobody asks with": {asking(`"admin"`), `vault "default": policies: "admin" is not allowed`},
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
		must.Eq(t, map[string]string{"default": tokenrole.Ready}, status)
		config := h.config
		config.Clusters[0].Token = "hvs.unknown"
		must.NoError(t, h.Configure(config))
		<-changed
		status, _ = h.Clusters()
		must.StrContains(t, status["default"], "look up the cluster's own token: denied by Vault")
	})
}

// TestDoorOfTheOperator: the task may hold its identity, and neither it nor another block of the job gets at the token.
func TestDoorOfTheOperator(t *testing.T) {
	bubble(t, func(h *host) {
		h.config.Doors.Own = map[string]*config.OperatorDoor{"pay": {Namespaces: []string{"*"}, Policies: []string{"pay"},
			Door: config.Door{URL: "https://pay.example.com", Bearer: kv}}}
		h.issuing()
		k := &doorkeeperOfTests{open: map[string]*doorOfTests{}}
		h.Driver.doors = k
		h.write("green")
		r := h.start(`door "pay" {}`)
		must.Eq(t, "Bearer green", k.only(h).last().Header["Authorization"])
		must.Zero(t, h.Logins())
		first := only(t, h.Tokens())

		h.reboot() // the next plugin process has another keeper of doors, and the same door
		h.Driver.doors = k
		r.recovered()
		after(time.Hour)
		must.Eq(t, first, only(t, h.Tokens()), must.Sprint("adopted"))
		r.stop()
		after(time.Minute)
		must.MapEmpty(t, k.open)
		must.SliceEmpty(t, h.Tokens())
	})
}

// TestOperatorTakesADoorAway: the task that runs goes on, is told, and its token is revoked.
func TestOperatorTakesADoorAway(t *testing.T) {
	bubble(t, func(h *host) {
		h.config.Doors.Own = map[string]*config.OperatorDoor{"pay": {Namespaces: []string{"*"}, Policies: []string{"pay"},
			Door: config.Door{URL: "https://pay.example.com", Bearer: kv}}}
		h.issuing()
		h.Driver.doors = &doorkeeperOfTests{open: map[string]*doorOfTests{}}
		h.write("green")
		r := h.start(`door "pay" {}`)
		h.config.Doors.Own = nil
		h.reboot()
		r.recovered()
		after(time.Minute)
		must.Eq(t, 1, h.logged(`door "pay": this node's operator does not have it any more`))
		must.SliceNotEmpty(t, h.machine.running())
		must.SliceEmpty(t, h.Tokens())
		r.stop()
	})
}
