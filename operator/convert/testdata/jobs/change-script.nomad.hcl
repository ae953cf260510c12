job "haproxy" {
  group "haproxy" {
    network {
      mode = "bridge"
      port "http" { to = 80 }
    }

    task "haproxy" {
      driver = "docker"

      config {
        image = "haproxy:3.0"
        ports = ["http"]
      }

      vault {}

      # The certificate, of Vault's PKI engine.
      template {
        data        = <<EOH
{{ with pkiCert "pki/issue/haproxy" "common_name=www.example.com" }}{{ .Cert }}{{ .Key }}{{ end }}
EOH
        destination = "secrets/www.pem"
        change_mode = "script"

        wait {
          min = "2s"
          max = "60s"
        }

        change_script {
          command       = "/bin/sh"
          args          = ["-c", "kill -USR2 1"]
          timeout       = "20s"
          fail_on_error = false
        }
      }
    }

    task "logs" {
      driver = "docker"

      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      config {
        image = "acme/log-shipper:1"
      }
    }
  }
}
