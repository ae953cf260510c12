# A TLS certificate for this task alone, which Vault issues when the task starts; see pki.sh. All files are of the same
# certificate. The driver replaces it before it expires, and sends SIGHUP. A restart of the agent or the plugin keeps it.
#
#   nomad job run pki.nomad.hcl
job "hello-pki" {
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
        args    = ["-c", "trap 'exit' TERM; trap 'cat /secrets/tls.crt' HUP; cat /secrets/tls.crt; while sleep 1; do :; done"]

        vault {
          role = "hello-pki" # of Vault's auth method; it is bound to this very job
        }

        pki "web" {
          path          = "pki/issue/hello-pki"
          common_name   = "hello.service.example"
          alt_names     = ["www.service.example"]
          ttl           = "24h"
          renew_before  = "8h"
          cert_file     = "secrets/tls.crt" # the certificate alone; chain_file has the authorities, too
          key_file      = "secrets/tls.key" # mode 0600
          ca_file       = "secrets/ca.crt"
          revoke        = true # when it has been replaced, and when the task has stopped
          change_mode   = "signal"
          change_signal = "SIGHUP"
        }
      }
    }
  }
}
