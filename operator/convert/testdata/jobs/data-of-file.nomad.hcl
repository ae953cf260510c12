job "from-file" {
  group "g" {
    task "g" {
      driver = "exec"
      config {
        command = "/bin/cat"
        args    = ["secrets/a", "secrets/b"]
      }
      vault {}
      template {
        data        = file("../files/plain.tpl")
        destination = "secrets/a"
      }
      template {
        data        = file("../files/shell.tpl")
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
