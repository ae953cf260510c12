# An init task writes a secret where the main task, of any driver, reads it. The file stays current, and leases are
# renewed, as long as the main task runs. Nobody tells the main task of a change: it looks at the file again.
#
#   vault kv put -mount=kv default/hello-init/config greeting="good morning"
#   nomad job run init.nomad.hcl
job "hello-init" {
  group "hello" {
    task "init" {
      driver = "vault-exec"

      lifecycle {
        hook = "prestart"
      }

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "echo ready"]

        template {
          destination   = "../alloc/greeting"
          data          = <<EOT
{{ with secret "kv/data/default/hello-init/config" }}{{ .Data.data.greeting }}{{ end }}
EOT
          change_mode   = "noop"
          poll_interval = "5s"
        }
      }
    }

    task "main" {
      driver = "exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while :; do cat /alloc/greeting; sleep 1; done"]
      }
    }
  }
}
