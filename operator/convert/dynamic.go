package convert

import (
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// expand writes out the dynamic template blocks of tasks that are converted, since config has none. It reports whether
// there was one, of which the values are to be seen; the job has to be read anew then.
func (j *job) expand() bool {
	for _, t := range j.tasks {
		for _, b := range blocksOf(t.body, "dynamic") {
			if !t.usesVault() || t.driver == "" || t.config == nil || !slices.Equal(b.Labels, []string{"template"}) {
				continue
			}
			if text, ok := t.turns(b); ok {
				j.write(b, text)
				return true
			}
		}
	}
	return false
}

// write puts text in the place of a dynamic block; comments above it stay.
func (j *job) write(dynamic *hclsyntax.Block, text string) {
	_, end := linesOf(j.text, dynamic.Range())
	start := dynamic.TypeRange.Start.Byte - len(lineUpTo(j.text, dynamic.TypeRange.Start.Byte))
	line, lines := dynamic.TypeRange.Start.Line, strings.Count(text, "\n")
	j.written = append(j.written, written{line: line, last: line + lines - 1,
		more: lines - strings.Count(string(j.text[start:end]), "\n")})
	j.text = apply(j.text, []edit{{start: start, end: end, text: text}})
}

// A written dynamic block is one that has been written out, at a line of the text: by how many lines the text grew, and
// which is the last of them.
type written struct{ line, more, last int }

// original is the line of the file that a line of the text comes from.
func (j *job) original(line int) int {
	for _, w := range slices.Backward(j.written) {
		switch {
		case line > w.last:
			line -= w.more
		case line > w.line:
			line = w.line
		}
	}
	return line
}

// turns returns the blocks that a dynamic block makes. ok is false if its values are not to be seen here.
func (t *task) turns(dynamic *hclsyntax.Block) (text string, ok bool) {
	content, each := first(dynamic.Body, "content"), dynamic.Body.Attributes["for_each"]
	if content == nil || each == nil {
		return "", false
	}
	values, diagnostics := each.Expr.Value(nil)
	if diagnostics.HasErrors() || !values.IsWhollyKnown() || !values.CanIterateElements() {
		return "", false
	}
	indent := indentOf(t.text, dynamic.TypeRange.Start.Byte)
	var turns []string
	for key, value := range values.Elements() {
		turn := turn{name: iterator(dynamic), fields: cty.ObjectVal(map[string]cty.Value{"key": key, "value": value})}
		edits, ok := turn.edits(t, content.Body)
		if !ok {
			return "", false
		}
		block := strings.Replace(t.cut(content, edits), "content", "template", 1)
		turns = append(turns, indented(block, "", indent))
	}
	return strings.Join(turns, "\n"), true
}

// A turn of a dynamic block is a name with the fields key and value.
type turn struct {
	name   string
	fields cty.Value
}

var plain = regexp.MustCompile(`^[\w./:@-]*$`)

// edits put the values of the turn in the place of its name.
func (u turn) edits(t *task, body *hclsyntax.Body) (edits []edit, ok bool) {
	ok = true
	_ = hclsyntax.VisitAll(body, func(n hclsyntax.Node) hcl.Diagnostics {
		e, is := n.(*hclsyntax.ScopeTraversalExpr)
		if !is || e.Traversal.RootName() != u.name {
			return nil
		}
		value, diagnostics := e.Value(&hcl.EvalContext{Variables: map[string]cty.Value{u.name: u.fields}})
		if diagnostics.HasErrors() {
			ok = false
			return nil
		}
		edits = append(edits, t.valueEdit(e, value))
		return nil
	})
	return edits, ok
}

// valueEdit puts a value in the place of a variable: as text where it is one without anything to escape.
func (t *task) valueEdit(e hclsyntax.Expression, value cty.Value) edit {
	at := e.Range()
	open := t.opening(e)
	if open >= 0 && value.Type() == cty.String && plain.MatchString(value.AsString()) {
		end := at.End.Byte + strings.IndexByte(string(t.text[at.End.Byte:]), '}') + 1
		return edit{start: open, end: end, text: value.AsString()}
	}
	return edit{start: at.Start.Byte, end: at.End.Byte, text: string(hclwrite.TokensForValue(value).Bytes())}
}
