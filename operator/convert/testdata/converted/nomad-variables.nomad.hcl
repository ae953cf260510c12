job "flags" {
  group "flags" {
    task "flags" {
      driver = "vault-docker"

      identity {
        env = true
      }

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "acme/flags:1"

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = <<EOF
{{ with nomadVar "nomad/jobs/flags" }}FLAGS={{ .flags }}{{ end }}
{{ with secret "kv/data/default/flags/config" }}KEY={{ .Data.data.key }}{{ end }}
EOF
          destination = "secrets/flags.env"
          env         = true
        }
      }
    }

    task "watcher" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/watcher"

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "{{ range nomadServices }}{{ .Name }} {{ end }}{{ with secret \"kv/data/default/flags/watcher\" }}{{ .Data.data.x }}{{ end }}"
          destination = "local/services"
        }
      }
      identity {
        name        = "default"
        change_mode = "noop"
        file = true
      }
    }
  }
}
