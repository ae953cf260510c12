# A task that calls an API with a key that it never has. The door adds the key to each call and makes it unreadable in
# what the API answers. When the key changes, the next call has the new one, and the task is told nothing.
#
#   vault kv put -mount=kv default/hello-door-api/key key=a-long-key-of-the-api
#   nomad job run -var url=https://postman-echo.com door-api.nomad.hcl   # an API that answers what it was sent
#   nomad alloc logs -job hello-door-api
variable "url" {
  description = "The API. A door connects to none on this node unless allow_cidrs in the plugin's doors block permits it."
}

variable "ca_pem" {
  description = "The authority of the API's certificate, where the node does not trust it."
  default     = ""
}

job "hello-door-api" {
  group "hello" {
    task "hello" {
      driver = "vault-exec"

      # The driver logs in with the identity. The task does not see private/, and so cannot.
      identity {
        name     = "vault"
        aud      = ["vault.io"]
        file     = true
        filepath = "private/vault.jwt"
        ttl      = "1h"
      }

      config {
        command = "/bin/sh"
        args    = ["-c", "trap exit INT; while sleep 1; do curl -sS --unix-socket $HELLO_SOCK http://door/get; echo; done"]

        vault {
          identity_file = "private/vault.jwt"
        }

        door "hello" {
          url           = var.url
          ca_pem        = var.ca_pem
          header        = { "X-Api-Key" = "{{ with secret \"kv/data/default/hello-door-api/key\" }}{{ .Data.data.key }}{{ end }}" }
          methods       = ["GET"]
          poll_interval = "5s" # look for a new key this often
        }
      }
    }
  }
}
