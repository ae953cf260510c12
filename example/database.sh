#!/bin/sh
# After setup.sh: lets the jobs "database" (database.nomad.hcl) and "door-database" (door-database.nomad.hcl), and no other,
# have their own PostgreSQL users from Vault.
#
# Needs the vault command, VAULT_ADDR and VAULT_TOKEN as setup.sh does; and PGHOST, PGPORT, PGUSER, PGPASSWORD of a
# PostgreSQL user that may create users, as *Vault* reaches the server.
set -eu
: "${VAULT_ADDR:?}" "${PGHOST:?}" "${PGPORT:?}" "${PGUSER:?}" "${PGPASSWORD:?}"

vault read sys/mounts/database >/dev/null 2>&1 || vault secrets enable database
vault write database/config/postgres - <<JSON
{
  "plugin_name": "postgresql-database-plugin",
  "allowed_roles": "*",
  "connection_url": "postgresql://{{username}}:{{password}}@$PGHOST:$PGPORT/postgres?sslmode=disable",
  "username": "$PGUSER",
  "password": "$PGPASSWORD"
}
JSON

# A user's lease is an hour, and a day at most: the driver renews it, and replaces the user before the day is over.
vault write database/roles/database - <<'JSON'
{
  "db_name": "postgres",
  "creation_statements": "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
  "default_ttl": "1h",
  "max_ttl": "24h"
}
JSON

# sys/leases/revoke lets the driver remove a user as soon as its successor is in use. Without it, the old user lives until
# its lease ends.
vault policy write database - <<'HCL'
path "database/creds/database" {
  capabilities = ["read"]
}
path "sys/leases/revoke" {
  capabilities = ["update"]
}
HCL

vault write auth/jwt-nomad/role/database - <<'JSON'
{
  "role_type": "jwt",
  "bound_audiences": ["vault.io"],
  "bound_claims": {
    "nomad_namespace": "default",
    "nomad_job_id": ["database", "door-database"]
  },
  "user_claim": "/nomad_job_id",
  "user_claim_json_pointer": true,
  "claim_mappings": {
    "nomad_namespace": "nomad_namespace",
    "nomad_job_id": "nomad_job_id",
    "nomad_task": "nomad_task"
  },
  "token_type": "service",
  "token_policies": ["database"],
  "token_period": "30m",
  "token_explicit_max_ttl": 0
}
JSON
