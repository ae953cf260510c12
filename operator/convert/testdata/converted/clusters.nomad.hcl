job "east" {
  group "east" {
    task "east" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "acme/east:1"

        vault {
          cluster       = "east"
          namespace     = "team"
          change_mode   = "signal"
          change_signal = "SIGUSR1"
          env           = true
          file          = true
        }

        template {
          data        = "{{ with secret \"kv/data/default/east/config\" }}{{ .Data.data.x }}{{ end }}"
          destination = "secrets/x"
        }
      }
    }
  }
}
