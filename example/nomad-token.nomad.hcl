# A job that keeps Nomad's own vault block. The driver renders the template in config with the token that Nomad derived.
# The agent needs a vault block of its own; the task needs no identity.
#
#   vault kv put -mount=kv default/hello-nomad-token/config greeting="good morning"
#   nomad job run nomad-token.nomad.hcl
job "hello-nomad-token" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      # Nomad's. When it replaces the token, our template is rendered anew, and Nomad itself need not act.
      vault {
        change_mode = "noop"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; trap 'cat secrets/greeting' HUP; cat secrets/greeting; while sleep 1; do :; done"]

        template {
          data          = "{{ with secret \"kv/data/default/hello-nomad-token/config\" }}{{ .Data.data.greeting }}\n{{ end }}"
          destination   = "secrets/greeting"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s"
          poll_interval = "5s"
        }
      }
    }
  }
}
