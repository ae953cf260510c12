job "report" {
  type = "batch"

  parameterized {
    payload       = "optional"
    meta_required = ["month"]
  }

  group "report" {
    task "report" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/bin/sh"
        args    = ["-c", "echo $MONTH $$${PGUSER}; cat ${NOMAD_SECRETS_DIR}/report.conf"]
      }

      env {
        MONTH = "${NOMAD_META_month}"
      }

      vault {
        role = "report"
        env  = false
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
  }
}
