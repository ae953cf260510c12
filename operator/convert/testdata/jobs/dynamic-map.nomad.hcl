job "several" {
  group "g" {
    task "g" {
      driver = "docker"
      config {
        image = "acme/several:1"
      }
      vault {
        role = "several"
      }
      dynamic "template" {
        for_each = {
          db    = { path = "database/creds/several", env = true }
          queue = { path = "rabbitmq/creds/several", env = false }
        }
        iterator = each
        content {
          data        = <<EOF
{{ with secret "${each.value.path}" }}
USER_${each.key}={{ .Data.username }}
{{ end }}
EOF
          destination = "secrets/${each.key}.env"
          env         = each.value.env
        }
      }
      template {
        data        = "{{ key \"several/config\" }} {{ with secret \"kv/data/default/several/x\" }}{{ .Data.data.x }}{{ end }}"
        destination = "local/both"
      }
    }
  }
}
