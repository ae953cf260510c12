package process

import (
	"context"

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

// Reach connects to the upstream of a door as the door does, and has it prove who it is where there is TLS. It sends no
// credential, and no request. An error that wraps door.ErrNotAllowed says what the operator must write.
func Reach(ctx context.Context, spec door.Spec) error {
	if spec.Postgres != nil {
		return postgresdoor.Reach(ctx, spec)
	}
	return httpdoor.Reach(ctx, spec)
}
