package operator

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl"
)

// acl is what a token may do: the rules of its policies, read as Vault reads them
// (https://developer.hashicorp.com/vault/docs/concepts/policies). Vault itself can be asked about a token only, and a token
// that an operator makes has no identity to put into the paths.
type acl struct {
	rules []rule
	// left are the placeholders of paths that were left out, as Vault leaves them out: of another auth method, or of what only
	// Vault knows.
	left []string
}

type rule struct {
	path   string // with + and *, without placeholders
	policy string
	can    []string
}

var placeholder = regexp.MustCompile(`{{\s*([^}\s]*)\s*}}`)

// add reads a policy. identity holds the values of the placeholders that are known.
func (a *acl) add(name, text string, identity map[string]string) error {
	var parsed struct {
		Paths []struct {
			Path         string   `hcl:",key"`
			Capabilities []string `hcl:"capabilities"`
		} `hcl:"path"`
	}
	if err := hcl.Decode(&parsed, text); err != nil {
		return fmt.Errorf("policy %q: %w", name, err)
	}
	for _, p := range parsed.Paths {
		known := true
		path := placeholder.ReplaceAllStringFunc(p.Path, func(found string) string {
			value, ok := identity[placeholder.FindStringSubmatch(found)[1]]
			if !ok {
				known, a.left = false, append(a.left, found)
			}
			return value
		})
		if known {
			a.rules = append(a.rules, rule{strings.TrimPrefix(path, "/"), name, p.Capabilities})
		}
	}
	return nil
}

// allows reports whether one of the capabilities is granted at a path. Of the rules that fit, those of the most specific path
// count, together; a list asks for a path that ends with a slash, which a rule need not have.
func (a acl) allows(path string, capabilities []string) bool {
	path = strings.TrimPrefix(path, "/")
	var best []rule
	for _, r := range a.rules {
		if !r.fits(path) && !(strings.HasSuffix(path, "/") && r.path+"/" == path) {
			continue
		}
		switch order := slices.Compare(r.rank(), rankOf(best)); {
		case order > 0:
			best = []rule{r}
		case order == 0:
			best = append(best, r)
		}
	}
	granted := false
	for _, r := range best {
		if slices.Contains(r.can, "deny") {
			return false
		}
		granted = granted || slices.ContainsFunc(capabilities, func(c string) bool { return slices.Contains(r.can, c) })
	}
	return granted
}

// fits reports whether the rule is about the path: + stands for one segment, * at the end for anything.
func (r rule) fits(path string) bool {
	pattern, glob := strings.CutSuffix(r.path, "*")
	wanted, there := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(there) < len(wanted) || !glob && len(there) > len(wanted) {
		return false
	}
	for i, segment := range wanted {
		last := glob && i == len(wanted)-1
		if segment != "+" && segment != there[i] && !(last && strings.HasPrefix(there[i], segment)) {
			return false
		}
	}
	return true
}

// rank orders paths as Vault does, the most specific last: by where the first wildcard stands, then by whether there is a *
// at the end, the number of +, the length, and the path itself.
func (r rule) rank() []string {
	first, glob := math.MaxInt32, 1
	if i := strings.IndexAny(r.path, "+*"); i >= 0 {
		first = i
	}
	if strings.HasSuffix(r.path, "*") {
		glob = 0
	}
	return []string{fmt.Sprintf("%010d %d %05d %05d", first, glob, math.MaxInt16-strings.Count(r.path, "+"), len(r.path)), r.path}
}

func rankOf(best []rule) []string {
	if len(best) == 0 {
		return nil
	}
	return best[0].rank()
}

// identityOf returns the values of a policy's placeholders for a login with these claims at the auth method with that accessor.
func identityOf(accessor string, role settings, claims map[string]string) map[string]string {
	prefix := "identity.entity.aliases." + accessor + "."
	known := map[string]string{prefix + "name": claims[strings.TrimPrefix(fmt.Sprint(role["user_claim"]), "/")]}
	mappings, _ := role["claim_mappings"].(map[string]any)
	for claim, key := range mappings {
		if value, ok := claims[cmp.Or(strings.TrimPrefix(claim, "/"), claim)]; ok {
			known[prefix+"metadata."+fmt.Sprint(key)] = value
		}
	}
	return known
}
