# A secret in the environment. A process keeps the environment that it was started with, so the driver restarts the task
# when the secret changes. Nomad does not count that as a restart.
#
#   vault kv put -mount=kv default/hello-docker/config greeting="good morning"
#   nomad job run docker.nomad.hcl
job "hello-docker" {
  group "hello" {
    task "hello" {
      driver = "vault-docker"

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
          data          = "{{ with secret \"kv/data/default/hello-docker/config\" }}GREETING={{ .Data.data.greeting | toJSON }}\n{{ end }}"
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
