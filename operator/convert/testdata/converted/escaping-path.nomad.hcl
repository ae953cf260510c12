job "escaping" {
  group "escaping" {
    task "escaping" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/cat"
        args    = ["secrets/ca.pem"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "{{ with secret \"kv/data/default/shared/tls\" }}{{ .Data.data.ca }}{{ end }}"
          destination = "local/../../shared/ca.pem"
        }
      }
    }
  }
}
