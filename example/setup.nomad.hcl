# A job that needs nothing in Vault but what setup creates: no role, no policy and no vault block of its own. The path
# consists of the job's own names, as in setup's policy, so the same lines work in every job.
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

        # One variable for each field, named like the field or as rename says. A change restarts the task.
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
