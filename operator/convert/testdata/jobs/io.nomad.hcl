# IO, which finds its token in secrets/vault_token.
job "io" {
  datacenters = ["dc1"]
  group "io" {
    network {
      port "http" {}
    }
    task "io" {
      driver = "exec"
      vault {
        role = "nomad-workloads"
      }
      env {
        VAULT_ADDR = "http://127.0.0.1:8200"
      }
      config {
        command = "/usr/local/bin/io"
        args    = ["serve", "-port", "${NOMAD_PORT_http}"]
      }
    }
  }
}
