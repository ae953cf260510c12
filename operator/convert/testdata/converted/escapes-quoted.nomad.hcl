variable "port" {
  default = 8080
}

locals {
  upstream = "10.0.0.1"
}

job "nginx" {
  group "nginx" {
    task "nginx" {
      driver = "vault-docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image   = "nginx:1.27"
        volumes = ["secrets/nginx:/etc/nginx/conf.d"]

        vault {
          role        = "nginx"
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = "listen ${var.port}; # ${local.upstream} $$${host} $$${NOMAD_ALLOC_ID}\n{{ with secret \"kv/data/default/nginx/config\" }}# {{ .Data.data.comment }}{{ end }}\n"
          destination = "secrets/nginx/default.conf"
        }
      }
    }
  }
}
