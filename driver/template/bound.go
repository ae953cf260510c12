package template

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"text/template/parse"
)

// consul-template executes into memory and cannot be interrupted. So that a
// template that prints without end, or never ends, fails alone, its text is
// changed before it is executed: the value of every pipeline passes through a
// function of ours, which counts it and ends the execution when there has been
// enough, or the time is over. The value itself is not changed, and no line is
// added.

const (
	maxTurns = 1 << 20 // of all {{ range }} together
	maxCalls = 1 << 16 // of {{ template }}
	// maxDeep is how often templates that call themselves may be called. It is
	// much less, because an error that comes up from a range in each of them
	// takes a time that grows with the square of their number.
	maxDeep = 512
	// maxPrinted bounds what is printed, with room for branches of the text
	// that count though they are not taken: MaxOutput is checked in the end.
	maxPrinted = 4 * MaxOutput
)

// The functions that the text is given. What an author reads of them is the
// error: explain leaves the names out.
const (
	countPrinted = "countPrinted" // {{ value | countPrinted }}
	countValue   = "countValue"   // of if, with and assignments
	countTurns   = "countTurns"   // {{ range value | countTurns 12 }}, with the size of its text
	countCall    = "countCall"    // {{ template "name" value | countCall 12 false }}; true: it calls itself
	countNothing = "countNothing" // {{ template "name" countNothing 12 false }}
)

// insertion is text to be put into the template, before the byte at.
type insertion struct {
	at   int
	text string
}

// bounds makes the insertions for one text.
type bounds struct {
	text  string
	right string                 // delimiter
	trees map[string]*parse.Tree // by the names of {{ define }}
	all   []insertion
}

// bounded returns the template's text with its counters.
func (t *Template) bounded(trees map[string]*parse.Tree) string {
	b := &bounds{text: t.spec.Data, right: cmp.Or(t.spec.RightDelim, "}}"), trees: trees}
	for _, tree := range trees {
		walk(tree.Root, b.count)
	}
	slices.SortFunc(b.all, func(x, y insertion) int { return cmp.Compare(x.at, y.at) })
	var out strings.Builder
	from := 0
	for _, i := range b.all {
		out.WriteString(b.text[from:i.at] + " " + i.text)
		from = i.at
	}
	return out.String() + b.text[from:]
}

// count puts a counter into one node. Those below it are visited, too.
func (b *bounds) count(node parse.Node) {
	switch n := node.(type) {
	case *parse.ActionNode:
		if len(n.Pipe.Decl) > 0 {
			b.pipe(n.Pipe, countValue)
		} else {
			b.pipe(n.Pipe, countPrinted)
		}
	case *parse.IfNode:
		b.pipe(n.Pipe, countValue)
	case *parse.WithNode:
		b.pipe(n.Pipe, countValue)
	case *parse.RangeNode:
		b.pipe(n.Pipe, fmt.Sprint(countTurns, " ", size(n.List)))
	case *parse.TemplateNode:
		b.call(n)
	}
}

func (b *bounds) pipe(p *parse.PipeNode, counter string) {
	b.all = append(b.all, insertion{b.end(int(p.Pos)), "| " + counter})
}

func (b *bounds) call(n *parse.TemplateNode) {
	text := 0
	if tree := b.trees[n.Name]; tree != nil {
		text = size(tree.Root)
	}
	what := fmt.Sprintf(" %d %v", text, b.reaches(n.Name, n.Name, map[string]bool{}))
	if n.Pipe != nil {
		b.pipe(n.Pipe, countCall+what)
	} else {
		b.all = append(b.all, insertion{b.end(int(n.Pos)), countNothing + what})
	}
}

// reaches reports whether the template from calls the template to, itself or by
// way of others that are not among those seen.
func (b *bounds) reaches(from, to string, seen map[string]bool) bool {
	tree := b.trees[from]
	if tree == nil || seen[from] {
		return false
	}
	seen[from] = true
	found := false
	walk(tree.Root, func(node parse.Node) {
		if n, ok := node.(*parse.TemplateNode); ok {
			found = found || n.Name == to || b.reaches(n.Name, to, seen)
		}
	})
	return found
}

