job "flags" {
  group "flags" {
    task "flags" {
      driver = "docker"

      identity {
        env = true
      }

      config {
        image = "acme/flags:1"
      }

      vault {}

      template {
        data        = <<EOF
{{ with nomadVar "nomad/jobs/flags" }}FLAGS={{ .flags }}{{ end }}
{{ with secret "kv/data/default/flags/config" }}KEY={{ .Data.data.key }}{{ end }}
EOF
        destination = "secrets/flags.env"
        env         = true
      }
    }

    task "watcher" {
      driver = "exec"
      config {
        command = "/bin/watcher"
      }
      identity {
        name        = "default"
        change_mode = "noop"
      }
      vault {}
      template {
        data        = "{{ range nomadServices }}{{ .Name }} {{ end }}{{ with secret \"kv/data/default/flags/watcher\" }}{{ .Data.data.x }}{{ end }}"
        destination = "local/services"
      }
    }
  }
}
