job "shared" {
  group "shared" {
    task "render" {
      driver = "exec"
      lifecycle {
        hook = "prestart"
      }
      config {
        command = "/bin/true"
      }
      vault {}
      artifact {
        source      = "https://example.com/app.tpl"
        destination = "${NOMAD_ALLOC_DIR}/data/app.tpl"
        mode        = "file"
      }
      template {
        source      = "../alloc/data/app.tpl"
        destination = "../alloc/data/app.conf"
      }
      template {
        data        = "{{ with secret \"kv/data/default/shared/tls\" }}{{ .Data.data.key }}{{ end }}"
        destination = "${NOMAD_ALLOC_DIR}/data/key.pem"
        perms       = "600"
        uid         = 1000
        gid         = 1000
      }
    }

    task "app" {
      driver = "exec"
      config {
        command = "/bin/cat"
        args    = ["/alloc/data/app.conf"]
      }
    }
  }
}
