/*
 * A job with a layout of its own.
 */
job "layout" {

	# tabs, as some have them
	group "layout" {

		task "layout" {
			driver = "vault-docker" // the engine of the node

			identity {
				name = "vault"
				aud  = ["vault.io"]
				file = true
				ttl  = "1h"
			}

			config {
				image = "acme/layout:1" # pinned

				// mounts
				mount {
					type   = "bind"
					source = "secrets"
					target = "/secrets-too"
				}

				// what the task may read
				vault {
					role        = "layout"
					env         = true
					file        = true
					change_mode = "restart"
				} # one line

				# the key
				template {
					data = <<-EOF
				{{ with secret "kv/data/default/layout/config" }}
				  {{ .Data.data.key }}
				{{ end }}
				EOF
					destination = "secrets/key" # read once
				}
			}

			resources { cpu = 100 }

			# after everything
			env { A = "b" }
		}
	}
}
