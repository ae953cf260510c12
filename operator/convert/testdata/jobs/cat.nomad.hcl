job "cat" {
  datacenters = ["dc1"]
  type        = "batch"
  group "app" {
    task "cat" {
      driver = "exec"
      config {
        command = "/usr/bin/cat"
        args    = ["secrets/vault_token"]
      }
      vault {
        role = "nomad-workloads"
      }
    }
  }
}
