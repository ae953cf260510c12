# What needs nothing of Vault but what setup has made: no role, no policy and no vault block of its own. The path is made of the job's own
# names, as the policy of setup has it: the same lines do in every job.
#
#   sh setup.sh     # sets Vault up, writes the secret of this job, and checks it
#   nomad job run setup.nomad.hcl
job "hello-setup" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; echo $GREETING; while sleep 1; do :; done"]

        # A variable of each field, named as the field is, or as rename says. The task is started again when the secret changes.
        secret "config" {
          path          = "kv/data/${NOMAD_NAMESPACE}/${NOMAD_JOB_NAME}/config"
          env           = true
          rename        = { greeting = "GREETING" }
          splay         = "0s"
          poll_interval = "5s"
        }
      }
    }
  }
}
