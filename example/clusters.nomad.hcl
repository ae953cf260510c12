# Two Vaults in one task, each with its own login: cluster, role, namespace and identity of the second go into a vault
# block with a name, and a template refers to that name. The operator must have configured the cluster. Without a second
# cluster, this job asks the same one twice.
#
#   vault kv put -mount=kv default/hello-clusters/config greeting="good morning"   # in both
#   nomad job run -var=other=west clusters.nomad.hcl
variable "other" {
  description = "name of a vault block in the plugin's configuration"
  type        = string
  default     = "default"
}

job "hello-clusters" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      # The task's identity at the second cluster, whose role can require another audience.
      identity {
        name = "other"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "cat secrets/here secrets/there; trap exit INT; while sleep 1; do :; done"]

        vault {
          role = "nomad-workloads"
        }

        vault {
          name     = "there"
          cluster  = var.other
          role     = "nomad-workloads"
          identity = "other"
          # namespace = "team" # Vault Enterprise and HCP
        }

        template {
          data          = "here: {{ with secret \"kv/data/default/hello-clusters/config\" }}{{ .Data.data.greeting }}\n{{ end }}"
          destination   = "secrets/here"
          splay         = "0s"
          poll_interval = "5s"
        }

        template {
          vault         = "there"
          data          = "there: {{ with secret \"kv/data/default/hello-clusters/config\" }}{{ .Data.data.greeting }}\n{{ end }}"
          destination   = "secrets/there"
          splay         = "0s"
          poll_interval = "5s"
        }
      }
    }
  }
}
