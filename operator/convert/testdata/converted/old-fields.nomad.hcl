job "legacy" {
  group "legacy" {
    task "legacy" {
      driver = "vault-exec"
      kill_timeout = 20000000000

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/legacy"

        kill_timeout = "20s"

        vault {
          role        = "legacy"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "{{ with secret \"kv/data/default/legacy/config\" }}{{ .Data.data.x }}{{ end }}"
          destination = "secrets/x"
          splay       = "10s"
        }
      }
    }
  }
}
