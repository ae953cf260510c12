package template

import (
	"strings"
	"text/template/parse"
)

// A Lookup is a field of a secret that a template names: .Data.data.password.
type Lookup struct {
	Path   string   // of the secret, as it is written, without a query
	Fields []string // below .Data
	Line   int
}

// Wrong returns what the template's author is told where the fields are not there, because the engine is, or is not,
// KV version 2. It is empty where they may be there.
func (l Lookup) Wrong(v2 bool) string {
	switch first := l.Fields[0]; {
	case v2 && first != "data" && first != "metadata", !v2 && first == "data" && len(l.Fields) > 1:
		return wrongVersion(l.Path, v2)
	}
	return ""
}

// Lookups returns the fields that the template names of secrets whose path is written out, as far as its text tells.
func (t *Template) Lookups() []Lookup {
	trees, err := t.spec.parse()
	if err != nil {
		return nil // Parse has accepted it
	}
	found := &lookups{template: t, variables: map[string]string{}}
	for _, tree := range trees {
		found.in(tree.Root, "")
	}
	return found.all
}

// lookups goes through a template's tree. What stands for a secret is kept as the secret's path.
type lookups struct {
	template  *Template
	variables map[string]string
	all       []Lookup
}

// in looks at a node in which dot is the secret at that path, if it is one.
func (l *lookups) in(node parse.Node, dot string) {
	switch n := node.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, each := range n.Nodes {
				l.in(each, dot)
			}
		}
	case *parse.ActionNode:
		l.pipe(n.Pipe, dot)
	case *parse.TemplateNode:
		l.pipe(n.Pipe, dot)
	case *parse.IfNode:
		l.branch(n.BranchNode, dot, dot)
	case *parse.RangeNode:
		l.branch(n.BranchNode, dot, "")
	case *parse.WithNode:
		l.branch(n.BranchNode, dot, l.secret(n.Pipe, dot))
	case *parse.CommandNode:
		for _, arg := range n.Args {
			l.in(arg, dot)
		}
	case *parse.PipeNode:
		l.pipe(n, dot)
	case *parse.FieldNode:
		l.add(dot, n.Ident, n)
	case *parse.VariableNode:
		l.add(l.variables[n.Ident[0]], n.Ident[1:], n)
	case *parse.ChainNode:
		l.in(n.Node, dot)
		if pipe, ok := n.Node.(*parse.PipeNode); ok {
			l.add(l.secret(pipe, dot), n.Field, n)
		}
	}
}

func (l *lookups) branch(n parse.BranchNode, dot, inside string) {
	l.pipe(n.Pipe, dot)
	l.in(n.List, inside)
	l.in(n.ElseList, dot)
}

func (l *lookups) pipe(pipe *parse.PipeNode, dot string) {
	if pipe == nil {
		return
	}
	for _, command := range pipe.Cmds {
		l.in(command, dot)
	}
	if len(pipe.Decl) == 1 {
		l.variables[pipe.Decl[0].Ident[0]] = l.secret(pipe, dot)
	}
}

// secret returns the path of the secret that a pipe is, or nothing.
func (l *lookups) secret(pipe *parse.PipeNode, dot string) string {
	if len(pipe.Cmds) != 1 {
		return ""
	}
	command := pipe.Cmds[0]
	for _, ask := range l.template.asks(command) {
		if ask.Func == "secret" && !ask.Write {
			return ask.Path
		}
	}
	if len(command.Args) != 1 {
		return ""
	}
	switch n := command.Args[0].(type) {
	case *parse.DotNode:
		return dot
	case *parse.VariableNode:
		if len(n.Ident) == 1 {
			return l.variables[n.Ident[0]]
		}
	}
	return ""
}

func (l *lookups) add(path string, fields []string, at parse.Node) {
	if path != "" && len(fields) > 1 && fields[0] == "Data" {
		l.all = append(l.all, Lookup{path, fields[1:], l.template.spec.line(at)})
	}
}

// AsksNomad reports whether the template has a function that asks Nomad for services or variables.
func (t *Template) AsksNomad() bool {
	for name := range t.functions {
		if strings.HasPrefix(name, "nomad") {
			return true
		}
	}
	return false
}
