package convert

import (
	"bytes"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// An edit puts text in the place of the bytes from start to end.
type edit struct {
	start, end int
	text       string
	lines      bool // whole lines are taken out, and an empty line that they leave over
}

// apply returns text with the edits, which do not overlap, made.
func apply(text []byte, edits []edit) []byte {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return b.start - a.start })
	for _, e := range edits { // from the last one on, so that the positions of the others stay
		if e.lines {
			e = e.widened(text)
		}
		text = slices.Concat(text[:e.start], []byte(e.text), text[e.end:])
	}
	return text
}

// widened takes out one of two empty lines that would meet, and one that would begin or end a block.
func (e edit) widened(text []byte) edit {
	before, after := lineBefore(text, e.start), lineAfter(text, e.end)
	above := strings.TrimSpace(before)
	switch below := strings.TrimSpace(after); {
	case after != "" && below == "" && (above == "" || strings.HasSuffix(above, "{")):
		e.end += len(after)
	case before != "" && above == "" && (below == "}" || after == ""):
		e.start -= len(before)
	}
	return e
}

// lineBefore is the line that ends where at is, with its end.
func lineBefore(text []byte, at int) string {
	if at == 0 {
		return ""
	}
	return string(text[bytes.LastIndexByte(text[:at-1], '\n')+1 : at])
}

// lineAfter is the line that begins where at is, with its end.
func lineAfter(text []byte, at int) string {
	if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
		return string(text[at : at+i+1])
	}
	return string(text[at:])
}

// linesOf returns where the lines begin and end that a range is in, with the comment lines right above it.
func linesOf(text []byte, r hcl.Range) (start, end int) {
	start = r.Start.Byte - len(lineUpTo(text, r.Start.Byte))
	for line := lineBefore(text, start); isComment(line); line = lineBefore(text, start) {
		start -= len(line)
	}
	return start, r.End.Byte + len(lineAfter(text, r.End.Byte))
}

// lineUpTo is the part of a line before at.
func lineUpTo(text []byte, at int) string {
	return string(text[bytes.LastIndexByte(text[:at], '\n')+1 : at])
}

func isComment(line string) bool {
	line = strings.TrimSpace(line)
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, "//")
}

// indentOf is the white space that the line of a position begins with.
func indentOf(text []byte, at int) string {
	line := lineUpTo(text, at) + lineAfter(text, at)
	return line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}

// indented returns lines with another indent: from is what the first of them has. What is within them is indented by
// tabs where to is. The text of heredocs stays.
func indented(lines, from, to string) string {
	inside := heredocLines(lines)
	var b strings.Builder
	n := 0
	for line := range strings.Lines(lines) {
		n++
		if rest, ok := strings.CutPrefix(line, from); ok && !inside[n] && strings.TrimSpace(line) != "" {
			line = to + rest
			if strings.Contains(to, "\t") {
				text := strings.TrimLeft(rest, " ")
				line = to + strings.ReplaceAll(rest[:len(rest)-len(text)], "  ", "\t") + text
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// heredocLines are the numbers of the lines that belong to a heredoc: what they begin with is its text.
func heredocLines(text string) map[int]bool {
	tokens, _ := hclsyntax.LexConfig([]byte(text), "", hcl.InitialPos)
	all, opened := map[int]bool{}, 0
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOHeredoc:
			opened = t.Range.Start.Line
		case hclsyntax.TokenCHeredoc:
			for n := opened + 1; n <= t.Range.Start.Line; n++ {
				all[n] = true
			}
		}
	}
	return all
}
