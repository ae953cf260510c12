job "printenv" {
  datacenters = ["dc1"]
  type = "batch"
  group "app" {
    task "printenv" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/usr/bin/printenv"

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
