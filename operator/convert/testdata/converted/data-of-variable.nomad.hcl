variable "settings" {
  default = "COLOR={{ with secret \"kv/data/default/settings/config\" }}{{ .Data.data.color }}{{ end }}"
}

job "settings" {
  group "g" {
    task "g" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/echo"
        args    = ["${COLOR}"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = replace(replace(var.settings, "$${", "$$${"), "%%{", "%%%{")
          destination = "secrets/settings"
          env         = true
        }
      }
    }
  }
}
