job "shared" {
  group "shared" {
    task "render" {
      driver = "vault-exec"
      lifecycle {
        hook = "prestart"
      }

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/true"

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          source      = "alloc/data/app.tpl"
          destination = "alloc/data/app.conf"
        }

        template {
          data        = "{{ with secret \"kv/data/default/shared/tls\" }}{{ .Data.data.key }}{{ end }}"
          destination = "${NOMAD_ALLOC_DIR}/data/key.pem"
          perms       = "600"
          uid         = 1000
          gid         = 1000
        }
      }
      artifact {
        source      = "https://example.com/app.tpl"
        destination = "${NOMAD_ALLOC_DIR}/data/app.tpl"
        mode        = "file"
      }
    }

    task "app" {
      driver = "exec"
      config {
        command = "/bin/cat"
        args    = ["/alloc/data/app.conf"]
      }
    }
  }
}
