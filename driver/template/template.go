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
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// Template is a template whose syntax and functions have been checked. It
// holds no state of an execution.
type Template struct {
	spec      Spec
	trees     map[string]*parse.Tree // by the names of {{ define }}, with counters
	functions map[string]bool        // that are called in them
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
	if branches(s) > maxBranches {
		return nil, fmt.Errorf("parse template %q: %w", s.Name, errBranches)
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
	if err := s.checkNodeVariables(trees); err != nil {
		return nil, err
	}
	bound(trees)
	t.trees = trees
	return t, nil
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
	return fmt.Errorf("parse template %q: line %d: function %q %s", t.spec.Name, t.spec.line(wrong), wrong.Ident, why)
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
	err = t.mistaken(x, result)
	if err == nil && t.spec.Env {
		err = x.checkWhole(string(result))
	}
	if err != nil {
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
