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
	// left are the placeholders of paths that were left out, as Vault leaves them out: of another auth method, or of what the role does not
	// map. Those of what only Vault knows, as in its default policy, are not among them.
	left []string
}

type rule struct {
	path string // with + and *, without placeholders
	can  []string
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
			name := placeholder.FindStringSubmatch(found)[1]
			value, ok := identity[name]
			known = known && ok
			if !ok && strings.HasPrefix(name, "identity.entity.aliases.") {
				a.left = append(a.left, found)
			}
			return value
		})
		if known {
			a.rules = append(a.rules, rule{strings.TrimPrefix(path, "/"), p.Capabilities})
		}
	}
	return nil
}

// allows reports whether one of the capabilities is granted at a path, which for a list ends with a slash.
func (a acl) allows(path string, capabilities []string) bool {
	granted := false
	for _, r := range a.counting(strings.TrimPrefix(path, "/")) {
		if slices.Contains(r.can, "deny") {
			return false
		}
		granted = granted || slices.ContainsFunc(capabilities, func(c string) bool { return slices.Contains(r.can, c) })
	}
	return granted
}

// counting returns the rules that count at a path, in the order of AllowOperation in Vault's vault/acl.go: those of the path
// itself, or else those of the most specific one with wildcards; of a list without its slash before those with it.
func (a acl) counting(path string) (best []rule) {
	bare := strings.TrimSuffix(path, "/")
	for _, try := range []struct {
		path string
		wild bool
	}{{path, false}, {bare, false}, {bare, true}, {path, true}} {
		for _, r := range a.rules {
			if r.wild() != try.wild || !r.fits(try.path) {
				continue
			}
			if len(best) == 0 || r.rank() > best[0].rank() {
				best = nil
			}
			if len(best) == 0 || r.rank() == best[0].rank() {
				best = append(best, r)
			}
		}
		if len(best) > 0 {
			break
		}
	}
	return best
}

// segments are the path's, without the * that stands for anything at its end.
func (r rule) segments() (segments []string, glob bool) {
	path, glob := strings.CutSuffix(r.path, "*")
	return strings.Split(path, "/"), glob
}

func (r rule) wild() bool {
	segments, glob := r.segments()
	return glob || slices.Contains(segments, "+")
}

// fits reports whether the rule is about the path: + stands for one segment.
func (r rule) fits(path string) bool {
	segments, glob := r.segments()
	for i, segment := range segments {
		segments[i] = regexp.QuoteMeta(segment)
		if segment == "+" {
			segments[i] = "[^/]*"
		}
	}
	pattern := "^" + strings.Join(segments, "/")
	if !glob {
		pattern += "$"
	}
	ok, _ := regexp.MatchString(pattern, path)
	return ok
}

// rank orders paths with wildcards as Vault does, the most specific last: by where the first wildcard stands, by whether there
// is a * at the end, by the number of +, by length, and by the path.
func (r rule) rank() string {
	segments, glob := r.segments()
	first, plain, plus := len(strings.Join(segments, "/")), 1, 0
	if glob {
		plain = 0
	}
	for i, segment := range slices.Backward(segments) {
		if segment == "+" {
			plus++
			first = len(strings.Join(segments[:i+1], "/")) - 1
		}
	}
	return fmt.Sprintf("%09d %d %09d %09d %s", first, plain, math.MaxInt16-plus, len(r.path), r.path)
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
