#!/bin/sh
# Sets Vault up for Nomad's workload identities, writes a first secret, and says whether its job (setup.nomad.hcl) would get it. Running it
# again changes nothing.
#
# Needs nomad-driver-vault (the file in plugin_dir) and the vault command; VAULT_ADDR and a VAULT_TOKEN that may write auth methods, engines
# and policies; NOMAD_ADDR as *Vault* reaches it, to fetch the public keys that JWTs are checked with, and where ACLs are on a NOMAD_TOKEN
# that may submit jobs and read nodes. With several Nomad servers, name a load balancer or a DNS entry.
set -eu
: "${VAULT_ADDR:?}" "${NOMAD_ADDR:?}"

# Tasks log in at jwt-nomad with the JWT that Nomad signed for them, and may read the secrets of their own job, kv/<namespace>/<job>/...
# Without -yes it shows what it will do, and asks; -dry-run prints what the vault command or Terraform would do; -destroy takes it back.
# With names of your own, which then stand in the agents' configuration and in the jobs:
#
#   nomad-driver-vault setup -path=jwt-team -role=team -policy=team -kv=team -audience=https://vault.example
nomad-driver-vault setup -yes

vault kv put -mount=kv default/hello-setup/config greeting="good morning"

# One line for each finding; the exit code is 1 where there is a problem.
nomad-driver-vault check -job="$(dirname "$0")/setup.nomad.hcl"
