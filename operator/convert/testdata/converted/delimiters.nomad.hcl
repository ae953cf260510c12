job "chart" {
  group "chart" {
    task "chart" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image   = "acme/chart:1"
        command = "chart"
        args    = ["--key", "$(KEY)"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          left_delimiter       = "[["
          right_delimiter      = "]]"
          error_on_missing_key = true
          once                 = true
          data                 = "[[ with secret \"kv/data/default/chart/config\" ]]KEY=[[ .Data.data.key ]][[ end ]]\nHELM={{ .Values.x }}\n"
          destination          = "secrets/chart.env"
          env                  = true
        }
      }
    }
  }
}
