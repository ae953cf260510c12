variable "debug" {
  type    = bool
  default = true
}

job "directives" {
  group "g" {
    task "g" {
      driver = "exec"
      config {
        command = "/bin/cat"
        args    = ["secrets/out"]
      }
      vault {}
      template {
        data        = <<EOF
%{ if var.debug ~}
debug = true
%{ endif ~}
home = $${HOME}
color = {{ with secret "kv/data/default/directives/config" }}{{ .Data.data.color }}{{ end }}
EOF
        destination = "secrets/out"
      }
    }
  }
}
