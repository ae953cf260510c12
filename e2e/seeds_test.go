package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// The jobs of the articles that this project comes from, moved to it: the driver's name, an identity, and the vault and
// template blocks inside config.

// tokenJob is a job of "Let IO Handle your Secrets": it prints the token that it was given.
const tokenJob = `
job "%[1]s" {
  datacenters = ["dc1"]
  type        = "batch"
  group "app" {
    task "%[1]s" {
      driver = "%[2]s"
      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
      }
      config {
        %[3]s
        vault {
          role = "nomad-workloads"
          %[4]s
        }
      }
    }
  }
}`

func TestSeedJobsPrintTheirToken(t *testing.T) {
	t.Parallel()
	for name, seed := range map[string]struct{ command, line, asks string }{
		"cat":      {"command = \"cat\"\n args = [\"secrets/vault_token\"]", "cat secrets/vault_token; echo", "file = true"},
		"printenv": {"command = \"printenv\"", "env", "env = true"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, name, func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				command := seed.command
				if j.Docker() { // It must not end at once: Nomad's docker driver loses what a container has said just before.
					command = fmt.Sprintf("image = %q\n init = true\n command = \"sh\"\n args = [\"-c\", \"%s; sleep 600\"]",
						stack.Image, seed.line)
				}
				_, alloc := register(t, s, fmt.Sprintf(tokenJob, j.Name, j.Driver, command, seed.asks))
				var token string
				eventually(t, time.Minute, func() error {
					printed, err := alloc.Logs(ctx, j.Name, "stdout")
					if token = vaultToken.FindString(printed); err == nil && token == "" {
						err = errors.New("no token was printed")
					}
					return err
				})
				ofJob(t, ctx, s, j, token) // It lives on for the linger, like that of any task which ends by itself.
				if !j.Docker() {
					ended, err := alloc.Ended(ctx)
					must.NoError(t, err)
					must.Eq(t, "complete", ended.ClientStatus)
				}
			})
		})
	}
}

// serverJob is the database server of HashiCorp's tutorial, PostgreSQL for MongoDB, on a port of Nomad's choice: its
// root password comes from Vault. It runs under vault-exec, on the host's PostgreSQL, since no registry is at hand with
// an image of it.
const serverJob = `
job "%[1]s" {
  namespace = "default"
  group "db" {
    network {
      port "db" {}
    }
    service {
      provider = "nomad"
      name     = "%[1]s"
      port     = "db"
    }
    task "%[1]s" {
      driver = "vault-exec"
      user   = "postgres"
      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
      }
      config {
        command = "/bin/sh"
        args    = ["-ec", <<EOT
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
echo "$POSTGRES_PASSWORD" >/secrets/password
initdb -D /local/data -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=/secrets/password --no-sync --locale=C
exec postgres -D /local/data -p $NOMAD_PORT_db -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=16MB
EOT
        ]
        vault {}
        template {
          data        = <<EOF
POSTGRES_USER=root
POSTGRES_PASSWORD={{with secret "kv/data/default/%[1]s/config"}}{{.Data.data.root_password}}{{end}}
EOF
          destination = "secrets/env"
          env         = true
        }
      }
    }
  }
}`

// queryTemplate is that of the tutorial's second job, in the words of libpq.
const queryTemplate = `template {
  data        = <<EOF
{{with secret "database/creds/%[1]s"}}
PGUSER={{.Data.username}}
PGPASSWORD={{.Data.password}}
{{end}}
{{range nomadService 1 (env "NOMAD_ALLOC_ID") "%[1]s"}}
PGHOST={{.Address}}
PGPORT={{.Port}}
{{end}}
EOF
  destination = "secrets/env"
  env         = true
}`

func TestSeedJobsShareADatabase(t *testing.T) {
	each(t, "seed", func(t *testing.T, s *stack.Stack, query job) {
		ctx := within(t, 2*time.Minute)
		server := job{Name: query.Name + "-server"}
		put(t, s, server, map[string]any{"root_password": "secret-password"})
		_, database := register(t, s, fmt.Sprintf(serverJob, server.Name))
		must.NoError(t, database.Running(ctx))

		connection := fmt.Sprintf("postgresql://{{username}}:{{password}}@127.0.0.1:%d/postgres?sslmode=disable",
			port(t, ctx, s, server))
		eventually(t, time.Minute, func() error { // Vault connects as root with the password that the server has from Vault.
			return s.Vault.Put(ctx, "database/config/"+server.Name, map[string]any{"plugin_name": "postgresql-database-plugin",
				"allowed_roles": server.Name, "connection_url": connection, "username": "root", "password": "secret-password"})
		})
		must.NoError(t, s.Vault.Put(ctx, "database/roles/"+server.Name, map[string]any{"db_name": server.Name,
			"creation_statements": `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}'`, "default_ttl": "1h", "max_ttl": "24h"}))
		must.NoError(t, s.Vault.Role(ctx, server.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`,
			server.Name),
			map[string]any{"bound_claims": map[string]any{"nomad_namespace": "default", "nomad_job_id": query.Name}}))

		query.Type, query.Args = "batch", []string{"query"}
		query.Task = "identity {\n file = true\n }" // With it the template reads Nomad's services.
		query.Config = fmt.Sprintf("vault {\n role = %q\n }\n", server.Name) + fmt.Sprintf(queryTemplate, server.Name)
		alloc := run(t, s, query)
		user, err := alloc.Log(ctx, query.Name, "stdout", connected, 1)
		must.NoError(t, err)
		must.StrHasPrefix(t, "v-jwt-", user[0])
		ended, err := alloc.Ended(ctx)
		must.NoError(t, err)
		must.Eq(t, "complete", ended.ClientStatus)
	})
}

// port is where the job's service is.
func port(t *testing.T, ctx context.Context, s *stack.Stack, j job) int {
	t.Helper()
	var instances []*nomad.ServiceRegistration
	eventually(t, 30*time.Second, func() (err error) {
		instances, _, err = s.Nomad.API.Services().Get(j.Name, (&nomad.QueryOptions{}).WithContext(ctx))
		if err == nil && len(instances) == 0 {
			err = fmt.Errorf("service %s has no instance", j.Name)
		}
		return err
	})
	return instances[0].Port
}
