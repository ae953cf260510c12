# An image from a registry that wants a password. The driver reads the password from Vault at each start, so a start uses
# a password that was changed in both places. Nomad and the container never have it.
#
#   vault kv put -mount=kv default/hello-registry/registry username=puller password=...
#   nomad job run -var image=registry.example.com/hello:1 registry.nomad.hcl
variable "image" {
  description = "An image with a shell, for example busybox."
}

job "hello-registry" {
  group "hello" {
    task "hello" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "echo hello from $IMAGE; exec sleep infinity"]
        init    = true # sleep, as a container's first process, would ignore SIGTERM

        auth {
          vault_path = "kv/data/default/hello-registry/registry"
        }
      }

      env {
        IMAGE = var.image
      }
    }
  }
}
