job "from-file" {
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
        command = "/bin/cat"
        args    = ["secrets/a", "secrets/b"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = file("../files/plain.tpl")
          destination = "secrets/a"
        }

        template {
          data        = replace(replace(file("../files/shell.tpl"), "$${", "$$${"), "%%{", "%%%{")
          destination = "secrets/b"
        }

        template {
          data        = file("../files/db.env.tpl")
          destination = "secrets/c"
          env         = true
        }
      }
    }
  }
}
