job "many" {
  group "g" {
    task "g" {
      driver = "exec"
      config {
        command = "/bin/cat"
        args    = ["secrets/one", "secrets/two"]
      }
      vault {}
      dynamic "template" {
        for_each = ["one", "two"]
        content {
          data        = "{{ with secret \"kv/data/default/many/${template.value}\" }}{{ .Data.data.color }}{{ end }}\n"
          destination = "secrets/${template.value}"
        }
      }
    }
  }
}
