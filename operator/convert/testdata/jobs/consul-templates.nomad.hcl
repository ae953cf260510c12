job "gateway" {
  group "gateway" {
    task "gateway" {
      driver = "docker"
      config {
        image = "acme/gateway:1"
      }
      vault {
        role = "gateway"
      }
      template {
        data        = <<EOF
{{ range service "api" }}server {{ .Address }}:{{ .Port }};
{{ end }}
EOF
        destination = "local/upstreams.conf"
        change_mode = "signal"
        change_signal = "SIGHUP"
      }
      template {
        data        = "{{ with secret \"kv/data/default/gateway/config\" }}{{ .Data.data.token }}{{ end }}"
        destination = "secrets/token"
      }
    }
  }
}
