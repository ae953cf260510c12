job "worker" {
  group "worker" {
    task "worker" {
      driver       = "docker"
      kill_signal  = "SIGQUIT"
      kill_timeout = "45s" # a job takes as long
      config {
        image = "acme/worker:7"
      }
      vault {
        role = "worker"
      }
      template {
        data          = "{{ with secret \"database/creds/worker\" }}{{ .Data.password }}{{ end }}"
        destination   = "secrets/password"
        change_mode   = "signal"
        change_signal = "SIGHUP"
        splay         = "30s"
      }
    }
  }
}
