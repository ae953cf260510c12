// Package logtext says of text that others wrote what may stand in a log, an event or a terminal.
package logtext

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Line is text with an escape sequence in place of each character that could begin another line or change a terminal.
func Line(text string) string {
	if strings.IndexFunc(text, unprintable) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unprintable(r) {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// Panic is what a panic says: the message of an error of the Go runtime, and of any other value its type only, since
// the value could hold a secret.
func Panic(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", p)
}

// Without leaves values out of a text, as they are or quoted: in their place are their variables, $(NAME). What is
// shorter than a secret can be stays, since it stands in many a word.
func Without(values map[string]string) *strings.Replacer {
	longestFirst := func(a, b string) int {
		return cmp.Or(cmp.Compare(len(values[b]), len(values[a])), cmp.Compare(a, b))
	}
	const short = 4
	var pairs []string
	for _, name := range slices.SortedFunc(maps.Keys(values), longestFirst) {
		value, shown := values[name], "$("+name+")"
		if len(value) < short {
			continue
		}
		quoted := strconv.Quote(value)
		pairs = append(pairs, value, shown, quoted[1:len(quoted)-1], shown)
	}
	return strings.NewReplacer(pairs...)
}
