job "frontend" {
  datacenters = ["dc1"]

  group "frontend" {
    count = 2

    task "frontend" {
      driver = "vault-docker"

      config {
        image = "registry.example.com/frontend:2.4"

        vault {
          policies    = ["access-tables"]
          env         = true
          file        = true
          change_mode = "restart"
        }

        template {
          data = <<EOF
{{ with secret "database/creds/accessdb" }}
  {
   "host": "database.service.consul",
   "port": 5432,
   "username": "{{ .Data.username }}",
   "password": {{ .Data.password | toJSON }},
   "db": "postgres"
  }
{{ end }}
EOF
          destination = "secrets/config.json"
        }
      }
    }
  }
}
