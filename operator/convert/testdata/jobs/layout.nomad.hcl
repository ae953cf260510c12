/*
 * A job with a layout of its own.
 */
job "layout" {

	# tabs, as some have them
	group "layout" {

		task "layout" {
			driver = "docker" // the engine of the node

			// what the task may read
			vault { role = "layout" }   # one line

			config {
				image = "acme/layout:1" # pinned

				// mounts
				mount {
					type   = "bind"
					source = "secrets"
					target = "/secrets-too"
				}
			}

			resources { cpu = 100 }

			# the key
			template {
				data = <<-EOF
				{{ with secret "kv/data/default/layout/config" }}
				  {{ .Data.data.key }}
				{{ end }}
				EOF
				destination = "secrets/key" # read once
			}

			# after everything
			env { A = "b" }
		}
	}
}
