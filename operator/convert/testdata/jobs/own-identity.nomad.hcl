job "bound" {
  group "bound" {
    task "bound" {
      driver = "docker"
      identity {
        name = "vault_default"
        aud  = ["vault.example.com"]
        ttl  = "30m"
      }
      identity { name = "aws" }
      config {
        image = "acme/bound:1"
      }
      vault {
        role = "bound"
      }
    }
  }
}
