package logtext_test

import (
	"strings"
	"testing"
	"unicode"

	"nomad-driver-vault/internal/logtext"
)

// FuzzLine looks for text that begins another line or changes a terminal, and for text that is printable and changed.
func FuzzLine(f *testing.F) {
	for _, text := range []string{"", "a\n2026 [ERROR] forged", "\x1b[2J", "grüße", "\u202e", "\xff\xfe", "\\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line := logtext.Line(text)
		unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
		if strings.ContainsFunc(line, unprintable) {
			t.Errorf("%q became %q", text, line)
		}
		if line != text && !strings.ContainsFunc(text, unprintable) {
			t.Errorf("%q is printable and became %q", text, line)
		}
	})
}
