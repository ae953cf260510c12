job "printenv" {
  datacenters = ["dc1"]
  type = "batch"
  group "app" {
    task "printenv" {
      driver = "exec"
      config {
        command = "/usr/bin/printenv"
      }
      vault {
        role = "nomad-workloads"
      }
    }
  }
}
