package template

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	consul "github.com/hashicorp/consul-template/template"
	"github.com/shoenig/test/must"
)

// ours is what no author has written.
var ours = regexp.MustCompile("count[A-Z]")

// original is what consul-template itself prints with the same Source.
func original(t *testing.T, text string, x *execution) string {
	tmpl, err := consul.NewTemplate(&consul.NewTemplateInput{
		Source:     "template",
		ReaderFunc: func(string) ([]byte, error) { return []byte(text), nil },
		ExtFuncMap: x.own(),
	})
	must.NoError(t, err)
	result, err := tmpl.Execute(&consul.ExecuteInput{Brain: consul.NewBrain()})
	must.NoError(t, err)
	return string(result.Output)
}

// What a template prints is the same within bounds and without.
func TestBoundsDoNotChangeWhatIsPrinted(t *testing.T) {
	for _, text := range []string{
		``, `text`, `{{ "x" }}`, "{{\n\"x\"\n}}", `{{- "x" -}} y`, `a {{- "x" }} b {{ "y" -}}  c`, "a\n{{- /* no value */ " +
			"-}}\nb",
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
			counted, err := tmpl.Execute(t.Context(), in)
			must.NoError(t, err)
			must.Eq(t, original(t, text, newExecution(t.Context(), in)), string(counted))
		})
	}
	tmpl, err := Parse(Spec{Name: "x", Data: `<< range loop 2 >><< . ->> }}{{ << end >>`, LeftDelim: "<<",
		RightDelim: ">>"})
	must.NoError(t, err)
	out, err := tmpl.Execute(t.Context(), Input{})
	must.NoError(t, err)
	must.Eq(t, "0}}{{ 1}}{{ ", string(out))
}

func dirWithFile(t *testing.T) *os.Root {
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(filepath.Join(dir, "local"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "local/15M"), make([]byte, 15<<20), 0o644))
	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

func TestTimeEndsAnExecution(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tmpl, err := Parse(Spec{Name: "x", Data: `{{ with secret "kv/data/app" }}{{ range loop 1000000 }}{{ . }}{{ end }}{{ end }}`})
	must.NoError(t, err)
	_, err = tmpl.Execute(ctx, Input{Source: last{newSource(), cancel}})
	must.ErrorIs(t, err, context.Canceled)
}

// What cannot be ended is left to itself.
func TestTimeEndsWhatIsSlow(t *testing.T) {
	tmpl, err := Parse(Spec{Name: "x", Data: `{{ range loop 1000 }}{{ sprig_derivePassword 1 "long" "x" "y" "z" }}{{ end }}`})
	must.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err = tmpl.Execute(ctx, Input{})
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.ErrorContains(t, err, "line 1: sprig_")
	must.Less(t, 2*time.Second, time.Since(began))
}

// With the methods of its lock a scratch could be waited for without end.
func TestScratchCannotBeLocked(t *testing.T) {
	for _, text := range []string{`{{ scratch.TryLock }}{{ scratch.Get "a" }}`, `{{ scratch.RWMutex.TryLock }}`,
		`{{ scratch.RLocker.Lock }}`} {
		_, err := render(t, Spec{Data: text}, Input{})
		must.ErrorContains(t, err, "can't evaluate field")
	}
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
