#!/bin/sh
# Prepares Vault for Nomad's workload identities, writes a first secret, and says whether its job (setup.nomad.hcl) would
# get it. A second run changes nothing.
#
# Needs:
#   - nomad-driver-vault (the file in plugin_dir) and the vault command
#   - VAULT_ADDR, and a VAULT_TOKEN that may write auth methods, engines and policies
#   - NOMAD_ADDR as *Vault* reaches it, to fetch the public keys of Nomad's JWTs. With several Nomad servers, name a load
#     balancer or a DNS entry.
#   - where ACLs are on, a NOMAD_TOKEN that may submit jobs and read nodes
set -eu
: "${VAULT_ADDR:?}" "${NOMAD_ADDR:?}"

# Tasks log in at jwt-nomad with the JWT that Nomad signed for them, and may read the secrets of their own job, which are
# below kv/<namespace>/<job>/. Without -yes, setup shows what it will do, and asks. -dry-run prints input for the vault
# command or Terraform. -destroy removes what setup created. You can choose the names; then use them in the agents'
# configuration and in the jobs:
#
#   nomad-driver-vault setup -path=jwt-team -role=team -policy=team -kv=team -audience=https://vault.example
nomad-driver-vault setup -yes

vault kv put -mount=kv default/hello-setup/config greeting="good morning"

# Prints one line for each finding. The exit code is 1 if there is a problem.
nomad-driver-vault check -job="$(dirname "$0")/setup.nomad.hcl"
