job "tenants" {
  dynamic "group" {
    for_each = ["red", "blue"]
    labels   = ["tenant-${group.value}"]
    content {
      task "api" {
        driver = "vault-docker"

        identity {
          name = "vault"
          aud  = ["vault.io"]
          file = true
          ttl  = "1h"
        }

        config {
          image = "acme/api:9"

          vault {
            role        = "tenant-${group.value}"
            env         = true
            file        = true
            change_mode = "restart"
          }

          template {
            data        = "{{ with secret \"kv/data/tenants/${group.value}\" }}KEY={{ .Data.data.key }}{{ end }} # $$${NOMAD_GROUP_NAME}"
            destination = "secrets/key.env"
            env         = true
          }
        }
      }
    }
  }
}
