job "dsn" {
  group "dsn" {
    network {
      port "http" {}
    }
    task "dsn" {
      meta {
        tag = "3"
      }
      artifact {
        source      = "https://example.com/more.env.tpl"
        destination = "local/more.env.tpl"
        mode        = "file"
      }
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image      = "acme/dsn:${NOMAD_META_tag}"
        entrypoint = ["/dsn", "-url", "postgres://$(DB_USER):$(DB_PASS)@db/${NOMAD_JOB_NAME}", upper("$(DB_USER)")]
        labels {
          user = "$(DB_USER)"
        }

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = <<EOF
{{ with secret "database/creds/dsn" -}}
DB_USER={{ .Data.username }}
export DB_PASS="{{ .Data.password }}"
{{- end }}
EOF
          destination = "secrets/db.env"
          env         = true
        }

        template {
          source      = "local/more.env.tpl"
          destination = "secrets/more.env"
          env         = true
        }
      }
      service {
        name = "dsn"
        port = "http"
        tags = ["user-${DB_USER}"]
        provider = "nomad"
      }
    }
  }
}
