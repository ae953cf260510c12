# What a Nomad client needs in its configuration to serve the plugin. It may be a file of its own beside the others. Every
# option of the plugin is here: those with a value must be set or deserve a thought, the others stand behind # with their
# defaults. Options of the wrapped driver go into the same config block, as in Nomad's own documentation of that driver.

# The directory with nomad-driver-vault and one link to it for each driver: `make install` creates them. The link's name
# says what is wrapped.
plugin_dir = "/opt/nomad/plugins"

plugin "vault-exec" {
  config {
    # A Vault cluster. Tasks use the one named "default" unless they name another. Write one block for each cluster.
    vault "default" {
      address               = "http://127.0.0.1:8200"
      jwt_auth_backend_path = "jwt-nomad"       # where the JWT auth method is mounted, see setup.sh
      create_from_role      = "nomad-workloads" # the role of tasks that name none

      # namespace       = ""    # Vault Enterprise and HCP: the namespace of tasks that name none
      # ca_file         = ""    # CA certificates (PEM) to trust in place of the system's: a file,
      # ca_path         = ""    # or a folder of such files
      # cert_file       = ""    # a client certificate, where Vault asks for one,
      # key_file        = ""    # and its key
      # tls_server_name = ""    # the name in Vault's certificate, where it is not that of the address
      # tls_skip_verify = false # true trusts any certificate: never in production

      # rate_limit      = ""    # requests a second that this node sends to the cluster at most, and a burst: "50:100"

      # In place of logins: tokens by a Vault token role, which create_from_role names. See token-role.sh and
      # docs/tokens-and-policies.md.
      # token      = ""        # or token_file, so that the token is in no answer of Nomad's API
      # token_file = "/opt/nomad/vault_token"
      # allow "*" { policies = ["app-*"] } # what tasks of any Nomad namespace may ask for; of one: allow "prod" { ... }
    }

    # What the next plugin process needs: tokens and leases of the running tasks. Kept in memory (a tmpfs).
    # state_dir = "/run/nomad-driver-vault/vault-exec"

    # How long a start may wait for its identity, Vault and templates before it counts as failed. Nomad then tries again as
    # the job's restart block says. `nomad job stop` waits for a start under way.
    # start_timeout = "60s"

    # How long the token and leases of a task that ended by itself wait for its next start, which takes them over.
    # linger = "60s"

    # How often the driver reads secrets without a lease (KV) again, unless a template has its own poll_interval; and the
    # shortest interval that a template may ask for.
    # poll_interval     = "30s"
    # min_poll_interval = "5s"

    # Users that no task may run as.
    # denied_users = ["root"]

    # What the doors of tasks may do. Doors connect to no address of this node and to nothing local unless it is here.
    # doors {
    #   allow_hosts = ["api.example.com", "*.stripe.com"] # where doors may lead; empty: everywhere
    #   allow_cidrs = ["127.0.0.0/8"]                     # local addresses to which they may connect all the same
    #   record_dir  = "/var/log/nomad-doors"              # where each call is written down
    # }

    # A door of the operator's own. A job names it with an empty block: door "pay" {}. No task and no job can read the key.
    # door "pay" {
    #   namespaces = ["prod"]    # Nomad namespaces whose tasks may use it; "*" is all
    #   vault      = "default"   # a vault block with token_file
    #   policies   = ["pay-key"] # of the token that reads the key
    #   url        = "https://pay.example.com"
    #   bearer     = "{{ with secret \"kv/data/pay\" }}{{ .Data.data.key }}{{ end }}"
    #   # header, query, basic_auth { username password }; methods, paths, encoded_slash, scrub; mode;
    #   # postgres, username, password, role; insecure, ca_pem; rate, max_conns, idle_timeout, header_timeout; stale;
    #   # record, sample; poll_interval: as in a job, see docs/task-options.md
    # }

    # What a task sees of the host. "bind" mounts the paths read-only, which takes milliseconds, and lets the task read what
    # everyone may. "chroot" copies the client's chroot_env into each task, secrets included, as Nomad's exec does.
    # filesystem = "bind"
    # paths = ["/run/systemd/resolve/resolv.conf", "/run/systemd/resolve/stub-resolv.conf",
    #          "/run/resolvconf/resolv.conf", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"]

    # Variables of the agent's environment that tasks have with filesystem = "bind", unless the job sets them.
    # host_env = ["PATH", "LANG", "LC_ALL", "TZ"]
  }
}

plugin "vault-docker" {
  config {
    vault "default" {
      address               = "http://127.0.0.1:8200"
      jwt_auth_backend_path = "jwt-nomad"
      create_from_role      = "nomad-workloads"
    }

    # As above: state_dir, start_timeout, linger, poll_interval, min_poll_interval. denied_users is empty here.
    # gc.dangling_containers.enabled is false here, for the reason below.

    # Registries that may receive the credentials of a task's auth { vault_path }. Empty: every registry.
    # auth_registries = ["docker.io", "registry.example.com:5000"]
  }
}

# Each of two docker drivers on one Docker engine takes the other's containers for lost ones and removes them after five
# minutes. vault-docker leaves them alone; Nomad's own driver needs this setting.
plugin "docker" {
  config {
    gc {
      dangling_containers {
        enabled = false
      }
    }
  }
}

# Tasks without any isolation, as root unless they name a user. Leave this block out to have none.
plugin "vault-raw_exec" {
  config {
    vault "default" {
      address               = "http://127.0.0.1:8200"
      jwt_auth_backend_path = "jwt-nomad"
      create_from_role      = "nomad-workloads"
    }
  }
}
