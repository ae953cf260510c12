job "east" {
  group "east" {
    task "east" {
      driver = "docker"
      config {
        image = "acme/east:1"
      }
      vault {
        cluster       = "east"
        namespace     = "team"
        change_mode   = "signal"
        change_signal = "SIGUSR1"
      }
      template {
        data        = "{{ with secret \"kv/data/default/east/config\" }}{{ .Data.data.x }}{{ end }}"
        destination = "secrets/x"
      }
    }
  }
}
