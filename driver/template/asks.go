package template

import (
	"slices"
	"strings"
	"text/template/parse"
)

// An Ask is one call in a template's text that asks Vault for something.
type Ask struct {
	Func  string // "secret", "secrets" or "pkiCert"
	Path  string // as it is written, without a query; empty where it is known only when the template is executed
	Write bool   // it has arguments to send
	Line  int
	Text  string // the call as it is written
}

// Asks returns the template's calls in the order of its text, those included that an execution might not come to.
func (t *Template) Asks() []Ask {
	trees, err := t.spec.parse()
	if err != nil {
		return nil // Parse has accepted it
	}
	var all []Ask
	for _, tree := range trees {
		walk(tree.Root, func(node parse.Node) {
			if command, ok := node.(*parse.CommandNode); ok {
				all = append(all, t.asks(command)...)
			}
		})
	}
	slices.SortStableFunc(all, func(a, b Ask) int { return a.Line - b.Line })
	return all
}

// asks returns what one command asks: nothing, or one thing.
func (t *Template) asks(command *parse.CommandNode) []Ask {
	name, ok := command.Args[0].(*parse.IdentifierNode)
	if !ok || !slices.Contains([]string{"secret", "secrets", "pkiCert"}, name.Ident) {
		return nil
	}
	a := Ask{Func: name.Ident, Line: 1 + strings.Count(t.spec.Data[:name.Pos], "\n"), Text: command.String()}
	if len(command.Args) > 1 {
		if literal, ok := command.Args[1].(*parse.StringNode); ok {
			a.Path, _, _ = splitPath(literal.Text)
		}
	}
	a.Write = name.Ident == "pkiCert" || name.Ident == "secret" && len(command.Args) > 2
	return []Ask{a}
}
