# A task that uses PostgreSQL without a user and a password: psql finds the door by PGHOST, which the driver sets. The
# door logs in as the user that Vault has made for this task, see database.sh. A connection that begins after the user
# was replaced has the new one. The old one is dropped when no connection uses it.
#
#   nomad job run -var postgres_port=5432 door-database.nomad.hcl
#   nomad alloc logs -job door-database
variable "postgres_host" {
  default = "127.0.0.1" # a door connects there if the plugin's doors block has allow_cidrs = ["127.0.0.0/8"]
}

variable "postgres_port" {
  default = "5432"
}

job "door-database" {
  group "database" {
    task "query" {
      driver = "vault-exec"

      # The driver logs in with the identity. The task does not see private/, and so cannot.
      identity {
        name     = "vault"
        aud      = ["vault.io"]
        file     = true
        filepath = "private/vault.jwt"
        ttl      = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while psql -Atc \"select 'I am ' || current_user\"; do sleep 1; done"]

        vault {
          role          = "database"
          identity_file = "private/vault.jwt"
        }

        # Leave ?sslmode=disable and insecure out where the server has TLS: the door verifies its certificate then.
        door "db" {
          postgres = "postgres://${var.postgres_host}:${var.postgres_port}/postgres?sslmode=disable"
          insecure = true
          username = "{{ with secret \"database/creds/database\" }}{{ .Data.username }}{{ end }}"
          password = "{{ with secret \"database/creds/database\" }}{{ .Data.password }}{{ end }}"
        }
      }
    }
  }
}
