job "mongo-query" {
  namespace = "default"
  type      = "batch"

  group "mongo-query" {
    task "mongo-query" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      identity {
        file = true
      }

      config {
        image   = "mongo:7"
        command = "mongosh"
        args = [
          "--username", "$(MONGO_USERNAME)",
          "--password", "$(MONGO_PASSWORD)",
          "--eval", "db.runCommand({connectionStatus : 1})",
          "--quiet",
          "$(MONGO_URL)",
        ]

        vault {
          role        = "mongo-dynamic-secret"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = <<EOF
{{with secret "database/creds/mongo"}}
MONGO_USERNAME={{.Data.username}}
MONGO_PASSWORD={{.Data.password}}
{{end}}
{{range nomadService 1 (env "NOMAD_ALLOC_ID") "mongo"}}
MONGO_URL=mongodb://{{.Address}}:{{.Port}}
{{end}}
EOF
          destination = "secrets/env"
          env         = true
        }
      }
    }
  }
}
