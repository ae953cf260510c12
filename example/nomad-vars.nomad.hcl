# Nomad's own variables and services in a template, beside or without Vault. The driver watches them
# and does not poll, so it sees a change at once.
#
#   nomad var put nomad/jobs/hello-vars greeting="good morning"
#   nomad job run nomad-vars.nomad.hcl
job "hello-vars" {
  group "hello" {
    network {
      port "http" {}
    }

    service {
      name     = "hello-vars"
      port     = "http"
      provider = "nomad"
    }

    task "hello" {
      driver = "vault-exec"

      # The task's own Nomad identity, with which the variables are read.
      identity {
        file = true
      }

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; trap 'cat local/hello' HUP; cat local/hello; while sleep 1; do :; done"]

        template {
          data          = <<EOT
{{ with nomadVar "nomad/jobs/hello-vars" }}{{ .greeting }}{{ end }} from
{{- range nomadService "hello-vars" }} {{ .Address }}:{{ .Port }}{{ end }}
EOT
          destination   = "local/hello"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s"
        }
      }
    }
  }
}
