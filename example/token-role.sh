#!/bin/sh
# Prepares Vault for tasks that get their tokens by a token role and do not log in, as with Nomad's servers until 1.9. Writes
# the plugin's own token, which makes the tokens of tasks, to a file: token_file of the plugin's vault block. Each node can
# have a token of its own.
#
#   sh token-role.sh /opt/nomad/vault_token
#
# Needs the vault command, VAULT_ADDR and a VAULT_TOKEN that may write policies and token roles, and create orphan tokens. A
# second run creates another token.
set -eu
: "${VAULT_ADDR:?}"
file=${1:?"the file to write the token to"}

vault policy write nomad-server - <<'HCL'
# Make tokens by the token role, which the plugin looks at first.
path "auth/token/create/nomad-cluster" {
  capabilities = ["update"]
}
path "auth/token/roles/nomad-cluster" {
  capabilities = ["read"]
}
# Revoke the tokens of dead tasks where their policies do not let them revoke themselves.
path "auth/token/revoke-accessor" {
  capabilities = ["update"]
}
# These are in Vault's default policy, too.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}
HCL

# Periodic and without a maximum, so that a token lives as long as its task. Orphan, so that it survives the token that
# made it.
vault write auth/token/roles/nomad-cluster - <<'JSON'
{
  "disallowed_policies": ["nomad-server"],
  "orphan": true,
  "renewable": true,
  "token_period": "72h",
  "token_explicit_max_ttl": 0
}
JSON

umask 077
vault token create -orphan -policy=nomad-server -period=72h -field=token >"$file.new"
mv "$file.new" "$file"
