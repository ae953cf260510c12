variable "driver" {
  default = "docker"
}

job "either" {
  group "either" {
    task "either" {
      driver = var.driver
      config {
        image = "acme/either:1"
      }
      vault {
        role = "either"
      }
    }
  }
}
