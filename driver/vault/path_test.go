package vault_test

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestPathsThatAreAsked(t *testing.T) {
	for _, path := range []string{"secret/a", "/secret/a/", " secret/a ", "secret/...", "secret/.a/b..", "secret/100%",
		"secret/50%25", "secret/a b", "secret/ä/名"} {
		must.NoError(t, vault.CheckPath(path), must.Sprint(path))
	}
}

func TestConfiguredTokenPrintsItselfAsRedacted(t *testing.T) {
	c := vault.Cluster{Token: "hvs." + vaulttest.Planted}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		must.StrNotContains(t, fmt.Sprintf(format, c), vaulttest.Planted)
	}
}
