job "plain" {
  group "plain" {
    task "plain" {
      driver = "docker"
      config {
        image = "acme/plain:1"
      }
      template {
        data        = "{{ env \"NOMAD_ALLOC_ID\" }}"
        destination = "local/id"
      }
    }

    task "java" {
      driver = "java"
      config {
        jar_path = "local/app.jar"
      }
      vault {
        role = "java"
      }
    }
  }
}
