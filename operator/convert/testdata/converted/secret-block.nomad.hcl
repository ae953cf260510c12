job "both" {
  group "both" {
    task "both" {
      driver = "vault-docker"

      secret "db" {
        provider = "vault"
        path     = "kv/data/default/both/db"
        config {
          engine = "kv_v2"
        }
      }

      config {
        image = "acme/both:1"
        args  = ["-password", "${secret.db.password}"]

        template {
          data        = "{{ with secret \"kv/data/default/both/config\" }}{{ .Data.data.x }}{{ end }}"
          destination = "secrets/x"
        }
      }

      vault {
        role = "both"
      }
    }
  }
}
