job "script" {
  type = "batch"
  group "script" {
    task "script" {
      driver = "raw_exec"
      config {
        command = "/bin/sh"
        args    = ["local/run.sh"]
      }
      vault {}
      template {
        destination = "local/run.sh"
        perms       = "0755"
        data        = <<-EOT
          #!/bin/sh
          # A shell's variables, in the ways that a jobspec can have them.
          NAME=world
          echo "hello ${NAME}, hello $${NAME:-nobody}, hello $NAME"
          date +%%{x} >/dev/null
          echo {{ with secret "kv/data/default/script/config" }}{{ .Data.data.greeting }}{{ end }}
        EOT
      }
    }
  }
}