// end returns where the action ends that the byte at from is in: before its
// right delimiter, and before what trims the text behind it. As text/template
// does, it looks for the delimiter outside of quotations only.
func (b *bounds) end(from int) int {
	i := from
	for i < len(b.text) && !strings.HasPrefix(b.text[i:], b.right) {
		i += quoted(b.text[i:])
	}
	action := strings.TrimRight(b.text[from:min(i, len(b.text))], " \t\r\n")
	if trimmed, ok := strings.CutSuffix(action, "-"); ok && strings.TrimRight(trimmed, " \t\r\n") != trimmed {
		action = strings.TrimRight(trimmed, " \t\r\n")
	}
	return from + len(action)
}

// quoted returns the length of the quotation that text begins with, or 1.
func quoted(text string) int {
	quote := text[0]
	if quote != '"' && quote != '`' && quote != '\'' {
		return 1
	}
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && quote != '`':
			i++
		case text[i] == quote:
			return i + 1
		}
	}
	return len(text)
}

// size is how many bytes of text one turn prints at the most, without those of
// the ranges and templates in it, which count by themselves.
func size(l *parse.ListNode) (n int) {
	if l == nil {
		return 0
	}
	for _, node := range l.Nodes {
		switch node := node.(type) {
		case *parse.TextNode:
			n += len(node.Text)
		case *parse.IfNode:
			n += max(size(node.List), size(node.ElseList))
		case *parse.WithNode:
			n += max(size(node.List), size(node.ElseList))
		}
	}
	return n
}

// counters are the functions that the text was given.
func (x *execution) counters() map[string]any {
	return map[string]any{
		countPrinted: func(v reflect.Value) (reflect.Value, error) { return v, x.print(valueSize(v)) },
		countValue:   func(v reflect.Value) (reflect.Value, error) { return v, x.hold(v) },
		countTurns:   x.turns,
		countCall: func(text int, deep bool, v reflect.Value) (reflect.Value, error) {
			return v, cmp.Or(x.call(text, deep), x.hold(v))
		},
		countNothing: func(text int, deep bool) (reflect.Value, error) { return reflect.Value{}, x.call(text, deep) },
	}
}

var (
	errTooMuch  = fmt.Errorf("the result has more than the %d bytes allowed: split the template", MaxOutput)
	errTooLong  = fmt.Errorf("more than %d turns of range in one template", maxTurns)
	errTooMany  = fmt.Errorf("more than %d calls of templates in one template", maxCalls)
	errTooDeep  = fmt.Errorf("more than %d calls of a template that calls itself", maxDeep)
	errTooLarge = fmt.Errorf("a value has more than the %d bytes allowed", MaxOutput)
)

// print counts bytes of the result.
func (x *execution) print(n int) error {
	if x.ctx.Err() != nil {
		return x.fail(x.ctx.Err())
	}
	if x.printed += n; x.printed > maxPrinted {
		return x.fail(errTooMuch)
	}
	return nil
}

// hold refuses a value that no result has room for: one that is made of two
// such values would be twice as large, and so on.
func (x *execution) hold(v reflect.Value) error {
	if x.ctx.Err() != nil {
		return x.fail(x.ctx.Err())
	}
	if v.IsValid() && v.Kind() == reflect.String && v.Len() > MaxOutput {
		return x.fail(errTooLarge)
	}
	return nil
}

// turns counts what a range goes over.
func (x *execution) turns(text int, v reflect.Value) (reflect.Value, error) {
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
		return v, x.fail(errors.New("range can't iterate over this value"))
	}
	if x.turned += max(n, 0); x.turned > maxTurns {
		return v, x.fail(errTooLong)
	}
	return v, x.print(max(n, 0) * text)
}

func (x *execution) call(text int, deep bool) error {
	if x.called++; x.called > maxCalls {
		return x.fail(errTooMany)
	}
	if deep {
		if x.deep++; x.deep > maxDeep {
			return x.fail(errTooDeep)
		}
	}
	return x.print(text)
}

func indirect(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

// valueSize is how many bytes a value is printed in.
func valueSize(v reflect.Value) int {
	switch v = indirect(v); {
	case !v.IsValid():
		return len(noValue)
	case v.Kind() == reflect.String:
		return v.Len()
	case !v.CanInterface():
		return 0 // text/template does not print it either
	default:
		return len(fmt.Sprint(v.Interface()))
	}
}
