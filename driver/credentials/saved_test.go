package credentials

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/state"
)

// A token that is lost while no run of the task has claimed its session is none to make anew without its policies.
func TestSavedSessionKnowsItsVaultBlock(t *testing.T) {
	block := config.Vault{Name: "default", Cluster: "west", Role: "app", Namespace: "team", Identity: "vault",
		IdentityFile: "private/x", Policies: []string{"app-more", "app-web"}}
	must.Eq(t, block, blockOf(state.Session{Name: "default", Login: loginOf(block)}))
}
