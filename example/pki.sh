#!/bin/sh
# After setup.sh: lets the job "hello-pki" (pki.nomad.hcl), and no other, have certificates for names below
# service.example, from a CA that this script creates in Vault. In production, use an intermediate CA, signed by yours. A
# second run changes nothing.
#
# Needs the vault command, VAULT_ADDR and VAULT_TOKEN as setup.sh does.
set -eu
: "${VAULT_ADDR:?}"

if ! vault read sys/mounts/pki >/dev/null 2>&1; then
  vault secrets enable -max-lease-ttl=87600h pki
  vault write pki/root/generate/internal common_name="Example CA" ttl=87600h >/dev/null
fi

vault write pki/roles/hello-pki allowed_domains=service.example allow_subdomains=true key_type=ec key_bits=256 max_ttl=72h

vault policy write hello-pki - <<'HCL'
path "pki/issue/hello-pki" {
  capabilities = ["update"]
}
path "pki/revoke-with-key" { # its own certificates only; pki/revoke would be everybody's
  capabilities = ["update"]
}
HCL

vault write auth/jwt-nomad/role/hello-pki - <<'JSON'
{
  "role_type": "jwt",
  "bound_audiences": ["vault.io"],
  "bound_claims": {
    "nomad_namespace": "default",
    "nomad_job_id": "hello-pki"
  },
  "user_claim": "/nomad_job_id",
  "user_claim_json_pointer": true,
  "claim_mappings": {
    "nomad_namespace": "nomad_namespace",
    "nomad_job_id": "nomad_job_id",
    "nomad_task": "nomad_task"
  },
  "token_type": "service",
  "token_policies": ["hello-pki"],
  "token_period": "30m",
  "token_explicit_max_ttl": 0
}
JSON
