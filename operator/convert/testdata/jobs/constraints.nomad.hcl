job "pinned" {
  constraint {
    attribute = "${attr.driver.docker.version}"
    operator  = "semver"
    value     = ">= 20.0"
  }

  group "pinned" {
    task "pinned" {
      driver = "docker"
      config {
        image = "acme/pinned:1"
      }
      vault {
        role = "pinned"
      }
    }
  }
}
