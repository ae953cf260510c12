package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// ImageAuth is our part of the auth block of a wrapped driver that pulls images, and what it must not contradict of
// the driver's own.
type ImageAuth struct {
	VaultPath   string `codec:"vault_path"`
	UsernameKey string `codec:"username_key"`
	PasswordKey string `codec:"password_key"`
	Vault       string `codec:"vault"`

	Username string `codec:"username"`
	Password string `codec:"password"`

	Path  string     `codec:"-"` // of vault_path
	Query url.Values `codec:"-"` // of vault_path: version=2
}

// validateAuth leaves a block without our fields to the wrapped driver: a handle of before them has it without the
// defaults.
func (c *Task) validateAuth() error {
	a := c.Auth
	if a == nil {
		return nil
	}
	a.UsernameKey, a.PasswordKey = cmp.Or(a.UsernameKey, "username"), cmp.Or(a.PasswordKey, "password")
	a.Vault = cmp.Or(a.Vault, "default")
	switch {
	case a.VaultPath == "" && (a.UsernameKey != "username" || a.PasswordKey != "password" || a.Vault != "default"):
		return errors.New(`auth: vault_path is missing: name the secret that has the credentials, such as ` +
			`"kv/data/app/registry"`)
	case a.VaultPath == "":
		return nil
	case a.Password != "":
		return errors.New("auth: both password and vault_path are set: keep one")
	case a.Username != "" && a.UsernameKey != "username":
		return errors.New("auth: both username and username_key are set: keep one")
	case strings.Contains(c.Image, "$("):
		return errors.New("auth: vault_path with a variable in image: write the image out, whose registry gets the " +
			"credentials")
	case a.Vault != "default" && !c.HasVault(a.Vault):
		return fmt.Errorf("auth: vault = %q: the task has no vault block with that name", a.Vault)
	}
	u, err := url.Parse(strings.Trim(a.VaultPath, "/ "))
	if err != nil || u.Path == "" {
		return fmt.Errorf(`auth: vault_path %q is not a path such as "kv/data/app/registry"`, a.VaultPath)
	}
	a.Path, a.Query = u.Path, u.Query()
	return nil
}

// permittedAuth refuses to read credentials for a registry that the operator has not named: they go to whichever the
// image names.
func (c *Task) permittedAuth(op Operator) error {
	if !c.Auth.FromVault() || len(op.AuthRegistries) == 0 {
		return nil
	}
	if to := registry(c.Image); !slices.Contains(op.AuthRegistries, to) {
		return fmt.Errorf("auth: vault_path: the image is pulled from %s, to which this node's operator lets no "+
			"credentials go (auth_registries)", to)
	}
	return nil
}

// registry returns the host, with its port, that Docker pulls an image from (splitDockerDomain in
// github.com/distribution/reference, parseDockerImage in Nomad's drivers/docker).
func registry(image string) string {
	const hub = "docker.io"
	host, _, named := strings.Cut(strings.TrimPrefix(image, "https://"), "/")
	folder := !strings.ContainsAny(host, ".:") && host != "localhost" && strings.ToLower(host) == host
	if !named || host == "index.docker.io" || folder {
		return hub
	}
	return host
}

// FromVault reports whether there is something to read. a may be nil.
func (a *ImageAuth) FromVault() bool { return a != nil && a.VaultPath != "" }
