job "many" {
  group "g" {
    task "g" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/cat"
        args    = ["secrets/one", "secrets/two"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "{{ with secret \"kv/data/default/many/one\" }}{{ .Data.data.color }}{{ end }}\n"
          destination = "secrets/one"
        }

        template {
          data        = "{{ with secret \"kv/data/default/many/two\" }}{{ .Data.data.color }}{{ end }}\n"
          destination = "secrets/two"
        }
      }
    }
  }
}
