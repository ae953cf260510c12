job "pinned" {
  constraint {
    attribute = "${attr.driver.docker.version}"
    operator  = "semver"
    value     = ">= 20.0"
  }

  group "pinned" {
    task "pinned" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "acme/pinned:1"

        vault {
          role        = "pinned"
          env         = true
          file        = true
          change_mode = "restart"
        }
      }
    }
  }
}
