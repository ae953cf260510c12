package setup

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/operator"
)

// existing is what Vault has under the names of objects: nil or empty for what it does not have.
type existing struct {
	method       *api.AuthMount
	config, role settings
	policy       string
	engine       *api.MountOutput
}

// readExisting asks Vault. A mount of another type is an error.
func readExisting(ctx context.Context, vault operator.Vault, o objects) (have existing, err error) {
	methods, err := vault.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return have, vault.Explain("list auth methods", err)
	}
	engines, err := vault.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return have, vault.Explain("list secrets engines", err)
	}
	have.method, have.engine = methods[o.path+"/"], engines[o.kv+"/"]
	if m := have.method; m != nil && m.Type != "jwt" {
		return have, fmt.Errorf("auth/%s is an auth method of type %q, not \"jwt\": choose another -path", o.path, m.Type)
	}
	if e := have.engine; e != nil && (e.Type != "kv" || e.Options["version"] != "2") {
		return have, fmt.Errorf("%s/ is a secrets engine of type %q, version %q, not KV version 2: choose another -kv",
			o.kv, e.Type, e.Options["version"])
	}
	if have.config, err = vault.Read(ctx, o.configPath()); err != nil {
		return have, err
	}
	if have.role, err = vault.Read(ctx, o.rolePath()); err != nil {
		return have, err
	}
	have.policy, err = vault.Policy(ctx, o.policy)
	return have, err
}
