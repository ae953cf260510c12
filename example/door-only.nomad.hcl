# A task that reaches nothing but its door. Its network has a loopback interface and no other. There the door listens, for
# clients that know no Unix sockets; VAULT_URL is its address, with a secret that other tasks of the group do not know.
#
# The clients have doors.conflist in their cni_config_dir, and the CNI plugin loopback in their cni_path.
#
#   vault kv put -mount=kv default/hello-door-only/config greeting="good morning"
#   nomad job run door-only.nomad.hcl
#   nomad alloc logs -job hello-door-only
job "hello-door-only" {
  group "hello" {
    network {
      mode = "cni/doors"
    }

    task "hello" {
      driver = "vault-exec"

      # The driver logs in with the identity. The task does not see private/, and so cannot.
      identity {
        name     = "vault"
        aud      = ["vault.io"]
        file     = true
        filepath = "private/vault.jwt"
        ttl      = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while sleep 1; do curl -sS $VAULT_URL/v1/kv/data/default/hello-door-only/config; done"]

        vault {
          identity_file = "private/vault.jwt"
        }

        door "vault" {
          vault  = "default"
          paths  = ["kv/data/default/hello-door-only/*"]
          listen = 8200
        }
      }
    }
  }
}
