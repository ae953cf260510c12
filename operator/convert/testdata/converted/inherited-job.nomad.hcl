job "shop" {
  group "web" {
    task "web" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "shop/web:12"

        vault {
          role        = "shop"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "KEY={{ with secret \"kv/data/default/shop/web\" }}{{ .Data.data.key }}{{ end }}"
          destination = "secrets/web.env"
          env         = true
        }
      }
    }

    # This one has a role of its own.
    task "cart" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image = "shop/cart:3"

        vault {
          role = "cart"
          env  = false
        }
      }
    }

    task "search" {
      driver = "java"

      vault {
        role = "shop"
      }

      config {
        jar_path = "local/search.jar"
      }
    }
  }
}
