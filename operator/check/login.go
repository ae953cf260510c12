package check

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/operator"
)

// identity is what a task's JWT will say.
type identity struct {
	task     string
	name     string // of its block
	claims   map[string]string
	audience []string
	subject  string // without the region in front
}

// A login is how a task would log in for one of its vault blocks. It is filled in as the check goes on.
type login struct {
	render.Use
	identity
	about      string
	local      bool   // Use.Server is of this machine's configuration
	role, path string // where they are known

	client   *vault.Client  // asks as the task does
	as       operator.Vault // the operator's, in the namespace of the login
	settings map[string]any // of the role
	extras   func(cluster string) (claims map[string]string, readable bool)
	acl      acl // of the role's policies
	// allows reports whether the task would have one of the capabilities at a path; nil: that is not known.
	allows func(path string, capabilities []string) bool
}

func newLogin(about string, d *taskDriver, use render.Use, who identity) *login {
	return &login{Use: use, identity: who, about: about, local: d.local, path: use.Server.AuthPath,
		role: cmp.Or(use.Role, use.Server.Role)}
}

// checkVaultBlock says whether the task can log in, and whether it may do what its templates ask.
func (c *checker) checkVaultBlock(ctx context.Context, l *login) {
	if err := c.prepare(l); err != nil {
		c.driverError(l.about, err)
		return
	}
	if !c.checkReachable(ctx, l) {
		return
	}
	works := c.checkLogin(ctx, l)
	if l.Cluster != c.cluster {
		c.warn(l.about,
			fmt.Sprintf("run check again with -cluster=%s, VAULT_ADDR and VAULT_TOKEN of that cluster", l.Cluster),
			"role and policies are not looked at: VAULT_ADDR is that of cluster %q", c.cluster)
		return
	}
	found, err := l.readRole(ctx)
	switch {
	case err != nil:
		c.warn(l.about, "", "role and policies cannot be looked at: %v", err)
	case found:
		l.checkRole(&c.report)
		l.allows = l.acl.allows
	case works: // otherwise checkLogin said why there is none
		c.warn(l.about, fmt.Sprintf("create it, or set VAULT_ADDR to that of cluster %q", l.Cluster),
			"%s has no role %q of auth/%s", c.vault.Address(), l.role, l.path)
		return
	default:
		return
	}
	c.checkPaths(ctx, l)
}

// prepare finds out which Vault the login is for, and how to ask it.
func (c *checker) prepare(l *login) (err error) {
	if l.Server.Address == "" {
		l.Server.Address = c.vault.Address()
		c.warn(l.about, "give -config, or -path",
			"no client tells its vault %q block: VAULT_ADDR and auth/%s are taken for it", l.Cluster, l.path)
	}
	l.Namespace = cmp.Or(l.Namespace, l.Server.Namespace)
	l.extras = c.extraClaims
	l.client, l.as = c.direct.At(l.path), c.vault.In(l.Namespace)
	if l.local || l.Cluster != c.cluster {
		l.client, err = vault.NewClient(l.Server, noLogger)
	}
	return err
}

// checkReachable reports whether a cluster answers, and says so once.
func (c *checker) checkReachable(ctx context.Context, l *login) bool {
	key := l.Cluster + " " + l.Server.Address
	answers, known := c.probed[key]
	if known {
		return answers
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	about, here := fmt.Sprintf("cluster %q", l.Cluster), l.Cluster == c.cluster
	if here && strings.TrimSuffix(c.vault.Address(), "/") != strings.TrimSuffix(l.Server.Address, "/") {
		c.warn(about, "set VAULT_ADDR to the latter if it is another Vault",
			"VAULT_ADDR is %s, and address in the plugin's configuration %s", c.vault.Address(), l.Server.Address)
	}
	err := l.client.Answers(ctx)
	text, hint := splitHint(err)
	switch {
	case err == nil:
		c.ok(about, "%s answers", l.client.Cluster().Address)
	case l.local:
		c.problem(about, hint, "%s", text)
	case here:
		c.problem(about, "correct VAULT_ADDR, VAULT_CACERT or another of the vault command's variables",
			"%s: %s", c.vault.Address(), text)
	default:
		c.warn(about, "run check with -config on a client", "%s cannot be asked from here, without the clients' network, "+
			"ca_file, cert_file and so on: %s", l.Server.Address, text)
	}
	c.probed[key] = err == nil
	return err == nil
}

// checkLogin reports whether Vault would take a login of the task.
func (c *checker) checkLogin(ctx context.Context, l *login) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err := probe(ctx, l.client, l.role, l.Namespace)
	switch {
	case err != nil:
		c.driverError(l.about, err)
	case l.role == "":
		c.ok(l.about, "auth/%s has a default role, and Vault reads Nomad's keys", l.path)
	default:
		c.ok(l.about, "auth/%s has role %q, and Vault reads Nomad's keys", l.path, l.role)
	}
	return err == nil
}
