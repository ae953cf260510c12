package template

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template/parse"
)

// NodeVariables are the variables of the node that a driver is told. Nomad's own template block has, beside them, every
// attribute and all of the metadata of the node, by these names (client/taskenv/env.go, All).
var NodeVariables = []string{"node.unique.id", "node.unique.name", "node.datacenter", "node.region"}

// ofNode matches the names of the node's variables. No variable of a task has a dot (client/taskenv/env.go, buildEnv).
var ofNode = regexp.MustCompile(`^(attr|meta|node)\.`)

var notInNames = regexp.MustCompile(`\W`)

// nodeError says how to get at a variable that a driver is not told. To render nothing in its place would be silent.
func nodeError(name string) error {
	own := strings.ToUpper(notInNames.ReplaceAllString(name, "_"))
	return fmt.Errorf(`drivers are not told the node's %[1]s: write env { %[2]s = "${%[1]s}" } in the task, and `+
		`env "%[2]s" here`, name, own)
}

// checkNodeVariables returns an error for the first call that asks for a variable of the node that is never known.
func (s Spec) checkNodeVariables(trees map[string]*parse.Tree) error {
	var first *parse.StringNode
	for _, tree := range trees {
		walk(tree.Root, func(node parse.Node) {
			if name := askedOfEnv(node); name != nil && ofNode.MatchString(name.Text) &&
				!slices.Contains(NodeVariables, name.Text) && (first == nil || name.Pos < first.Pos) {
				first = name
			}
		})
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("parse template %q: line %d: %w", s.Name, s.line(first), nodeError(first.Text))
}

// askedOfEnv returns the name that a command asks the environment for, where it is spelled out.
func askedOfEnv(node parse.Node) *parse.StringNode {
	command, ok := node.(*parse.CommandNode)
	if !ok || len(command.Args) < 2 {
		return nil
	}
	function, ok := command.Args[0].(*parse.IdentifierNode)
	if !ok || !slices.Contains([]string{"env", "mustEnv", "envOrDefault"}, function.Ident) {
		return nil
	}
	name, _ := command.Args[1].(*parse.StringNode)
	return name
}
