package template

import (
	"slices"
	"text/template/parse"
)

// An Ask is one call in a template's text that asks Vault for something.
type Ask struct {
	Func  string // "secret", "secrets", "secretExists" or "pkiCert"
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

// AlwaysAsks reports whether every execution of the template that does not fail asks Vault for something: outside of
// conditions and loops there is a call that does.
func (t *Template) AlwaysAsks() bool {
	trees, err := t.spec.parse()
	if err != nil || trees[""] == nil {
		return false
	}
	for _, node := range trees[""].Root.Nodes {
		if pipe := pipeOf(node); pipe != nil {
			for _, command := range pipe.Cmds {
				if len(t.asks(command)) > 0 {
					return true
				}
			}
		}
	}
	return false
}

// pipeOf returns what is executed of a node in any case, nil where that is nothing.
func pipeOf(node parse.Node) *parse.PipeNode {
	switch node := node.(type) {
	case *parse.ActionNode:
		return node.Pipe
	case *parse.IfNode:
		return node.Pipe
	case *parse.WithNode:
		return node.Pipe
	case *parse.RangeNode:
		return node.Pipe
	}
	return nil
}

// asks returns what one command asks: nothing, or one thing.
func (t *Template) asks(command *parse.CommandNode) []Ask {
	name, ok := command.Args[0].(*parse.IdentifierNode)
	if !ok || !slices.Contains([]string{"secret", "secrets", "secretExists", "pkiCert"}, name.Ident) {
		return nil
	}
	a := Ask{Func: name.Ident, Line: t.spec.line(name), Text: command.String()}
	if len(command.Args) > 1 {
		if literal, ok := command.Args[1].(*parse.StringNode); ok {
			a.Path, _, _ = splitPath(literal.Text)
		}
	}
	a.Write = name.Ident == "pkiCert" || name.Ident == "secret" && len(command.Args) > 2
	return []Ask{a}
}
