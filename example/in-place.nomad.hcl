# A job with driver = "docker" and our blocks in it: the plugin serves that name in the place of the built-in driver. In
# the agent's configuration: plugin "nomad-driver-vault" { args = ["-driver=docker", "-name=docker"] ... }
#
#   vault kv put -mount=kv default/hello-in-place/config greeting="good morning"
#   nomad job run in-place.nomad.hcl
job "hello-in-place" {
  group "hello" {
    task "hello" {
      driver = "docker"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        image   = "busybox:1.36"
        command = "sh"
        args    = ["-c", "echo $GREETING; exec sleep infinity"]
        init    = true # sleep, as a container's first process, would ignore SIGTERM

        template {
          data          = "{{ with secret \"kv/data/default/hello-in-place/config\" }}GREETING={{ .Data.data.greeting | toJSON }}\n{{ end }}"
          destination   = "secrets/hello.env"
          env           = true
          change_mode   = "restart"
          splay         = "0s"
          poll_interval = "5s"
        }
      }
    }
  }
}
