package render

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestExpand(t *testing.T) {
	env := map[string]string{"USER": "ada", "PASS": `a"b ${x} $(USER) $$(USER)`, "EMPTY": "", "NUL": "a\x00b",
		"LONG": strings.Repeat("x", 100<<10), "a.b_1": "dotted"}
	for text, want := range map[string]string{
		"--user=$(USER)":       "--user=ada",
		"$(USER)$(USER)":       "adaada",
		"$(PASS)":              env["PASS"],
		"x$(EMPTY)y":           "xy",
		"$(a.b_1)":             "dotted",
		"$$(USER)":             "$(USER)",
		"$$$(USER)":            "$ada",
		"$$$$(USER)":           "$$(USER)",
		"$(NOBODY) $$(NOBODY)": "$(NOBODY) $(NOBODY)",
		"$$ $USER ${USER}":     "$$ $USER ${USER}",
		"$(date +%s) $() $(1)": "$(date +%s) $() $(1)",
		"$(USER":               "$(USER",
	} {
		x := expander{env: env, used: map[string]string{}}
		got, err := x.text("args[0]", text)
		must.NoError(t, err)
		must.Eq(t, want, got, must.Sprint(text))
		must.Eq(t, want != text, x.changed, must.Sprint(text))
	}
	for text, want := range map[string]string{
		"$(NUL)":         "args[0]: the value of NUL has a NUL byte, which no argument can have: use a file",
		"$(LONG)$(LONG)": "args[0]: longer than 131071 bytes with the value of LONG: use a file",
	} {
		x := expander{env: env, used: map[string]string{}}
		_, err := x.text("args[0]", text)
		must.EqError(t, err, want)
	}
}

func TestExpandAtAnyDepth(t *testing.T) {
	x := expander{env: map[string]string{"A": "1", "B": strings.Repeat("x", 100<<10)}, used: map[string]string{}}
	got, err := x.expand("labels", []any{map[string]any{"k": "v-$(A)", "$(A)": 7, "deep": []any{"$(A)", true, nil}}})
	must.NoError(t, err)
	must.Eq(t, []any{map[string]any{"k": "v-1", "$(A)": 7, "deep": []any{"1", true, nil}}}, got.([]any))
	must.Eq(t, map[string]string{"A": "1"}, x.used)
	var many []any
	for range 30 {
		many = append(many, "$(B)")
	}
	_, err = x.expand("args", many)
	must.EqError(t, err, "args[20]: with it, the options are longer than 2097152 bytes: use files")
}
