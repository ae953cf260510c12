module nomad-driver-vault/e2e/tools

go 1.26

require (
	github.com/hashicorp/vault v1.21.0
	github.com/hashicorp/vault/sdk v0.20.0
)

// As Vault's own go.mod: a replace line counts in the main module only.
replace (
	github.com/99designs/keyring => github.com/Jeffail/keyring v1.2.3
	github.com/ma314smith/signedxml v1.1.1 => github.com/moov-io/signedxml v1.1.1
)
