package template

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// A template runs in the process that all tasks of a node need, and a process without memory ends. So that a template
// that takes too much, or never ends, fails alone, each function looks before it is called at what it may take
// (cost.go), and the tree of the template is changed before it is executed: the value of each pipeline passes through a
// function of ours. The value itself is not changed.

// MaxOutput is the largest result of one template, in bytes: sixteen times
// Nomad's default secrets directory, and little enough that a plugin can hold
// a few. What it takes to get there is bounded too: see cost.go.
const MaxOutput = 16 << 20

const (
	// of all that functions return in one pass of a task's templates, and of what the next one may take
	maxHeld  = 4 * MaxOutput
	maxTurns = 1 << 20 // of all {{ range }} and {{ template }} together
	// maxDeep is how many templates may be within each other. An error that comes up from a range in each of them takes a
	// time that grows with the square of their number.
	maxDeep = 512
	// maxNested bounds the actions with an end that are within each other: each takes a part of the stack, and so do the
	// calls.
	maxNested = 200

	// maxBranches bounds what can be within each other before the parser is asked, which takes some 3 KiB of stack for
	// each level: a stack doubles when it grows.
	maxBranches = 10_000
)

// The functions that are put into trees. What an author reads of them is the
// error: explain leaves the names out.
const (
	countPrinted = "countPrinted" // {{ value | countPrinted }}, and the arguments of eq and ne, which print them in errors
	countValue   = "countValue"   // of if, with and assignments
	countMade    = "countMade"    // what a method has made of its arguments
	countTurns   = "countTurns"   // {{ range value | countTurns }}
	countIn      = "countIn"      // {{ countIn }} begins each template
	countOut     = "countOut"     // {{ countOut }} ends it
)

var (
	errTooMuch   = fmt.Errorf("the result has more than the %d bytes allowed: split the template", MaxOutput)
	errTooLarge  = fmt.Errorf("it takes more than the %d bytes that the templates of one task may: give it less", maxHeld)
	errTooLong   = fmt.Errorf("more than %d turns of range and calls of templates in one template", maxTurns)
	errTooDeep   = fmt.Errorf("more than %d templates within each other: does one call itself?", maxDeep)
	errBranches  = fmt.Errorf("more than %d of if, with, range and block in one template: split it", maxBranches)
	errTooNested = fmt.Errorf("more than %d actions within each other: split the template", maxNested)
)

// actions is at least how many bytes of the text are within delimiters, and some for each action. What is between two
// left ones may be the author's text up to the last right one.
func actions(s Spec) (n int) {
	left, right := s.delimiters()
	_, text, found := strings.Cut(s.Data, left)
	for found {
		var action string
		action, text, found = strings.Cut(text, left)
		n += 8 + max(0, strings.LastIndex(action, right))
	}
	return n
}

// branch is how an action begins that has others within it, up to its end.
var branch = regexp.MustCompile(`^\W*(else\s+)?(if|with|range|block)\b`)

// branches returns at least how many of these the text has.
func branches(s Spec) (n int) {
	left, _ := s.delimiters()
	_, text, _ := strings.Cut(s.Data, left)
	for action := range strings.SplitSeq(text, left) {
		if branch.MatchString(action) {
			n++
		}
	}
	return n
}

// bound puts the counters into the trees of a template, by their names.
func bound(trees map[string]*parse.Tree) {
	for _, tree := range trees {
		walk(tree.Root, func(node parse.Node) {
			switch n := node.(type) {
			case *parse.ActionNode:
				if len(n.Pipe.Decl) > 0 {
					meter(n.Pipe, countValue)
				} else {
					meter(n.Pipe, countPrinted)
				}
			case *parse.IfNode:
				meter(n.Pipe, countValue)
			case *parse.WithNode:
				meter(n.Pipe, countValue)
			case *parse.RangeNode:
				meter(n.Pipe, countTurns)
			case *parse.PipeNode:
				countCommands(n)
			}
		})
		tree.Root.Nodes = slices.Concat(call(tree.Root, countIn), tree.Root.Nodes, call(tree.Root, countOut))
	}
}

// call is an action that prints nothing.
func call(l *parse.ListNode, counter string) []parse.Node {
	return []parse.Node{&parse.ActionNode{NodeType: parse.NodeAction, Pos: l.Pos,
		Pipe: &parse.PipeNode{NodeType: parse.NodePipe, Pos: l.Pos, Cmds: []*parse.CommandNode{command(l.Pos, counter)}}}}
}

// meter adds a counter to the end of a pipeline.
func meter(p *parse.PipeNode, counter string) {
	p.Cmds = append(p.Cmds, command(p.Pos, counter))
}

func command(at parse.Pos, function string) *parse.CommandNode {
	return &parse.CommandNode{NodeType: parse.NodeCommand, Pos: at,
		Args: []parse.Node{parse.NewIdentifier(function).SetPos(at)}}
}

