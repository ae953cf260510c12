job "vault" {
  datacenters = ["dc1"]

  group "demo" {
    task "task" {
      driver = "vault-raw_exec"
      config {
        command = "/usr/bin/cat"
        args    = ["secrets/config.txt"]

        vault {
          policies    = ["access-kv"]
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data        = <<EOF
{{ with secret "secret/foo" }}
{{ .Data.bar }}
{{ end }}
EOF
          destination = "secrets/config.txt"
        }
      }
    }
  }
}
