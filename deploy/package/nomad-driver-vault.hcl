# nomad-driver-vault for an agent of this host. As it stands this file says nothing: take the # away from the blocks of
# the drivers that jobs use, fill in the address, and restart the agent. docs/plugin-options.md has every option.
#
# The drivers are in <data_dir>/plugins, which is the default of plugin_dir, where data_dir is /opt/nomad/data. If the
# agent has another plugin_dir, make links to /usr/bin/nomad-driver-vault there, with the names of these blocks.

# plugin "vault-exec" {
#   config {
#     vault "default" {
#       address               = "https://vault.service.consul:8200"
#       jwt_auth_backend_path = "jwt-nomad"
#       create_from_role      = "nomad-workloads"
#     }
#   }
# }

# plugin "vault-docker" {
#   config {
#     vault "default" {
#       address               = "https://vault.service.consul:8200"
#       jwt_auth_backend_path = "jwt-nomad"
#       create_from_role      = "nomad-workloads"
#     }
#   }
# }

# plugin "docker" { # otherwise it removes containers of vault-docker: see docs/docker.md
#   config {
#     gc {
#       dangling_containers {
#         enabled = false
#       }
#     }
#   }
# }
