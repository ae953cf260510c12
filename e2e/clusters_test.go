package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// TestOneTaskOfSeveralClustersRolesAndIdentities: four vault blocks, of which no two log in alike, and each template
// gets what its own may read. "secure" is the Vault of "default" behind TLS.
func TestOneTaskOfSeveralClustersRolesAndIdentities(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Clusters: []string{"west"}, Proxies: map[string]bool{"secure": true},
		Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec"), stack.Wrap("docker", "vault-docker")}})
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			severalClusters(t, s, job{Name: "several-" + driver[len("vault-"):], Driver: driver, Args: []string{"show"}})
		})
	}
}

type vaultBlock struct{ name, cluster, server, identity, audience string }

// blocks are the vault blocks of the task: whom they ask, and what their role wants the identity to be for.
var blocks = []vaultBlock{
	{"default", "default", "default", "vault", "vault.io"},
	{"ops", "default", "default", "ops", "ops.example"},
	{"west", "west", "west", "vault", "vault.io"},
	{"secure", "secure", "default", "ops", "ops.example"},
}

func severalClusters(t *testing.T, s *stack.Stack, j job) {
	ctx := within(t, 2*time.Minute)
	j.Task = "identity {\n name = \"ops\"\n aud = [\"ops.example\"]\n file = true\n ttl = \"1h\"\n }"
	write := func(b vaultBlock, color string) {
		t.Helper()
		must.NoError(t, s.Clusters[b.server].Put(ctx, "kv/data/"+j.Name+"-"+b.name,
			map[string]any{"data": map[string]any{"color": color + " in " + b.name}}))
	}
	for _, b := range blocks {
		must.NoError(t, s.Clusters[b.server].Role(ctx, j.Name+"-"+b.name,
			fmt.Sprintf(`path "kv/data/%s-%s" { capabilities = ["read"] }`, j.Name, b.name),
			map[string]any{"bound_audiences": []string{b.audience}}))
		write(b, "green")
		j.Args = append(j.Args, "/secrets/"+b.name)
		j.Config += fmt.Sprintf("vault {\n name = %q\n cluster = %q\n role = %q\n identity = %q\n file = true\n }\n", b.name,
			b.cluster, j.Name+"-"+b.name, b.identity)
		j.Config += file("secrets/"+b.name, fmt.Sprintf(`{{ with secret "kv/data/%s-%s" }}{{ .Data.data.color }}{{ end }}`,
			j.Name, b.name),
			onSignal+fmt.Sprintf("\n vault = %q", b.name))
	}
	alloc := run(t, s, j)

	tokens := map[string]string{}
	for _, b := range blocks {
		must.Eq(t, "green in "+b.name, shown(t, ctx, alloc, j, "/secrets/"+b.name, 1)[0])
		tokens[b.name] = find(t, alloc, j, strings.TrimSuffix("secrets/vault_token_"+b.name, "_default"), `.+`)
		token, err := s.Clusters[b.server].API.Auth().Token().LookupWithContext(ctx, tokens[b.name])
		must.NoError(t, err, must.Sprint(b.name))
		must.Eq[any](t, []any{"default", j.Name + "-" + b.name}, token.Data["policies"])
	}
	for i, b := range blocks { // one at a time: each session is looked after
		write(b, "blue")
		for k, other := range blocks {
			color := "green"
			if k <= i {
				color = "blue"
			}
			must.Eq(t, color+" in "+other.name, shown(t, ctx, alloc, j, "/secrets/"+other.name, i+2)[i+1])
		}
	}
	must.Len(t, len(blocks), changed(t, ctx, alloc, j, len(blocks)))

	stop(t, ctx, s, alloc, j)
	eventually(t, 2*slack, func() error {
		for _, b := range blocks {
			if _, err := s.Clusters[b.server].API.Auth().Token().LookupWithContext(ctx, tokens[b.name]); err == nil {
				return fmt.Errorf("the token of %q lives", b.name)
			} else if answer := (*vault.ResponseError)(nil); !errors.As(err, &answer) {
				return err
			}
		}
		return nil
	})
}
