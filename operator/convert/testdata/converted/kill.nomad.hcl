job "worker" {
  group "worker" {
    task "worker" {
      driver       = "vault-docker"
      kill_signal  = "SIGQUIT"
      kill_timeout = "45s" # a job takes as long

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "acme/worker:7"

        kill_signal  = "SIGQUIT"
        kill_timeout = "45s"

        vault {
          role        = "worker"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data          = "{{ with secret \"database/creds/worker\" }}{{ .Data.password }}{{ end }}"
          destination   = "secrets/password"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "30s"
        }
      }
    }
  }
}
