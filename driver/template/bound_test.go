package template

import (
	"context"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// ours is what no author has written.
var ours = regexp.MustCompile("count[A-Z]")

// What a template prints is the same with the counters and without.
func TestBoundsDoNotChangeWhatIsPrinted(t *testing.T) {
	for _, text := range []string{
		``, `text`, `{{ "x" }}`, "{{\n\"x\"\n}}", `{{- "x" -}} y`, `a {{- "x" }} b {{ "y" -}}  c`, "a\n{{- /* no value */ -}}\nb",
		`{{ "}}" }}`, "{{ `}}` }}", `{{ "\"}}" }}`, `{{ '}' }}`, `{{ print "}}" | toUpper -}} z`, `{{ "-" }}`, `{{ 3 -}} x`, `{{ -3 }}`,
		`{{ 1 }}{{ 1.5 }}{{ 1e3 }}{{ 0x1F }}{{ true }}{{ 'a' }}{{ .missing }}{{ . }}`,
		`{{ $x := "a" }}{{ $x }}{{ $x = print $x $x }}{{ $x | print }}`,
		`{{ if eq 1 2 }}a{{ else if eq 1 1 }}b{{ else }}c{{ end }}`, `{{ if .missing }}a{{ else }}b{{ end }}`,
		`{{ with "x" }}{{ . }}{{ end }}{{ with .missing }}a{{ else with "z" }}{{ . }}{{ end }}`, `{{ with $x := "x" }}{{ $x }}{{ . }}{{ end }}`,
		`{{ range loop 3 }}{{ . }},{{ end }}{{ range $i, $x := loop 5 8 -}} {{ $i }}={{ $x }} {{- end }}`,
		`{{ range loop 9 }}{{ if eq . 2 }}{{ continue }}{{ end }}{{ if gt . 5 }}{{ break }}{{ end }}{{ . }}{{ end }}`,
		`{{ range loop 0 }}x{{ else }}none{{ end }}{{ range 3 }}{{ . }}{{ end }}{{ range $i := 2 }}{{ $i }}{{ end }}`,
		`{{ range $k, $v := parseJSON "{\"b\":[1,{\"c\":null}],\"a\":\"x\"}" }}{{ $k }}={{ $v }};{{ end }}`,
		`{{ define "a" }}[{{ . }}]{{ end }}{{ template "a" }}{{ template "a" . }}{{ template "a" "x" -}} y`,
		`{{ block "b" "x" }}<{{ . }}>{{ end }}{{ template "b" 7 }}{{ range loop 2 }}{{ block "c" . }}({{ . }}){{ end }}{{ end }}`,
		`{{ with secret "kv/data/app" }}{{ .Data.data.password }} {{ .Data }} {{ .Data.none }} {{ .LeaseID }}{{ end }}`,
		`{{ (index (secret "kv/data/app").Data.data "password") | toUpper }}{{ len (loop 4) }}{{ printf "%T" (loop 1) }}`,
		`{{ loop 2 }}{{ sprig_dict "a" 1 }}{{ range sprig_list "a" "b" }}{{ . }}{{ end }}`,
	} {
		t.Run(text, func(t *testing.T) {
			tmpl, err := Parse(Spec{Name: "x", Data: text})
			must.NoError(t, err)
			in := Input{Source: newSource(), Env: map[string]string{}}
			plain, err := tmpl.run(text, newExecution(t.Context(), in).funcs())
			must.NoError(t, err)
			counted, err := tmpl.Execute(t.Context(), in)
			must.NoError(t, err)
			must.Eq(t, string(plain.Output), string(counted))
			must.Eq(t, strings.Count(text, "\n"), strings.Count(tmpl.text, "\n"))
		})
	}
	tmpl, err := Parse(Spec{Name: "x", Data: `<< range loop 2 >><< . ->> }}{{ << end >>`, LeftDelim: "<<", RightDelim: ">>"})
	must.NoError(t, err)
	out, err := tmpl.Execute(t.Context(), Input{})
	must.NoError(t, err)
	must.Eq(t, "0}}{{ 1}}{{ ", string(out))
}

// Each of these would take gigabytes, or for ever.
func TestTemplateWithoutEndFailsAlone(t *testing.T) {
	double := strings.Repeat(`{{ $x = print $x $x }}`, 40)
	for text, says := range map[string]string{
		`{{ $x := "0123456789abcdef" }}` + double: "line 1: a value has more than the 16777216 bytes allowed",
		`{{ $x := "x" }}` + double:                "line 1: a value has more than",
		strings.Repeat(`{{ with print . . "xxxxxxxxxxxxxxxx" }}`, 40) + strings.Repeat("{{ end }}", 40):                                    "line 1: a value has more than",
		"\n{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}":                                                            "line 2: more than 512 calls of a template that calls itself",
		`{{ define "a" }}{{ template "a" . }}{{ template "a" . }}{{ end }}{{ template "a" "x" }}`:                                          "line 1: more than 512 calls",
		`{{ define "a" }}{{ template "b" }}{{ end }}{{ define "b" }}{{ if true }}{{ template "a" 1 }}{{ end }}{{ end }}{{ template "a" }}`: "line 1: more than 512 calls",
		`{{ define "a" }}{{ range loop 99 }}{{ template "a" }}{{ end }}{{ end }}{{ template "a" }}`:                                        "line 1: more than 512 calls",
		`{{ define "a" }}{{ end }}{{ range loop 100000 }}{{ template "a" }}{{ end }}`:                                                      "line 1: more than 65536 calls of templates in one template",
		`{{ define "a" }}{{ template "a" (print . .) }}{{ end }}{{ template "a" "0123456789abcdef" }}`:                                     "line 1: a value has more than",
		`{{ $l := loop 1000 }}{{ range $l }}{{ range $l }}{{ range $l }}{{ end }}{{ end }}{{ end }}`:                                       "line 1: more than 1048576 turns of range in one template",
		`{{ range 999999999999 }}{{ end }}`:                                                                                    "line 1: more than 1048576 turns of range",
		`{{ $s := sprig_repeat 1000000 "x" }}{{ range loop 1000 }}{{ $s }}{{ end }}`:                                           "line 1: the result has more than the 16777216 bytes allowed",
		`{{ range loop 100000 }}` + strings.Repeat("0123456789", 1000) + `{{ end }}`:                                           "line 1: the result has more than the 16777216 bytes allowed",
		`{{ range loop 10000 }}{{ template "a" }}{{ end }}{{ define "a" }}` + strings.Repeat("0123456789", 1000) + `{{ end }}`: "line 1: the result has more than",
		`{{ sprig_repeat 1073741824 "x" }}`:                                                                                    "sprig_repeat: a value has more than the 16777216 bytes allowed",
		`{{ sprig_repeat -1 "x" }}`:                                                                                            "sprig_repeat: a count is negative",
		`{{ indent 1073741824 "x" }}`:                                                                                          "indent: a value has more than",
		`{{ sprig_indent 1073741824 "x" }}`:                                                                                    "sprig_indent: a value has more than",
		`{{ sprig_nindent 1073741824 "x" }}`:                                                                                   "sprig_nindent: a value has more than",
		`{{ sprig_until 1000000000 | len }}`:                                                                                   "sprig_until: more than 1048576 numbers in one template",
		`{{ sprig_untilStep 0 1000000000 1 | len }}`:                                                                           "sprig_untilStep: more than 1048576 numbers",
		`{{ sprig_seq 1 -1000000000 | len }}`:                                                                                  "sprig_seq: more than 1048576 numbers",
	} {
		t.Run(text[:min(len(text), 70)], func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			_, err := render(t, Spec{Data: text}, Input{})
			must.ErrorContains(t, err, says)
			must.False(t, ours.MatchString(err.Error()), must.Sprint(err))
			runtime.ReadMemStats(&after)
			must.Less(t, 1<<30, after.TotalAlloc-before.TotalAlloc)
			must.Less(t, 20*time.Second, time.Since(began))
		})
	}
}

