job "frontend" {
  datacenters = ["dc1"]

  group "frontend" {
    count = 2

    task "frontend" {
      driver = "docker"

      vault {
        policies = ["access-tables"]
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

      config {
        image = "registry.example.com/frontend:2.4"
      }
    }
  }
}
