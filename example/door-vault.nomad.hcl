# A task that asks Vault without a token. Its door uses the token of the task's vault block, and lets through what paths
# names. The vault command, and every client that knows VAULT_ADDR, works with the door as it is: VAULT_ADDR leads to it.
#
#   vault kv put -mount=kv default/hello-door-vault/config greeting="good morning"
#   nomad job run door-vault.nomad.hcl
#   nomad alloc logs -job hello-door-vault
job "hello-door-vault" {
  group "hello" {
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

      env {
        SECRET = "http://door/v1/kv/data/default/hello-door-vault/config"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while sleep 1; do curl -sS --unix-socket $VAULT_SOCK $SECRET; done"]

        vault {
          identity_file = "private/vault.jwt"
        }

        door "vault" {
          vault = "default" # the name of the vault block
          paths = ["kv/data/default/hello-door-vault/*"]
        }
      }
    }
  }
}
