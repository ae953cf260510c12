#!/bin/sh
# Sets Vault up for Nomad's workload identities, as HashiCorp's tutorial does: tasks log in at jwt-nomad with the JWT that Nomad
# signed for them, and may read the secrets of their own job, kv/<namespace>/<job>/... Running it again changes nothing.
#
# Needs the vault command, VAULT_ADDR and a VAULT_TOKEN that may write auth methods, engines and policies; and NOMAD_ADDR as *Vault*
# reaches it, to fetch the public keys that JWTs are checked with. With several Nomad servers, name a load balancer or a DNS entry.
set -eu
: "${VAULT_ADDR:?}" "${NOMAD_ADDR:?}"

vault read sys/auth/jwt-nomad >/dev/null 2>&1 || vault auth enable -path=jwt-nomad jwt
vault write auth/jwt-nomad/config - <<JSON
{
  "jwks_url": "$NOMAD_ADDR/.well-known/jwks.json",
  "jwt_supported_algs": ["RS256", "EdDSA"],
  "default_role": "nomad-workloads"
}
JSON

# The role's token is periodic and has no maximum, so that it can be renewed for as long as the task runs.
vault write auth/jwt-nomad/role/nomad-workloads - <<'JSON'
{
  "role_type": "jwt",
  "bound_audiences": ["vault.io"],
  "user_claim": "/nomad_job_id",
  "user_claim_json_pointer": true,
  "claim_mappings": {
    "nomad_namespace": "nomad_namespace",
    "nomad_job_id": "nomad_job_id",
    "nomad_task": "nomad_task"
  },
  "token_type": "service",
  "token_policies": ["nomad-workloads"],
  "token_period": "30m",
  "token_explicit_max_ttl": 0
}
JSON

# One policy for every job: Vault puts the namespace and the job of the identity into the paths.
login=$(vault read -field=accessor sys/auth/jwt-nomad)
namespace="{{identity.entity.aliases.$login.metadata.nomad_namespace}}"
job="{{identity.entity.aliases.$login.metadata.nomad_job_id}}"
vault policy write nomad-workloads - <<HCL
path "kv/data/$namespace/$job/*" {
  capabilities = ["read"]
}
path "kv/data/$namespace/$job" {
  capabilities = ["read"]
}
path "kv/metadata/$namespace/*" {
  capabilities = ["list"]
}
path "kv/metadata/*" {
  capabilities = ["list"]
}
HCL

vault read sys/mounts/kv >/dev/null 2>&1 || vault secrets enable -version=2 kv
