job "script" {
  type = "batch"
  group "script" {
    task "script" {
      driver = "vault-raw_exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["local/run.sh"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          destination = "local/run.sh"
          perms       = "0755"
          data        = <<-EOT
          #!/bin/sh
          # A shell's variables, in the ways that a jobspec can have them.
          NAME=world
          echo "hello $$${NAME}, hello $$${NAME:-nobody}, hello $NAME"
          date +%%%{x} >/dev/null
          echo {{ with secret "kv/data/default/script/config" }}{{ .Data.data.greeting }}{{ end }}
        EOT
        }
      }
    }
  }
}
