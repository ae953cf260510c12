job "billing" {
  group "workers" {
    task "invoices" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/opt/billing/invoices"

        # Every task reads the same secrets.
        vault {
          role        = "billing"
          change_mode = "noop"
          env         = true
          file        = true
        }
      }
    }

    task "reminders" {
      driver = "vault-exec"

      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      config {
        command = "/opt/billing/reminders"

        # Every task reads the same secrets.
        vault {
          role        = "billing"
          change_mode = "noop"
          env         = true
          file        = true
        }
      }
    }
  }

  group "proxy" {
    task "proxy" {
      driver = "docker"
      config {
        image = "nginx:1.27"
      }
    }
  }
}
