package render

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/drivers"
)

func authRequest(a *config.ImageAuth) vault.Request {
	return vault.Request{Op: vault.Read, Path: a.Path, Query: a.Query}
}

// imageAuth is what a registry wants to know before it hands out an image. It does not print itself.
type imageAuth struct{ username, password string }

func (*imageAuth) String() string   { return "[registry credentials]" }
func (*imageAuth) GoString() string { return "[registry credentials]" }

// addAuth asks for the registry's credentials as a part of the snapshot. Changing them triggers no action, since only
// a start needs them. A running task keeps what was read last, even if Vault denies them now: its own secrets do not
// wait for them.
func (r *Renderer) addAuth(ctx context.Context, g, last *Generation) error {
	a := r.conf.Auth
	if !a.FromVault() {
		return nil
	}
	source := g.Snapshot.Source(a.Vault, 0)
	secret, err := source.Ask(ctx, authRequest(a))
	if err == nil {
		g.Auth, err = pickAuth(a, secret)
	}
	switch {
	case err == nil:
		return nil
	case last != nil:
		g.Auth = last.Auth
		return nil
	default:
		return fmt.Errorf("auth: vault_path: %w", err)
	}
}

// pickAuth takes the credentials out of a secret. The fields of a KV version 2 answer are one level further down.
func pickAuth(a *config.ImageAuth, secret *vault.Secret) (*imageAuth, error) {
	fields := secret.Data
	if data, ok := fields["data"].(map[string]any); ok && secret.KVv2() {
		fields = data
	}
	out := &imageAuth{username: a.Username}
	for _, want := range []struct {
		field, key string
		to         *string
	}{{"username_key", a.UsernameKey, &out.username}, {"password_key", a.PasswordKey, &out.password}} {
		if *want.to != "" { // the job names the user
			continue
		}
		value, _ := fields[want.key].(string)
		if number, ok := fields[want.key].(json.Number); ok { // a password of digits, as `vault kv put` with JSON stores it
			value = number.String()
		}
		if value == "" {
			return nil, fmt.Errorf("%s has no text under the key %q: write it, or correct %s", secret.Path, want.key, want.field)
		}
		*want.to = value
	}
	return out, nil
}

// Give puts the credentials into the config block of cfg, which has to be the copy for the wrapped driver alone: the
// task's own is what Nomad is given to store. a may be nil.
func (a *imageAuth) Give(cfg *drivers.TaskConfig) error {
	if a == nil {
		return nil
	}
	var config map[string]any
	if err := cfg.DecodeDriverConfig(&config); err != nil {
		return fmt.Errorf("decode config block: %w", err)
	}
	block, _ := config["auth"].(map[string]any)
	auth := map[string]any{}
	maps.Copy(auth, block)
	auth["username"], auth["password"] = a.username, a.password
	config["auth"] = auth
	if err := cfg.EncodeConcreteDriverConfig(config); err != nil {
		return fmt.Errorf("encode config block: %w", err)
	}
	return nil
}

// Describe is for the line that says what was read.
func (a *imageAuth) Describe() string {
	if a == nil {
		return ""
	}
	return ", registry credentials read"
}
