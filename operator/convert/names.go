package convert

import (
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// useNames writes $(NAME) in config for a variable that a template sets, where Nomad has ${NAME}: config is read before
// anything is rendered. What else has such a variable is named.
func (t *task) useNames() {
	t.eachVariable(t.config.Body, t.useName)
	t.useEscapedNames()
	for _, b := range t.body.Blocks {
		if !slices.Contains([]string{"config", "template", "vault", "env"}, b.Type) {
			t.eachVariable(b.Body, func(e *hclsyntax.ScopeTraversalExpr) {
				if name := e.Traversal.RootName(); t.names[name] {
					t.find(e.Range(), "${%s} in %s is not put in: it is set by a template, and only config can have it, as $(%s)",
						name, b.Type, name)
				}
			})
		}
	}
}

// eachVariable calls do for each variable in a body that the client puts a value in for.
func (t *task) eachVariable(body *hclsyntax.Body, do func(*hclsyntax.ScopeTraversalExpr)) {
	diagnostics := hclsyntax.VisitAll(body, func(n hclsyntax.Node) hcl.Diagnostics {
		if e, ok := n.(*hclsyntax.ScopeTraversalExpr); ok && len(e.Traversal) == 1 && !t.computes(e.Traversal) {
			do(e)
		}
		return nil
	})
	if diagnostics.HasErrors() {
		panic(diagnostics) // do returns none
	}
}

func (t *task) useName(e *hclsyntax.ScopeTraversalExpr) {
	name, at := e.Traversal.RootName(), e.Range()
	open := t.opening(e)
	bare := strings.HasSuffix(strings.TrimRight(string(t.text[:at.Start.Byte]), " \t\n"), "=")
	switch {
	case !t.names[name] && t.unseen && !strings.HasPrefix(name, "NOMAD_") && !t.hasEnv(name):
		t.find(at, "${%s}: if a template sets it, write $(%s)", name, name)
	case !t.names[name]:
	case open >= 0:
		end := at.End.Byte + strings.IndexByte(string(t.text[at.End.Byte:]), '}') + 1
		t.edits = append(t.edits, edit{start: open, end: end, text: "$(" + name + ")"})
	case bare:
		t.replace(at, `"$(`+name+`)"`)
	default:
		t.find(at, "%s is set by a template, and nothing can be computed with it here: use $(%s) as it is", name, name)
	}
}

// hasEnv reports whether the task's env block has a variable.
func (t *task) hasEnv(name string) bool {
	env := first(t.body, "env")
	return env != nil && env.Body.Attributes[name] != nil
}

var escapedName = regexp.MustCompile(`(?:^|[^$])(\$\$\{\s*(\w+)\s*\})`)

// useEscapedNames is for $${NAME}, of which nomad job run makes ${NAME}.
func (t *task) useEscapedNames() {
	at := t.config.Body.SrcRange
	for _, m := range escapedName.FindAllSubmatchIndex(at.SliceBytes(t.text), -1) {
		start := at.Start.Byte + m[2]
		if name := string(t.text[at.Start.Byte+m[4] : at.Start.Byte+m[5]]); t.names[name] {
			t.edits = append(t.edits, edit{start: start, end: at.Start.Byte + m[3], text: "$(" + name + ")"})
		}
	}
}
