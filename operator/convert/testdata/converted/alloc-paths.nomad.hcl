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

        template {
          data        = "{{ with secret \"kv/data/default/shared/tls\" }}{{ .Data.data.ca }}{{ end }}"
          destination = "local/../../shared/ca.pem"
        }
      }
      artifact {
        source = "https://example.com/templates.tgz"
      }
    }
  }
}
