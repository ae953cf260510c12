variable "settings" {
  default = "COLOR={{ with secret \"kv/data/default/settings/config\" }}{{ .Data.data.color }}{{ end }}"
}

job "settings" {
  group "g" {
    task "g" {
      driver = "exec"
      config {
        command = "/bin/echo"
        args    = ["${COLOR}"]
      }
      vault {}
      template {
        data        = var.settings
        destination = "secrets/settings"
        env         = true
      }
    }
  }
}
