package e2e

import (
	"crypto/md5" //nolint:gosec // md5sum is what every image has
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// The variables of blocks in what Nomad's driver reads, and the node's in templates.

// TestVariablesInArguments has a program say what it was given, without showing it.
func TestVariablesInArguments(t *testing.T) {
	each(t, "arguments", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		secrets := map[string]string{"before": rand.Text() + " $(secret)", "after": rand.Text()}
		put(t, s, j, map[string]any{"secret": secrets["before"]})
		j.Config = "vault {\n env = true\n }\n" + secret(j, "env", "config", "env = true\n "+onRestart) +
			file("secrets/node", `{{ env "node.unique.name" }} {{ env "node.datacenter" }} {{ env "SYSTEM" }} `+
				`{{ env "VAULT_ADDR" }} {{ len (env "VAULT_TOKEN") }}`, onNoop)
		j.Task = "env {\n SYSTEM = \"${attr.kernel.name}\"\n }"
		if j.Docker() {
			j.Config += "labels {\n e2e = \"$(VAULT_ADDR)\"\n }\n"
		}
		_, alloc := register(t, s, program(j, "/bin/sh", "-c", `echo "$(printf %s "$1" | md5sum) $2 $3"; `+stay, "sh",
			"$(secret)", "$$(secret)", "$(nobody)"))
		said := func(value string) {
			sum := fmt.Sprintf("%x", md5.Sum([]byte(value))) //nolint:gosec // see above
			_, err := alloc.Log(ctx, j.Name, "stdout", sum+`\s+- \$\(secret\) \$\(nobody\)`, 1)
			must.NoError(t, err)
		}
		said(secrets["before"])
		node, err := os.ReadFile(alloc.Path(j.Name, "secrets/node"))
		must.NoError(t, err)
		nodes, _, err := s.Nomad.API.Nodes().List(nil)
		must.NoError(t, err)
		must.StrHasPrefix(t, fmt.Sprintf("%s %s linux %s ", nodes[0].Name, nodes[0].Datacenter, s.Vault.Addr), string(node))
		must.False(t, strings.HasSuffix(string(node), " 0"))
		if j.Docker() {
			inspected, err := alloc.Container(ctx, j.Name)
			must.NoError(t, err)
			must.StrContains(t, string(inspected), `"e2e":"`+s.Vault.Addr)
		}
		put(t, s, j, map[string]any{"secret": secrets["after"]})
		said(secrets["after"])
		must.SliceEmpty(t, search(t, s, secrets))
	})
}
