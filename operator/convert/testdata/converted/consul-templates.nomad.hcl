job "gateway" {
  group "gateway" {
    task "gateway" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "acme/gateway:1"

        vault {
          role        = "gateway"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "{{ with secret \"kv/data/default/gateway/config\" }}{{ .Data.data.token }}{{ end }}"
          destination = "secrets/token"
        }
      }
      template {
        data        = <<EOF
{{ range service "api" }}server {{ .Address }}:{{ .Port }};
{{ end }}
EOF
        destination = "local/upstreams.conf"
        change_mode = "signal"
        change_signal = "SIGHUP"
      }
    }
  }
}