// depth is how many actions with an end are within each other.
func depth(l *parse.ListNode) (deepest int) {
	if l == nil {
		return 0
	}
	for _, node := range l.Nodes {
		switch n := node.(type) {
		case *parse.IfNode:
			deepest = max(deepest, 1+depth(n.List), 1+depth(n.ElseList))
		case *parse.WithNode:
			deepest = max(deepest, 1+depth(n.List), 1+depth(n.ElseList))
		case *parse.RangeNode:
			deepest = max(deepest, 1+depth(n.List), 1+depth(n.ElseList))
		}
	}
	return deepest
}

// countCommands adds counters where a pipeline calls what is not wrapped: methods, and eq and ne.
func countCommands(p *parse.PipeNode) {
	var all []*parse.CommandNode
	for i, c := range p.Cmds {
		function, _ := c.Args[0].(*parse.IdentifierNode)
		compares := function != nil && (function.Ident == "eq" || function.Ident == "ne")
		if compares && i > 0 {
			all = append(all, command(c.Pos, countPrinted))
		}
		for j, arg := range c.Args {
			if compares && j > 0 && !slices.Contains(literals, arg.Type()) {
				value := &parse.CommandNode{NodeType: parse.NodeCommand, Pos: arg.Position(), Args: []parse.Node{arg}}
				c.Args[j] = &parse.PipeNode{NodeType: parse.NodePipe, Pos: arg.Position(), Line: p.Line,
					Cmds: []*parse.CommandNode{value, command(arg.Position(), countPrinted)}}
			}
		}
		all = append(all, c)
		if slices.Contains(methods, c.Args[0].Type()) && (i > 0 || len(c.Args) > 1) {
			all = append(all, command(c.Pos, countMade))
		}
	}
	p.Cmds = all
}

var (
	literals = []parse.NodeType{parse.NodeBool, parse.NodeNil, parse.NodeNumber, parse.NodeString}
	methods  = []parse.NodeType{parse.NodeField, parse.NodeVariable, parse.NodeChain}
)

// counters are the functions that the trees were given.
func (x *execution) counters() template.FuncMap {
	return template.FuncMap{
		countPrinted: func(v reflect.Value) (reflect.Value, error) { return v, x.print(v) },
		countValue:   func(v reflect.Value) (reflect.Value, error) { return v, x.over() },
		countMade:    func(v reflect.Value) (reflect.Value, error) { return v, x.hold(entry(nil) + size(v)) },
		countTurns:   func(v reflect.Value) (reflect.Value, error) { return v, x.turn(v) },
		countIn:      func() (string, error) { return "", x.enter() },
		countOut:     func() string { x.deep--; return "" },
	}
}

// over is an error once there is no time left.
func (x *execution) over() error { return x.place.over(x.ctx) }

func (x *execution) hold(bytes float64) error {
	b := x.in.Budget
	b.made += bytes
	if !(b.made <= maxHeld) { // nor no number
		return &failed{err: errTooLarge}
	}
	return x.over()
}

// print looks at a value before package fmt does, which prints without end what has itself in it.
func (x *execution) print(v reflect.Value) error {
	if indirect(v).Kind() != reflect.String && size(v) > MaxOutput {
		return &failed{err: errTooMuch}
	}
	return x.over()
}

// turn counts what a range goes over.
func (x *execution) turn(v reflect.Value) error {
	n := 0
	switch items := indirect(v); items.Kind() {
	case reflect.Array, reflect.Slice, reflect.Map:
		n = items.Len()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n = int(min(items.Int(), maxTurns+1))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		n = int(min(items.Uint(), maxTurns+1))
	case reflect.Invalid: // what is not there has no elements
	default:
		return &failed{err: errors.New("range can't iterate over this value")}
	}
	return x.count(max(n, 0))
}

func (x *execution) count(turns int) error {
	if x.turned += turns; x.turned > maxTurns {
		return &failed{err: errTooLong}
	}
	return x.over()
}

// enter counts a template that begins.
func (x *execution) enter() error {
	if x.deep++; x.deep > maxDeep {
		return &failed{err: errTooDeep}
	}
	return x.count(1)
}

func indirect(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

// output is what a template has printed.
type output struct {
	bytes.Buffer
	x *execution
}

func (o *output) Write(data []byte) (int, error) {
	all := &o.x.in.Budget.out
	*all += len(data)
	switch {
	case o.Len()+len(data) > MaxOutput:
		return 0, &failed{err: errTooMuch}
	case *all > maxOutputs:
		return 0, &failed{err: errAllOutput}
	}
	if err := o.x.over(); err != nil {
		return 0, err
	}
	return o.Buffer.Write(data)
}
