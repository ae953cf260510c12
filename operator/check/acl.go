package check

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl"
)

// acl is what a token may do: the rules of its policies, read as Vault reads them
// (https://developer.hashicorp.com/vault/docs/concepts/policies). Vault answers for a token only, and a token that an
// operator makes has no identity to put into the paths: before the job's first run there is nobody to ask.
type acl struct {
	rules []rule
	// unresolved are placeholders of another auth method, or of what the role does not map. Vault leaves out the rules
	// that have them. Placeholders whose value only Vault knows, as in its default policy, are not among them.
	unresolved []string
}

type rule struct {
	path         string // with + and *, without placeholders
	capabilities []string
}

// written is what the older form of a rule, policy = "write", grants (Vault's vault/policy.go).
var written = map[string][]string{"deny": {"deny"}, "read": {"read", "list"},
	"write": {"create", "read", "update", "delete", "list"},
	"sudo":  {"create", "read", "update", "delete", "list", "sudo"}}

var placeholder = regexp.MustCompile(`{{\s*([^}\s]*)\s*}}`)

// add reads a policy. known holds the values of placeholders.
func (a *acl) add(name, text string, known map[string]string) error {
	var parsed struct {
		Paths []struct {
			Path         string   `hcl:",key"`
			Policy       string   `hcl:"policy"`
			Capabilities []string `hcl:"capabilities"`
		} `hcl:"path"`
	}
	if err := hcl.Decode(&parsed, text); err != nil {
		return fmt.Errorf("policy %q: %w", name, err)
	}
	for _, p := range parsed.Paths {
		complete := true
		path := placeholder.ReplaceAllStringFunc(p.Path, func(found string) string {
			name := placeholder.FindStringSubmatch(found)[1]
			value, ok := known[name]
			complete = complete && ok
			if !ok && strings.HasPrefix(name, "identity.entity.aliases.") {
				a.unresolved = append(a.unresolved, found)
			}
			return value
		})
		if complete {
			a.rules = append(a.rules, rule{strings.TrimPrefix(path, "/"),
				slices.Concat(p.Capabilities, written[p.Policy])})
		}
	}
	return nil
}

// allows reports whether one of the wanted capabilities is granted at a path, which for a list ends with a slash.
func (a acl) allows(path string, wanted []string) bool {
	granted := false
	for _, r := range a.applicable(strings.TrimPrefix(path, "/")) {
		if r.grants("deny") {
			return false
		}
		granted = granted || slices.ContainsFunc(wanted, r.grants)
	}
	return granted
}

// applicable returns the rules that decide at a path, in the order of AllowOperation in Vault's vault/acl.go: those
// of the path itself, or else those of the most specific one with wildcards. For a list, rules that match without its
// slash come first.
func (a acl) applicable(path string) (best []rule) {
	bare := strings.TrimSuffix(path, "/")
	for _, try := range []struct {
		path string
		wild bool
	}{{path, false}, {bare, false}, {bare, true}, {path, true}} {
		for _, r := range a.rules {
			if r.wild() != try.wild || !r.matches(try.path) {
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

func (r rule) grants(capability string) bool { return slices.Contains(r.capabilities, capability) }

// segments are the path's, without the * that stands for anything at its end.
func (r rule) segments() (segments []string, glob bool) {
	path, glob := strings.CutSuffix(r.path, "*")
	return strings.Split(path, "/"), glob
}

func (r rule) wild() bool {
	segments, glob := r.segments()
	return glob || slices.Contains(segments, "+")
}

// matches reports whether the rule is about the path: + stands for one segment.
func (r rule) matches(path string) bool {
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

// rank orders paths with wildcards as Vault does, the most specific last: by where the first wildcard stands, by
// whether there is a * at the end, by the number of +, by length, and by the path.
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
