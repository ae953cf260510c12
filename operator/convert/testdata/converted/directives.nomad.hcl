variable "debug" {
  type    = bool
  default = true
}

job "directives" {
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
        args    = ["secrets/out"]

        vault {
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = replace(replace(<<EOF
%{ if var.debug ~}
debug = true
%{ endif ~}
home = $${HOME}
color = {{ with secret "kv/data/default/directives/config" }}{{ .Data.data.color }}{{ end }}
EOF
        , "$${", "$$${"), "%%{", "%%%{")
          destination = "secrets/out"
        }
      }
    }
  }
}
