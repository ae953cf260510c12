complete -C /usr/bin/nomad-driver-vault nomad-driver-vault
