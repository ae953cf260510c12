package process

import (
	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/door/httpdoor"
	"nomad-driver-vault/driver/door/postgresdoor"
)

// Kinds makes the door that a Spec is of: to PostgreSQL, or else to an HTTP API or to Vault.
func Kinds(spec door.Spec, plugin door.Plugin) (door.Door, error) {
	if spec.Postgres != nil {
		return postgresdoor.New(spec, plugin)
	}
	return httpdoor.New(spec, plugin)
}
