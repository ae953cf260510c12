# IO, which finds its token in secrets/vault_token.
job "io" {
  datacenters = ["dc1"]
  group "io" {
    network {
      port "http" {}
    }
    task "io" {
      driver = "vault-exec"
      env {
        VAULT_ADDR = "http://127.0.0.1:8200"
      }

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/usr/local/bin/io"
        args    = ["serve", "-port", "${NOMAD_PORT_http}"]

        vault {
          role        = "nomad-workloads"
          env         = true
          file        = true
          change_mode = "restart"
        }
      }
    }
  }
}
