# A PostgreSQL user for this task alone. Vault creates it when the task starts and drops it when the task stops; see
# database.sh. The driver renews the lease. When the lease cannot be renewed any more, the driver restarts the task with a
# new user.
#
#   nomad job run -var postgres_port=5432 database.nomad.hcl
variable "postgres_host" {
  default = "127.0.0.1"
}

variable "postgres_port" {
  default = "5432"
}

job "database" {
  group "database" {
    task "query" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      env {
        PGHOST     = var.postgres_host
        PGPORT     = var.postgres_port
        PGDATABASE = "postgres"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while psql -Atc \"select 'I am ' || current_user\"; do sleep 1; done"]

        vault {
          role = "database" # of Vault's auth method; it is bound to this job and door-database.nomad.hcl
        }

        # Both values come from one read, and so from one lease: they always match.
        template {
          data        = <<EOT
{{ with secret "database/creds/database" }}
PGUSER={{ .Data.username }}
PGPASSWORD={{ .Data.password }}
{{ end }}
EOT
          destination = "secrets/database.env"
          env         = true
          change_mode = "restart"
        }
      }
    }
  }
}
