// Package template turns templates and secrets into bytes, and bytes into one
// generation of files.
//
// The language is consul-template's; everything it would fetch, read or run by
// itself is replaced: Vault and Nomad are asked through a Source, files are
// those of the task, the environment is the task's. A function blocks until its
// answer is there, so one execution does the whole template and its error names
// the line that failed. No error holds a secret value.
package template

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// MaxOutput is the largest result of one template, in bytes: sixteen times
// Nomad's default secrets directory, and little enough that a plugin can hold
// a few. What it takes to get there is bounded too: see bound.go and cost.go.
const MaxOutput = 16 << 20

// Spec is one template as the job author wrote it.
type Spec struct {
	// Name is how messages name the template, e.g. its destination.
	Name string

	Data string

	// LeftDelim and RightDelim are "{{" and "}}" when empty.
	LeftDelim, RightDelim string

	// ErrorOnMissingKey makes a map key that does not exist an error. Without
	// it such a key renders as "<no value>", as in Nomad.
	ErrorOnMissingKey bool

	// Values are what may have been written into Data before it came here, by name. None of them may be a part of its
	// code.
	Values map[string]string

	// Budget is that of all templates of the task; nil gives this one its own.
	Budget *Budget
}

// Template is a template whose syntax and functions have been checked. It
// holds no state of an execution.
type Template struct {
	spec      Spec
	trees     map[string]*parse.Tree // by the names of {{ define }}, with counters
	functions map[string]bool        // that are called in them
	recursive bool                   // one of them calls itself
}

// Input is what a template may look at.
type Input struct {
	Source Source

	// Env is the task's environment, the only one templates see.
	Env map[string]string

	// Root is the task's directory and Alloc the allocation's shared one, for
	// the function file. Either may be nil; file then refuses its paths.
	Root, Alloc *os.Root

	// Budget is that of all templates of the task; nil gives this one its own.
	Budget *Budget
}

// Parse checks a template without executing it. The error names the template,
// the line, and what is wrong there: syntax, a function that does not exist, or
// one that is not available here and what to use instead.
func Parse(s Spec) (*Template, error) {
	t := &Template{spec: s, functions: make(map[string]bool)}
	if s.Budget == nil {
		s.Budget = NewBudget()
	}
	if err := s.Budget.admit(s); err != nil {
		return nil, fmt.Errorf("parse template %q: %w", s.Name, err)
	}
	if err := s.checkValues(); err != nil {
		return nil, err
	}
	trees, err := s.parse()
	if err != nil {
		return nil, t.parseError(err)
	}
	for _, tree := range trees {
		if depth(tree.Root) > maxNested {
			return nil, fmt.Errorf("parse template %q: %w", s.Name, errTooNested)
		}
	}
	if err := t.checkNames(trees); err != nil {
		return nil, err
	}
	bound(trees)
	t.trees, t.recursive = trees, recursive(trees)
	return t, nil
}

// parse returns the template's text as trees, which may have functions that do not exist.
func (s Spec) parse() (map[string]*parse.Tree, error) {
	trees := make(map[string]*parse.Tree)
	tree := parse.New("")
	tree.Mode = parse.SkipFuncCheck
	_, err := tree.Parse(s.Data, s.LeftDelim, s.RightDelim, trees)
	return trees, err
}

// parseError turns the parser's "template: NAME:LINE: message" into ours. NAME
// is empty in all that is parsed here.
func (t *Template) parseError(err error) error {
	msg := strings.TrimPrefix(err.Error(), "template: :")
	if strings.HasSuffix(msg, "unexpected EOF") {
		msg += ": an {{ end }} is missing"
	}
	return fmt.Errorf("parse template %q: line %s", t.spec.Name, strings.ReplaceAll(msg, " started at :",
		" started at line "))
}

// checkNames notes the functions that are called, and returns an error for the
// first that there is not. A function's name is always spelled out in a
// template, so none can be missed here.
func (t *Template) checkNames(trees map[string]*parse.Tree) error {
	var wrong *parse.IdentifierNode
	for _, tree := range trees {
		walk(tree.Root, func(node parse.Node) {
			n, ok := node.(*parse.IdentifierNode)
			if !ok {
				return
			}
			t.functions[n.Ident] = true
			if _, exists := classes[n.Ident]; !exists && (wrong == nil || n.Pos < wrong.Pos) {
				wrong = n
			}
		})
	}
	if wrong == nil {
		return nil
	}
	why := refusedFuncs[wrong.Ident]
	if why == "" {
		why = "not defined"
	}
	line := 1 + strings.Count(t.spec.Data[:wrong.Pos], "\n")
	return fmt.Errorf("parse template %q: line %d: function %q %s", t.spec.Name, line, wrong.Ident, why)
}

// walk calls visit for every node at or below node that can hold a function's name, and for the names.
func walk(node parse.Node, visit func(parse.Node)) {
	visit(node)
	switch n := node.(type) {
	case *parse.ActionNode:
		walk(n.Pipe, visit)
	case *parse.TemplateNode:
		walk(n.Pipe, visit)
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
		if n != nil {
			walkAll(n.Cmds, visit)
		}
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

// Execute renders the template. It asks in.Source for what the template needs,
// when it needs it, until the result is complete or ctx ends. When a call to
// the Source fails, the error wraps what the Source returned. A Template may be
// executed any number of times.
func (t *Template) Execute(ctx context.Context, in Input) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, err)
	}
	x := newExecution(ctx, in)
	if err := x.place.enter(ctx); err != nil {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, ctx.Err())
	}
	defer x.place.leave()
	result, err := t.run(x)
	if err != nil {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, x.explain(err, t.spec.Data))
	}
	if err := t.mistaken(x, result); err != nil {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, err)
	}
	return result, nil
}

// noValue is what text/template prints for a key that does not exist.
const noValue = "<no value>"

// mistaken returns the error of a template that x has rendered with noValue in
// it because the fields of a KV version 2 secret were looked for where version 1
// has them: nobody can mean that. Another missing key is no error without
// ErrorOnMissingKey, as in Nomad.
func (t *Template) mistaken(x *execution, output []byte) error {
	isV2 := func(s readSecret) bool { _, v2 := kv2(s.data); return v2 }
	if !bytes.Contains(output, []byte(noValue)) || !slices.ContainsFunc(x.secrets, isV2) {
		return nil
	}
	strict, again := *t, newExecution(x.ctx, x.in)
	again.place = x.place
	strict.spec.ErrorOnMissingKey = true
	_, err := strict.run(again)
	if err == nil {
		return nil
	}
	if m := failure.FindStringSubmatch(err.Error()); m == nil || again.hint(m[4], m[2]) == "" {
		return nil
	}
	return again.explain(err, t.spec.Data)
}

// run executes the template as consul-template does (template/template.go, Execute).
func (t *Template) run(x *execution) ([]byte, error) {
	x.recursive = t.recursive
	missing := "missingkey=zero"
	if t.spec.ErrorOnMissingKey {
		missing = "missingkey=error"
	}
	whole := template.New("").Option(missing).Funcs(x.funcs(t.functions))
	for name, tree := range t.trees {
		if _, err := whole.AddParseTree(name, tree); err != nil {
			return nil, err
		}
	}
	out := &output{x: x}
	err := whole.Execute(out, nil)
	return out.Bytes(), err
}
