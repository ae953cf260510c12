# Secrets as they are, without a template: one as a file, one in the environment. The task prints them: yours should not.
#
#   vault kv put -mount=kv default/hello-secret/config greeting="good morning"
#   vault kv put -mount=kv default/hello-secret/names first="Ada" last="Lovelace"    # may be written later: it is optional
#   nomad job run secret.nomad.hcl
job "hello-secret" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"
      user   = "nobody" # who owns the files; no other user can read them

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; trap 'cat secrets/config' HUP; echo hello $FIRST_NAME; cat secrets/config; while sleep 1; do :; done"]

        # The file secrets/config with all fields: {"greeting":"good morning"}
        secret "config" {
          path          = "kv/data/default/hello-secret/config"
          format        = "json" # or env, properties, yaml; one value alone with key = "greeting"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s"
          poll_interval = "5s"
        }

        # The variable FIRST_NAME, and no file. A change restarts the task.
        secret "names" {
          path          = "kv/data/default/hello-secret/names"
          env           = true
          include       = ["first"]
          rename        = { first = "FIRST_NAME" }
          optional      = true # start although there is no such secret
          splay         = "0s"
          poll_interval = "5s"
        }
      }
    }
  }
}