func TestTimeEndsAnExecution(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tmpl, err := Parse(Spec{Name: "x", Data: `{{ with secret "kv/data/app" }}{{ range loop 1000000 }}{{ . }}{{ end }}{{ end }}`})
	must.NoError(t, err)
	_, err = tmpl.Execute(ctx, Input{Source: last{newSource(), cancel}})
	must.ErrorIs(t, err, context.Canceled)
}

// last answers one question, after which the time is over.
type last struct {
	*fakeSource
	cancel func()
}

func (l last) Read(ctx context.Context, path string, query url.Values) (*Secret, error) {
	defer l.cancel()
	return l.fakeSource.Read(ctx, path, query)
}

// What an author reads is his own text.
func TestErrorsDoNotShowTheCounters(t *testing.T) {
	for text, says := range map[string]string{
		"\n{{ len 3 }}":                    `line 2: len: len of type int`,
		"{{ range true }}{{ end }}":        `line 1: range can't iterate over this value`,
		"{{ range $x := 1.5 }}{{ end }}":   `line 1: range can't iterate over this value`,
		"{{ template \"none\" }}":          `template "none" not defined`,
		"{{ with 1 }}{{ .x }}{{ end }}":    `<.x>: can't evaluate field x in type int`,
		"{{ (secret \"kv/data/app\").X }}": `can't evaluate field X`,
		"{{ if lt 1 \"a\" }}{{ end }}":     `line 1: lt: incompatible types for comparison`,
	} {
		_, err := render(t, Spec{Data: text}, Input{Source: newSource()})
		must.ErrorContains(t, err, says)
		must.False(t, ours.MatchString(err.Error()), must.Sprint(err))
	}
}

func TestAmplifiersReturnWhatTheOriginalsDo(t *testing.T) {
	for text, want := range map[string]string{
		`{{ indent 2 "a\n\nb\n" }}`:                                                          "  a\n\n  b\n",
		`{{ sprig_indent 2 "a\n\nb\n" }}`:                                                    "  a\n  \n  b\n  ",
		`{{ sprig_nindent 1 "a\nb" }}`:                                                       "\n a\n b",
		`{{ sprig_repeat 3 "ab" }}{{ sprig_repeat 0 "x" }}`:                                  "ababab",
		`{{ sprig_until 3 }}{{ sprig_until -2 }}`:                                            "[0 1 2][0 -1]",
		`{{ sprig_untilStep 3 9 2 }}{{ sprig_untilStep 0 -5 -2 }}`:                           "[3 5 7][0 -2 -4]",
		`{{ sprig_untilStep 3 9 -1 }}{{ sprig_untilStep 3 9 0 }}`:                            "[][]",
		`{{ sprig_seq 3 }},{{ sprig_seq -1 }},{{ sprig_seq 2 5 }},{{ sprig_seq 5 2 }}`:       "1 2 3,1 0 -1,2 3 4 5,5 4 3 2",
		`{{ sprig_seq 1 2 6 }},{{ sprig_seq 6 -2 1 }},{{ sprig_seq 6 2 1 }},{{ sprig_seq }}`: "1 3 5,6 4 2,,",
	} {
		tmpl, err := Parse(Spec{Name: "x", Data: text})
		must.NoError(t, err)
		original, err := tmpl.run(text, map[string]any{})
		must.NoError(t, err)
		must.Eq(t, want, string(original.Output))
		out, err := tmpl.Execute(t.Context(), Input{})
		must.NoError(t, err)
		must.Eq(t, want, string(out))
	}
}
