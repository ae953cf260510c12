#!/bin/sh
# Sets Vault up for tasks that get their tokens by a token role instead of logging in, as Nomad's servers had it until 1.9, and writes
# the token that the plugin makes them with to a file: token_file of the plugin's vault block. Each node can have a token of its own.
#
#   sh token-role.sh /opt/nomad/vault_token
#
# Needs the vault command, VAULT_ADDR and a VAULT_TOKEN that may write policies and token roles, and make orphan tokens. Running it again
# makes another token.
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

# Periodic and without a maximum, so that a token lives as long as its task; orphan, so that it survives the token it was made with.
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
