job "legacy" {
  group "legacy" {
    task "legacy" {
      driver = "exec"
      kill_timeout = 20000000000
      config {
        command = "/bin/legacy"
      }
      vault {
        role                   = "legacy"
        allow_token_expiration = true
      }
      template {
        data        = "{{ with secret \"kv/data/default/legacy/config\" }}{{ .Data.data.x }}{{ end }}"
        destination = "secrets/x"
        vault_grace = "5m" # of Nomad 0.10
        splay       = 10000000000
      }
    }
  }
}
