package logtext_test

import (
	"errors"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/logtext"
)

func TestLine(t *testing.T) {
	for text, line := range map[string]string{
		"secret/app is not there":           "secret/app is not there",
		"a\n2026 [ERROR] forged":            `a\n2026 [ERROR] forged`,
		"a\x1b[2Jb\rc\td\x00":               `a\x1b[2Jb\rc\td\x00`,
		"grüße, 世界":                         "grüße, 世界",
		"right to left \u202e, \u2028 next": `right to left \u202e, \u2028 next`,
	} {
		must.Eq(t, line, logtext.Line(text))
	}
}

func TestPanic(t *testing.T) {
	must.Eq(t, "string", logtext.Panic("hunter2"))
	must.Eq(t, "*errors.errorString", logtext.Panic(errors.New("hunter2")))
	defer func() { must.StrContains(t, logtext.Panic(recover()), "index out of range [3]") }()
	var none []int
	_ = none[len("abc")]
}

func TestWithout(t *testing.T) {
	values := map[string]string{"PASSWORD": "hunter2", "LONGER": "hunter22", "LINES": "a\"b\nc", "N": "1", "NONE": ""}
	for text, want := range map[string]string{
		"-p hunter2 -n 1":   "-p $(PASSWORD) -n 1",
		"hunter22, hunter2": "$(LONGER), $(PASSWORD)",
		"x a\"b\nc":         "x $(LINES)",
		`["a\"b\nc"]`:       `["$(LINES)"]`,
		"":                  "",
	} {
		must.Eq(t, want, logtext.Without(values).Replace(text))
	}
	must.Eq(t, "as it is", logtext.Without(nil).Replace("as it is"))
}
