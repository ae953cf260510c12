job "bound" {
  group "bound" {
    task "bound" {
      driver = "vault-docker"
      identity {
        name = "vault_default"
        aud  = ["vault.example.com"]
        ttl  = "30m"
        file = true
      }
      identity { name = "aws" }
      config {
        image = "acme/bound:1"

        vault {
          role        = "bound"
          env         = true
          file        = true
          change_mode = "restart"
          identity    = "vault_default"
        }
      }
    }
  }
}
