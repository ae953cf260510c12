// Package logtext says of text that others wrote what may stand in a log, an event or a terminal.
package logtext

import (
	"fmt"
	"runtime"
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
