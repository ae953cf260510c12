package check

import (
	"testing"

	"github.com/shoenig/test/must"
)

// TestPoliciesAreReadAsVaultReadsThem has the examples of Vault's documentation; e2e compares with Vault itself.
func TestPoliciesAreReadAsVaultReadsThem(t *testing.T) {
	for sentence, c := range map[string]struct {
		policies     []string
		allows, not  []string
		capabilities string
	}{
		"a path without a wildcard is that path": {[]string{`path "kv/a" { capabilities = ["read"] }`},
			[]string{"kv/a", "/kv/a"}, []string{"kv/ab", "kv/a/b", "kv"}, "read"},
		"a * at the end is anything": {[]string{`path "kv/a*" { capabilities = ["read"] }`},
			[]string{"kv/a", "kv/ab", "kv/a/b/c"}, []string{"kv/b", "kv"}, "read"},
		"a + is one segment": {[]string{`path "kv/+/x" { capabilities = ["read"] }`}, []string{"kv/a/x"},
			[]string{"kv/x", "kv/a/b/x", "kv/a/xy"}, "read"},
		"both": {[]string{`path "kv/+/x*" { capabilities = ["read"] }`},
			[]string{"kv/a/x", "kv/a/xy/z"}, []string{"kv/a/b", "kv/x"}, "read"},
		"the most specific path counts alone": {[]string{`path "kv/*" { capabilities = ["read"] } path "kv/a/*" { capabilities = ["list"] } path "kv/a/b" { capabilities = ["read"] }`},
			[]string{"kv/b", "kv/a/b"}, []string{"kv/a/c"}, "read"},
		"what is denied in one policy is denied": {[]string{`path "kv/a" { capabilities = ["read"] }`,
			`path "kv/a" { capabilities = ["deny"] }`}, nil, []string{"kv/a"}, "read"},
		"the same path in two policies is both": {[]string{`path "kv/a" { capabilities = ["list"] }`,
			`path "kv/a" { capabilities = ["read"] }`}, []string{"kv/a"}, nil, "read"},
		"a list may be granted without its slash": {[]string{`path "kv/a" { capabilities = ["list"] }`},
			[]string{"kv/a/"}, []string{"kv/b/"}, "list"},
		"and of a list, what fits without it counts first": {[]string{`path "kv/*" { capabilities = ["read"] } path "kv/a/*" { capabilities = ["list"] }`}, []string{"kv/a/b/"}, []string{"kv/a/"}, "list"},
		"in JSON": {[]string{`{"path": {"kv/a": {"capabilities": ["read"]}, "kv/b*": {"capabilities": ["list"]}}}`},
			[]string{"kv/a"}, []string{"kv/b"}, "read"},
		"in the form of before": {[]string{`path "kv/a" { policy = "read" } path "kv/b" { policy = "deny" } path "kv/c" { policy = "write" }`},
			[]string{"kv/a", "kv/c"}, []string{"kv/b"}, "read"},
		"names are put in, and what is not known is left out": {[]string{`path "kv/{{ identity.entity.name }}/*" { capabilities = ["read"] } path "kv/{{identity.entity.aliases.here.name}}/*" { capabilities = ["read"] }`},
			[]string{"kv/api/x"}, []string{"kv//x", "kv/x"}, "read"},
	} {
		t.Run(sentence, func(t *testing.T) {
			var a acl
			for _, text := range c.policies {
				must.NoError(t, a.add("p", text, map[string]string{"identity.entity.aliases.here.name": "api"}))
			}
			for _, path := range c.allows {
				must.True(t, a.allows(path, []string{"other", c.capabilities}), must.Sprint(path))
			}
			for _, path := range c.not {
				must.False(t, a.allows(path, []string{c.capabilities}), must.Sprint(path))
			}
		})
	}
	must.ErrorContains(t, new(acl).add("p", `path {`, nil), `policy "p"`)
	var a acl
	must.NoError(t, a.add("default", `path "identity/entity/id/{{identity.entity.id}}" { capabilities = ["read"] } path "kv/{{identity.entity.aliases.before.name}}" { capabilities = ["read"] }`, nil))
	must.Eq(t, []string{"{{identity.entity.aliases.before.name}}"}, a.unresolved)
}
