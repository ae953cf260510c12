job "escaping" {
  group "escaping" {
    task "escaping" {
      driver = "exec"
      config {
        command = "/bin/cat"
        args    = ["secrets/ca.pem"]
      }
      vault {}
      template {
        data        = "{{ with secret \"kv/data/default/shared/tls\" }}{{ .Data.data.ca }}{{ end }}"
        destination = "local/../../shared/ca.pem"
      }
    }
  }
}
