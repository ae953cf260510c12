job "report" {
  type = "batch"

  parameterized {
    payload       = "optional"
    meta_required = ["month"]
  }

  group "report" {
    task "report" {
      driver = "vault-exec"
      user   = "nobody"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "echo $MONTH $$${PGUSER}; cat ${NOMAD_SECRETS_DIR}/report.conf"]

        vault {
          role        = "report"
          env         = false
          file        = true
          change_mode = "restart"
        }

        template {
          data        = <<EOF
month={{ env "NOMAD_META_month" }}
{{ with secret "database/creds/report" }}PGUSER={{ .Data.username }}{{ end }}
EOF
          destination = "${NOMAD_SECRETS_DIR}/report.conf"
          perms       = "0440"
          env         = true
        }
      }

      env {
        MONTH = "${NOMAD_META_month}"
      }
    }
  }
}
