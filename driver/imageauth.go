package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// ImageAuthConfig is our part of the auth block of a wrapped driver that pulls images, and what it must not contradict of
// the driver's own.
type ImageAuthConfig struct {
	VaultPath   string `codec:"vault_path"`
	UsernameKey string `codec:"username_key"`
	PasswordKey string `codec:"password_key"`
	Vault       string `codec:"vault"`

	Username string `codec:"username"`
	Password string `codec:"password"`

	path  string     // of vault_path
	query url.Values // of vault_path: version=2
}

// ImageAuthSpec returns the HCL specification of what ImageAuthConfig adds to the wrapped driver's auth block.
func ImageAuthSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{"auth": hclspec.NewBlock("auth", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"vault_path":   attr("vault_path", "string", `""`),
		"username_key": attr("username_key", "string", `"username"`),
		"password_key": attr("password_key", "string", `"password"`),
		"vault":        attr("vault", "string", `"default"`),
	}))}
}

// validateAuth leaves a block without our fields to the wrapped driver: a handle of before them has it without the defaults.
func (c *TaskConfig) validateAuth() error {
	a := c.Auth
	if a == nil {
		return nil
	}
	a.UsernameKey, a.PasswordKey = cmp.Or(a.UsernameKey, "username"), cmp.Or(a.PasswordKey, "password")
	a.Vault = cmp.Or(a.Vault, "default")
	switch {
	case a.VaultPath == "" && (a.UsernameKey != "username" || a.PasswordKey != "password" || a.Vault != "default"):
		return errors.New(`auth: vault_path is missing: name the secret that has the credentials, such as "kv/data/app/registry"`)
	case a.VaultPath == "":
		return nil
	case a.Password != "":
		return errors.New("auth: both password and vault_path are set: keep one")
	case a.Username != "" && a.UsernameKey != "username":
		return errors.New("auth: both username and username_key are set: keep one")
	case a.Vault != "default" && !c.has(a.Vault):
		return fmt.Errorf("auth: vault = %q: the task has no vault block with that name", a.Vault)
	}
	u, err := url.Parse(strings.Trim(a.VaultPath, "/ "))
	if err != nil || u.Path == "" {
		return fmt.Errorf(`auth: vault_path %q is not a path such as "kv/data/app/registry"`, a.VaultPath)
	}
	a.path, a.query = u.Path, u.Query()
	return nil
}

// permittedAuth refuses to read credentials for a registry that the operator has not named: they go to whichever the image names.
func (c *TaskConfig) permittedAuth(op Config) error {
	if !c.Auth.fromVault() || len(op.AuthRegistries) == 0 {
		return nil
	}
	if to := registry(c.Image); !slices.Contains(op.AuthRegistries, to) {
		return fmt.Errorf("auth: vault_path: the image is pulled from %s, to which this node's operator lets no credentials go (auth_registries)", to)
	}
	return nil
}

// registry returns the host, with its port, that Docker pulls an image from (splitDockerDomain in github.com/distribution/reference,
// parseDockerImage in Nomad's drivers/docker).
func registry(image string) string {
	const hub = "docker.io"
	host, _, named := strings.Cut(strings.TrimPrefix(image, "https://"), "/")
	if !named || host == "index.docker.io" || !strings.ContainsAny(host, ".:") && host != "localhost" && strings.ToLower(host) == host {
		return hub
	}
	return host
}

// fromVault reports whether there is something to read. a may be nil.
func (a *ImageAuthConfig) fromVault() bool { return a != nil && a.VaultPath != "" }

func (a *ImageAuthConfig) request() vault.Request {
	return vault.Request{Op: vault.Read, Path: a.path, Query: a.query}
}

// imageAuth is what a registry wants to know before it hands out an image. It does not print itself.
type imageAuth struct{ username, password string }

func (*imageAuth) String() string   { return "[registry credentials]" }
func (*imageAuth) GoString() string { return "[registry credentials]" }

// addAuth asks for the registry's credentials within the generation's reading. They are never looked at again for a change, of
// which nobody is told: only a start needs them. A task that runs keeps what was read last, also where they are denied by now:
// its own secrets do not wait for them.
func (r *renderer) addAuth(ctx context.Context, g, last *generation) error {
	a := r.conf.Auth
	if !a.fromVault() {
		return nil
	}
	source := &source{pass: g.pass, vault: a.Vault}
	secret, err := source.ask(ctx, a.request())
	if err == nil {
		g.auth, err = a.pick(secret)
	}
	switch {
	case err == nil:
		return nil
	case last != nil:
		g.auth = last.auth
		return nil
	default:
		return fmt.Errorf("auth: vault_path: %w", err)
	}
}

// pick takes the credentials out of a secret. The fields of a KV version 2 answer are one level further down.
func (a *ImageAuthConfig) pick(secret *vault.Secret) (*imageAuth, error) {
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
		value, ok := fields[want.key].(string)
		if !ok || value == "" {
			return nil, fmt.Errorf("%s has no text under the key %q: write it, or correct %s", secret.Path, want.key, want.field)
		}
		*want.to = value
	}
	return out, nil
}

// give puts the credentials into the config block of cfg, which has to be the copy for the wrapped driver alone: the task's own
// is what Nomad is given to store. a may be nil.
func (a *imageAuth) give(cfg *drivers.TaskConfig) error {
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

// describe is for the line that says what was read.
func (a *imageAuth) describe() string {
	if a == nil {
		return ""
	}
	return ", registry credentials read"
}
