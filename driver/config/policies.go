package config

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
)

// everyNamespace is the label of an allow block for the tasks of all Nomad namespaces.
const everyNamespace = "*"

// Allow is which policies tasks may ask for of the clusters that make tokens by a token role: globs as of path.Match,
// by cluster and Nomad namespace. What is not there is not allowed.
type Allow map[string]map[string][]string

func (c Operator) validateAllow() error {
	for _, cluster := range c.Clusters {
		allow := c.Allow[cluster.Name]
		if len(allow) > 0 && !cluster.Issues() {
			return fmt.Errorf("vault %q: allow is for a cluster with token or token_file: here tasks log in, and Vault's "+
				"roles say who gets what", cluster.Name)
		}
		for _, namespace := range slices.Sorted(maps.Keys(allow)) {
			for _, glob := range allow[namespace] {
				if _, err := path.Match(glob, ""); err != nil || glob == "" {
					return fmt.Errorf("vault %q: allow %q: policies: %q is not a name or a pattern such as \"app-*\"",
						cluster.Name, namespace, glob)
				}
			}
		}
	}
	return nil
}

// allowed are the globs for one namespace.
func (a Allow) allowed(cluster, namespace string) []string {
	return append(slices.Clone(a[cluster][everyNamespace]), a[cluster][namespace]...)
}

// PermitVault checks that a vault block says what its cluster needs to know, and no more than the operator allows in
// that Nomad namespace.
func (c Operator) PermitVault(v Vault, namespace string) error {
	cluster, err := c.Cluster(v.Cluster)
	if err != nil {
		return err
	}
	if v.operators {
		return nil // who has named the policies
	}
	if !cluster.Issues() {
		if len(v.Policies) > 0 {
			return fmt.Errorf("policies is set, but cluster %q has no token role: tasks log in with their identity, so name "+
				"a role in place of policies", v.Cluster)
		}
		return nil
	}
	for _, field := range []struct{ name, value, without string }{
		{"role", v.Role, ""}, {"namespace", v.Namespace, ""}, {"identity", v.Identity, "vault"},
		{"identity_file", v.IdentityFile, ""},
	} {
		if field.value != field.without {
			return fmt.Errorf("%s is set, but cluster %q makes tokens by its token role: leave %[1]s out and name policies",
				field.name, v.Cluster)
		}
	}
	if len(v.Policies) == 0 {
		return fmt.Errorf("policies is missing: cluster %q makes tokens by its token role, so name what the task needs, "+
			"for example policies = [\"api\"]", v.Cluster)
	}
	globs := c.Allow.allowed(v.Cluster, namespace)
	for _, policy := range v.Policies {
		fits := func(glob string) bool {
			ok, _ := path.Match(strings.ToLower(glob), policy)
			return ok
		}
		if !slices.ContainsFunc(globs, fits) {
			return fmt.Errorf("policies: %q is not allowed in Nomad namespace %q: the operator allows %q there (allow in "+
				"vault %q of the plugin's config)",
				policy, namespace, globs, v.Cluster)
		}
	}
	return nil
}

// validatePolicies makes the names what Vault makes of them, which is in small letters. The rest a list must not hide
// from who allows it.
func validatePolicies(names []string) error {
	for i, name := range names {
		names[i] = strings.ToLower(name)
		switch {
		case names[i] == "root":
			return errors.New(`policies: "root" is not for tasks: name the policies that the task needs`)
		case name == "" || strings.ContainsFunc(name, notOfAName):
			return fmt.Errorf("policies: %q is not the name of a policy", name)
		}
	}
	slices.Sort(names)
	return nil
}

func notOfAName(r rune) bool { return r == ',' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
