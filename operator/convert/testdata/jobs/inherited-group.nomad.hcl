job "billing" {
  group "workers" {
    # Every task reads the same secrets.
    vault {
      role        = "billing"
      change_mode = "noop"
    }

    task "invoices" {
      driver = "exec"
      config {
        command = "/opt/billing/invoices"
      }
    }

    task "reminders" {
      driver = "exec"
      config { command = "/opt/billing/reminders" }
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
