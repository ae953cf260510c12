job "shop" {
  vault {
    role = "shop"
  }

  group "web" {
    task "web" {
      driver = "docker"
      config {
        image = "shop/web:12"
      }
      template {
        data        = "KEY={{ with secret \"kv/data/default/shop/web\" }}{{ .Data.data.key }}{{ end }}"
        destination = "secrets/web.env"
        env         = true
      }
    }

    # This one has a role of its own.
    task "cart" {
      driver = "docker"

      vault {
        role       = "cart"
        env        = false
        disable_file = true
      }

      config {
        image = "shop/cart:3"
      }
    }

    task "search" {
      driver = "java"
      config {
        jar_path = "local/search.jar"
      }
    }
  }
}
