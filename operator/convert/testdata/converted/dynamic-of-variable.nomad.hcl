variable "files" {
  type    = list(string)
  default = ["a", "b"]
}

job "computed" {
  group "g" {
    task "g" {
      driver = "exec"
      config {
        command = "/bin/sleep"
        args    = ["600"]
      }
      vault {}
      dynamic "template" {
        for_each = var.files
        content {
          data        = "{{ with secret \"kv/data/default/computed/${template.value}\" }}{{ .Data.data.x }}{{ end }}"
          destination = "secrets/${template.value}"
        }
      }
    }
  }
}
