package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// identityBlock is the identity of a job's task.
var identityBlock = regexp.MustCompile(`(?s)identity \{.*?\}\n`)

// TestTokenThatNomadDerivedIsUsedAsItIs: a job that keeps Nomad's own vault block needs nothing else. The token is
// Nomad's to renew, to replace and to end.
func TestTokenThatNomadDerivedIsUsedAsItIs(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Postgres: true, NomadsOwn: true})
	must.NoError(t, audit(t.Context(), s))
	t.Run("example", func(t *testing.T) { runExample(t, s, "nomad-token.nomad.hcl") })
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			ctx := within(t, 3*time.Minute)
			j := job{Name: "derived-" + driver, Driver: "vault-" + driver, Args: []string{"show", "/secrets/color",
				"/secrets/accessor", "/secrets/agents"}}
			must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, time.Hour, time.Hour))
			policy := fmt.Sprintf("path \"kv/data/default/%s/*\" { capabilities = [\"read\"] }\npath "+
				"\"database/creds/%[1]s\" { capabilities = [\"read\"] }\n", j.Name)
			must.NoError(t, s.Vault.Role(ctx, j.Name, policy+revokes, map[string]any{"token_period": "10s"}))
			put(t, s, j, map[string]any{"color": "green"})
			j.Task = fmt.Sprintf("vault {\n role = %q\n change_mode = \"noop\"\n }\n", j.Name) + agentsSecrets(j)
			_, _, err := s.Nomad.API.Variables().Update(&nomad.Variable{Path: "nomad/jobs/" + j.Name,
				Items: nomad.VariableItems{"color": "red"}}, (&nomad.WriteOptions{}).WithContext(ctx))
			must.NoError(t, err)
			j.Config = file("secrets/color", inJob(j, "color"), onSignal) + file("secrets/db.env", credentials(j), onNoop) +
				file("secrets/accessor", `{{ with secret "auth/token/lookup-self" }}{{ .Data.accessor }}{{ end }}`, onSignal) +
				file("secrets/agents", `{{ env "OF_VAULT" }} {{ env "OF_NOMAD" }}`, onNoop)
			_, alloc := register(t, s, identityBlock.ReplaceAllString(j.spec(), ""))

			accessor := shown(t, ctx, alloc, j, "/secrets/accessor", 1)[0]
			must.Eq(t, []string{accessor}, tokensOf(t, s, j.Name), must.Sprint("there is no second token"))
			must.Eq(t, "green red", shown(t, ctx, alloc, j, "/secrets/agents", 1)[0],
				must.Sprint("Nomad's own secret blocks stand beside ours"))
			_, err = alloc.Event(ctx, j.Name, `vault "default" Nomad's token `+accessor)
			must.NoError(t, err)
			put(t, s, j, map[string]any{"color": "blue"})
			must.Eq(t, "blue", shown(t, ctx, alloc, j, "/secrets/color", 2)[1])

			must.NoError(t, s.Vault.API.Auth().Token().RevokeAccessorWithContext(ctx, accessor))
			next := shown(t, ctx, alloc, j, "/secrets/accessor", 3)[2]
			must.NotEq(t, accessor, next)
			must.Eq(t, []string{next}, tokensOf(t, s, j.Name), must.Sprint("Nomad has replaced it, and nobody else"))
			must.Zero(t, state(t, ctx, alloc, j).Restarts)

			renewed := watched(s, j).granted(t, "auth/token/renew-self")
			must.Positive(t, renewed)
			stop(t, ctx, s, alloc, j)
			eventually(t, 2*slack, func() error {
				if leases, err := s.Vault.Leases(ctx, j.Name); err != nil || len(leases) > 0 {
					return fmt.Errorf("leases %v are left: %w", leases, errors.Join(err))
				}
				return nil
			})
			must.Zero(t, watched(s, j).granted(t, "auth/token/revoke-self"), must.Sprint("Nomad's token is not ours to revoke"))
		})
	}
}

// agentsSecrets are two of Nomad's own secret blocks, which the agent reads once, before any driver is asked.
func agentsSecrets(j job) string {
	return fmt.Sprintf(`
secret "of_vault" {
  provider = "vault"
  path     = "kv/data/default/%[1]s/config"
  config {
    engine = "kv_v2"
  }
}
secret "of_nomad" {
  provider = "nomad"
  path     = "nomad/jobs/%[1]s"
}
env {
  OF_VAULT = "${secret.of_vault.color}"
  OF_NOMAD = "${secret.of_nomad.color}"
}
`, j.Name)
}
