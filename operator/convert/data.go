package convert

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Nomad hands the text of its own template block on as it is. In config, the client puts in values a second time: what
// has to arrive as ${...} or %{...} is escaped once more.
const (
	escapeOpen  = "replace(replace("
	escapeClose = `, "$${", "$$${"), "%%{", "%%%{")`
)

// data returns the text of a template, and whether it is to be seen here: not that of a source, or of a variable.
func (t *task) data(body *hclsyntax.Body) (text string, seen bool) {
	attr := body.Attributes["data"]
	if attr == nil {
		return "", false
	}
	if name, ok := fileOf(attr.Expr); ok {
		read, err := os.ReadFile(filepath.Join(filepath.Dir(t.name), name))
		return string(read), err == nil
	}
	var b strings.Builder
	parts := partsOf(attr.Expr)
	for _, part := range parts {
		if value, ok := literalText(part); ok {
			b.WriteString(value)
		} else {
			b.WriteString("${" + string(part.Range().SliceBytes(t.text)) + "}")
		}
	}
	return b.String(), parts != nil
}

// fileOf is the name in file("name").
func fileOf(e hclsyntax.Expression) (name string, ok bool) {
	if call, is := e.(*hclsyntax.FunctionCallExpr); is && call.Name == "file" && len(call.Args) == 1 {
		return literalText(call.Args[0])
	}
	return "", false
}

// partsOf are those of a quoted text or a heredoc, or nil.
func partsOf(e hclsyntax.Expression) []hclsyntax.Expression {
	switch e := e.(type) {
	case *hclsyntax.TemplateExpr:
		return e.Parts
	case *hclsyntax.TemplateWrapExpr:
		return []hclsyntax.Expression{e.Wrapped}
	}
	return nil
}

// dataEdits escape a template's text.
func (t *task) dataEdits(e hclsyntax.Expression) []edit {
	parts := partsOf(e)
	if parts == nil {
		return t.escapeCall(e)
	}
	var edits []edit
	at := e.Range().Start.Byte
	for _, part := range parts {
		if _, literal := part.(*hclsyntax.LiteralValueExpr); literal {
			continue
		}
		open := t.opening(part)
		_, variable := part.(*hclsyntax.ScopeTraversalExpr)
		switch {
		case open < 0, !t.isComputed(part) && !variable:
			return t.escapeCall(e)
		case !t.isComputed(part):
			edits = append(edits, edit{start: open, end: open, text: "$$"})
		}
		edits = append(edits, escapes(string(t.text[at:open]), at)...)
		at = part.Range().End.Byte
	}
	return append(edits, escapes(string(t.text[at:e.Range().End.Byte]), at)...)
}

// opening is where the ${ is that an expression is the whole of, or -1: it is a part of another, or of a %{...}.
func (t *task) opening(e hclsyntax.Expression) int {
	before := strings.TrimRight(string(t.text[:e.Range().Start.Byte]), " \t~")
	after := strings.TrimLeft(string(t.text[e.Range().End.Byte:]), " \t~")
	if strings.HasSuffix(before, "${") && strings.HasPrefix(after, "}") {
		return len(before) - len("${")
	}
	return -1
}

// escapes are for the literals of a text that begins where at is.
func escapes(text string, at int) (edits []edit) {
	for i := range text {
		if rest := text[i:]; strings.HasPrefix(rest, "$${") || strings.HasPrefix(rest, "%%{") {
			edits = append(edits, edit{start: at + i, end: at + i, text: rest[:1]})
		}
	}
	return edits
}

// escapeCall has nomad job run escape a text that is not to be seen here. A file that has nothing to escape stays.
func (t *task) escapeCall(e hclsyntax.Expression) []edit {
	if name, ok := fileOf(e); ok {
		read, err := os.ReadFile(filepath.Join(filepath.Dir(t.name), name))
		if err == nil && !strings.Contains(string(read), "${") && !strings.Contains(string(read), "%{") {
			return nil
		}
	}
	at, end := e.Range(), escapeClose
	if strings.HasPrefix(string(t.text[at.Start.Byte:]), "<<") {
		end = "\n" + end
	}
	return []edit{{start: at.Start.Byte, end: at.Start.Byte, text: escapeOpen},
		{start: at.End.Byte, end: at.End.Byte, text: end}}
}
