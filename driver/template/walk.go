package template

import "text/template/parse"

// walk calls visit for every node at or below node that can hold a function's name, and for the names.
func walk(node parse.Node, visit func(parse.Node)) {
	visit(node)
	switch n := node.(type) {
	case *parse.ActionNode:
		walk(n.Pipe, visit)
	case *parse.TemplateNode:
		if n.Pipe != nil {
			walk(n.Pipe, visit)
		}
	case *parse.ChainNode:
		walk(n.Node, visit)
	case *parse.IfNode:
		walkBranch(&n.BranchNode, visit)
	case *parse.RangeNode:
		walkBranch(&n.BranchNode, visit)
	case *parse.WithNode:
		walkBranch(&n.BranchNode, visit)
	case *parse.ListNode:
		if n != nil {
			walkAll(n.Nodes, visit)
		}
	case *parse.PipeNode:
		walkAll(n.Cmds, visit)
	case *parse.CommandNode:
		walkAll(n.Args, visit)
	}
}

func walkBranch(n *parse.BranchNode, visit func(parse.Node)) {
	walk(n.Pipe, visit)
	walk(n.List, visit)
	walk(n.ElseList, visit)
}

func walkAll[N parse.Node](nodes []N, visit func(parse.Node)) {
	for _, n := range nodes {
		walk(n, visit)
	}
}
