# A token by a Vault token role, as Nomad had it until 1.9: the task names its policies and has no identity.
# token-role.sh prepares Vault; the plugin's vault block has token_file, create_from_role, and an allow block for the
# policy.
#
#   echo 'path "kv/data/hello-token-role/*" { capabilities = ["read"] }' | vault policy write hello-token-role -
#   vault kv put -mount=kv hello-token-role/config greeting="good morning"
#   nomad job run token-role.nomad.hcl
variable "cluster" {
  type    = string
  default = "default" # the vault block of the plugin's config
}

job "hello-token-role" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; trap 'cat secrets/greeting' HUP; cat secrets/greeting; while sleep 1; do :; done"]

        vault {
          cluster  = var.cluster
          policies = ["hello-token-role"]
        }

        template {
          data          = "{{ with secret \"kv/data/hello-token-role/config\" }}{{ .Data.data.greeting }}\n{{ end }}"
          destination   = "secrets/greeting"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s"
          poll_interval = "5s"
        }
      }
    }
  }
}
