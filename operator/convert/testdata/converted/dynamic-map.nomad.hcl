job "several" {
  group "g" {
    task "g" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "acme/several:1"

        vault {
          role        = "several"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = <<EOF
{{ with secret "database/creds/several" }}
USER_db={{ .Data.username }}
{{ end }}
EOF
          destination = "secrets/db.env"
          env         = true
        }

        template {
          data        = <<EOF
{{ with secret "rabbitmq/creds/several" }}
USER_queue={{ .Data.username }}
{{ end }}
EOF
          destination = "secrets/queue.env"
          env         = false
        }

        template {
          data        = "{{ key \"several/config\" }} {{ with secret \"kv/data/default/several/x\" }}{{ .Data.data.x }}{{ end }}"
          destination = "local/both"
        }
      }
    }
  }
}
