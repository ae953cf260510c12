# A secret in a file. When the secret changes, the driver sends SIGHUP. The task prints the secret: yours should not.
#
#   vault kv put -mount=kv default/hello-exec/config greeting="good morning"
#   nomad job run exec.nomad.hcl
job "hello-exec" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      # The task's identity, signed by Nomad. Vault trusts it.
      identity {
        name = "vault"
        aud  = ["vault.io"] # bound_audiences of Vault's role
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; trap 'cat secrets/greeting' HUP; cat secrets/greeting; while sleep 1; do :; done"]

        # A job may have a vault block. Without one, the agent's default cluster and role apply.
        template {
          data          = "{{ with secret \"kv/data/default/hello-exec/config\" }}{{ .Data.data.greeting }}\n{{ end }}"
          destination   = "secrets/greeting"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s" # no random wait before the signal: this is the only task there is
          poll_interval = "5s" # look for a new version this often
        }
      }
    }
  }
}
