job "cat" {
  datacenters = ["dc1"]
  type        = "batch"
  group "app" {
    task "cat" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/usr/bin/cat"
        args    = ["secrets/vault_token"]

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
