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
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/template/parse"

	"github.com/hashicorp/consul-template/template"
)

// MaxOutput is the largest result of one template, in bytes: sixteen times
// Nomad's default secrets directory, and little enough that a plugin can hold
// a few. What it takes to get there is bounded too: see bound.go.
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
}

// Template is a template whose syntax and functions have been checked. It
// holds no state of an execution.
type Template struct {
	spec Spec
	text string // of spec.Data, with counters
}

// Input is what a template may look at.
type Input struct {
	Source Source

	// Env is the task's environment, the only one templates see.
	Env map[string]string

	// Root is the task's directory and Alloc the allocation's shared one, for
	// the function file. Either may be nil; file then refuses its paths.
	Root, Alloc *os.Root
}

// Parse checks a template without executing it. The error names the template,
// the line, and what is wrong there: syntax, a function that does not exist, or
// one that is not available here and what to use instead.
func Parse(s Spec) (*Template, error) {
	t := &Template{spec: s}
	tree := parse.New("")
	tree.Mode = parse.SkipFuncCheck
	trees := make(map[string]*parse.Tree)
	if _, err := tree.Parse(s.Data, s.LeftDelim, s.RightDelim, trees); err != nil {
		return nil, t.parseError(err)
	}
	if err := t.refuse(trees); err != nil {
		return nil, err
	}
	if err := t.checkNames(); err != nil {
		return nil, err
	}
	t.text = t.bounded(trees)
	return t, nil
}

// parseError turns the parser's "template: NAME:LINE: message" into ours. NAME
// is empty in all that is parsed here, as it is within consul-template.
func (t *Template) parseError(err error) error {
	msg := strings.TrimPrefix(err.Error(), "parse: ")
	msg = strings.TrimPrefix(msg, "template: :")
	if strings.HasSuffix(msg, "unexpected EOF") {
		msg += ": an {{ end }} is missing"
	}
	return fmt.Errorf("parse template %q: line %s", t.spec.Name, strings.ReplaceAll(msg, " started at :", " started at line "))
}

// refuse reports the first function that is not available. A function's name
// is always spelled out in a template, so none can be missed here.
func (t *Template) refuse(trees map[string]*parse.Tree) error {
	var first *parse.IdentifierNode
	for _, tree := range trees {
		walk(tree.Root, func(node parse.Node) {
			n, ok := node.(*parse.IdentifierNode)
			if ok && refusedFuncs[n.Ident] != "" && (first == nil || n.Pos < first.Pos) {
				first = n
			}
		})
	}
	if first == nil {
		return nil
	}
	line := 1 + strings.Count(t.spec.Data[:first.Pos], "\n")
	return fmt.Errorf("parse template %q: line %d: %w", t.spec.Name, line, refusal(first.Ident))
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

// checkNames lets consul-template parse the template, because only it knows
// the names of its functions. It cannot parse without executing, so the first
// thing it executes ends the execution.
func (t *Template) checkNames() error {
	left, right := t.spec.LeftDelim, t.spec.RightDelim
	if left == "" {
		left = "{{"
	}
	if right == "" {
		right = "}}"
	}
	parsed := false
	stop := func() (string, error) {
		parsed = true
		return "", errors.New("parsed")
	}
	_, err := t.run(left+" stopAfterParsing "+right+t.spec.Data, map[string]any{"stopAfterParsing": stop})
	if parsed {
		return nil
	}
	return t.parseError(err)
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
	res, err := t.run(t.text, x.all())
	if err != nil {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, x.explain(err, t.spec.Data))
	}
	if err := t.mistaken(x, res.Output); err != nil {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, err)
	}
	if res.Used.Len() > 0 {
		// Only a function of a newer consul-template that this package does
		// not replace could get here; what it rendered is not an answer.
		return nil, fmt.Errorf("execute template %q: %s is not available in nomad-driver-vault", t.spec.Name, res.Used)
	}
	if len(res.Output) > MaxOutput {
		return nil, fmt.Errorf("execute template %q: %w", t.spec.Name, errTooMuch)
	}
	return res.Output, nil
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
	strict, again := &Template{t.spec, t.text}, newExecution(x.ctx, x.in)
	strict.spec.ErrorOnMissingKey = true
	_, err := strict.run(t.text, again.all())
	if err == nil {
		return nil
	}
	if m := failure.FindStringSubmatch(err.Error()); m == nil || again.hint(m[4], m[2]) == "" {
		return nil
	}
	return again.explain(err, t.spec.Data)
}

// run has consul-template execute data. The text comes in through ReaderFunc,
// because consul-template refuses empty contents, and an empty source file is
// a template like any other.
func (t *Template) run(data string, funcs map[string]any) (*template.ExecuteResult, error) {
	tmpl, err := template.NewTemplate(&template.NewTemplateInput{
		Source:        "template",
		ReaderFunc:    func(string) ([]byte, error) { return []byte(data), nil },
		ErrMissingKey: t.spec.ErrorOnMissingKey,
		LeftDelim:     t.spec.LeftDelim,
		RightDelim:    t.spec.RightDelim,
		ExtFuncMap:    funcs,
	})
	if err != nil {
		return nil, err
	}
	// The brain stays empty. It must be there: consul-template looks into it
	// when an execution fails.
	return tmpl.Execute(&template.ExecuteInput{Brain: template.NewBrain()})
}
