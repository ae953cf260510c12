package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// silentNeighbour is another task of the group, which has no door.
const silentNeighbour = `
task "neighbour" {
  driver = "vault-exec"
  config {
    command = "/bin/sh"
    args    = ["-c", "sleep 600"]
  }
  resources {
    cpu    = 20
    memory = 32
  }
}`

// databaseDoor is a door at the port 6432 to the stack's PostgreSQL, with dynamic credentials of a vault block of its
// own.
func databaseDoor(t *testing.T, s *stack.Stack, j job) string {
	must.NoError(t, s.Vault.DatabaseRole(t.Context(), j.Name, time.Hour, time.Hour))
	must.NoError(t, s.Vault.Role(t.Context(), j.Name,
		fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, j.Name), nil))
	field := func(name string) string {
		return fmt.Sprintf("{{ with secret \"database/creds/%s\" }}{{ .Data.%s }}{{ end }}", j.Name, name)
	}
	return fmt.Sprintf("vault {\n name = \"db\"\n role = %q\n identity_file = \"private/vault.jwt\"\n }\n", j.Name) +
		fmt.Sprintf("door \"db\" {\n vault = \"db\"\n postgres = \"postgres://127.0.0.1:%d/postgres?sslmode=disable\"\n "+
			"insecure = true\n username = %q\n password = %q\n listen = 6432\n }\n", s.Postgres.Port, field("username"),
			field("password"))
}

// TestDoorsOfATaskWithoutANetwork: all that the task reaches are its doors, and another task of its group has none of
// them. The plugin's end changes nothing.
func TestDoorsOfATaskWithoutANetwork(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Postgres: true})
	ctx := within(t, 4*time.Minute)
	const key = "the-key-of-the-api"
	a := newAPI(t, key)
	j := job{Name: "door-listen", Driver: "vault-exec", Hidden: true,
		Group: "network {\n mode = \"cni/doors\"\n }" + silentNeighbour}
	put(t, s, j, map[string]any{"key": key})
	j.Config = hiddenVault + a.door(j, "key", "listen = 4000") + databaseDoor(t, s, j)
	registered, alloc := register(t, s, shell(j, stay))
	must.NoError(t, alloc.Running(ctx))
	says := func(task, command, want string) {
		t.Helper()
		eventually(t, time.Minute, func() error { // while the plugin starts, Nomad has nobody to ask
			stdout, stderr, _, err := alloc.Exec(ctx, task, false, "", "/bin/sh", "-c", command)
			if err == nil && !strings.Contains(stdout+stderr, want) {
				err = fmt.Errorf("%s says %s%s", command, stdout, stderr)
			}
			return err
		})
	}
	works := func() {
		t.Helper()
		says(j.Name, `curl -sS "$SHOP_URL/me"`, "you are "+strings.Repeat("*", len(key)))
		says(j.Name, "psql -At -c 'SELECT current_user'", "v-")
		says(j.Name, `psql -At -c 'SELECT current_user' "$DB_URL"`, "v-")
	}
	works()
	says(j.Name, "curl -sS "+a.URL, "Failed to connect")
	says("neighbour", "curl -sS http://127.0.0.1:4000/me", "the path does not begin with the segment")
	says("neighbour", "psql postgres://door:x@127.0.0.1:6432/postgres", "door: over TCP the password is the one")
	killPlugins(t, s)
	works()

	namespace := filepath.Join("/var/run/netns", alloc.ID)
	_, err := os.Stat(namespace)
	must.NoError(t, err)
	must.NoError(t, registered.Stop(ctx))
	eventually(t, time.Minute, func() error {
		if _, err := os.Stat(namespace); !os.IsNotExist(err) {
			return fmt.Errorf("the network is there: %w", err)
		}
		return nil
	})
}

// TestContainerOutsideOfItsGroupsNetworkHasNoDoorThere: the door would listen where the container is not.
func TestContainerOutsideOfItsGroupsNetworkHasNoDoorThere(t *testing.T) {
	t.Parallel()
	s := common(t)
	j := job{Name: "door-outside", Driver: "vault-docker", Hidden: true, Group: "network {\n mode = \"bridge\"\n }"}
	j.Config = hiddenVault + newAPI(t, "").door(j, "key", "listen = 4000")
	alloc := run(t, s, j)
	_, err := alloc.Event(within(t, 2*time.Minute), j.Name,
		`door "shop": listen: with network_mode the container is not in the network of its group`)
	must.NoError(t, err)
}
