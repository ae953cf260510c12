package template

import (
	"regexp"
	"strings"
	"testing"
)

// slow finds what takes longer than a fuzzer should wait, though it has an end: a
// million turns, a password hash.
var slow = regexp.MustCompile(`\d{4}|[eExXpP]\d|sprig_`)

// FuzzExecute looks for panics, and for a secret in an error.
func FuzzExecute(f *testing.F) {
	for _, text := range []string{
		`{{ with secret "kv/data/app" }}{{ .Data.data.password }}{{ end }}`,
		`{{ with secret "kv/data/app" }}{{ .Data.data.password | parseInt }}{{ end }}`,
		`{{ with secret "kv/data/app" }}{{ parseJSON .Data.data.password }}{{ printf "%d" .Data.data }}{{ end }}`,
		`{{ with secret "kv/data/app" }}{{ index .Data.data 1 }}{{ .Data.password.x }}{{ end }}`,
		`{{ with secret "kv/data/app" }}{{ parseYAML .Data.data.password | explodeMap }}{{ end }}`,
		`{{ secret "auth/login" "a=b" | toJSON }}{{ key "x" }}`,
		`{{ nomadVar "nomad/jobs/app" | toYAML }}{{ nomadService 1 "k" "web" | toTOML }}`,
		`{{ env "A" | base64Decode | regexMatch "(" }}{{ file "local/x" }}`,
		`{{ define "a" }}{{ range $i, $x := loop 99 -}} {{ template "a" . }}{{ end }}{{ end }}{{ block "b" 1 }}{{ template "a" }}{{ end }}`,
		`{{ $x := "x" }}{{ with $y := print $x $x }}{{ $x = print . $y }}{{ end }}{{ if $x }}{{ indent 99 $x }}{{ else }}{{ range 9 }}{{ break }}{{ end }}{{ end }}`,
		`{{ loop 3 | join "," }}{{ pkiCert "kv1/app" }}{{/* c */}}{{- "x" -}}`,
	} {
		f.Add(text, true)
		f.Add(text, false)
	}
	f.Fuzz(func(t *testing.T, text string, strict bool) {
		if len(text) > 1<<10 || slow.MatchString(text) {
			t.Skip("slow")
		}
		tmpl, err := Parse(Spec{Name: "x", Data: text, ErrorOnMissingKey: strict})
		if err != nil {
			return
		}
		_, err = tmpl.Execute(t.Context(), Input{Source: newSource(), Env: map[string]string{"A": "x"}})
		if err != nil && strings.Contains(err.Error(), "hunter2") && !strings.Contains(text, "hunter2") {
			t.Errorf("a secret is in the error: %v", err)
		}
	})
}

// FuzzParseEnv looks for panics, and for a value in an error.
func FuzzParseEnv(f *testing.F) {
	for _, text := range []string{"A=1", "A=\"\\u00e9\\ud83d\\ude00\"", "export A='b' # c", "A=\xff\xfe # x", "=",
		"\x00"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const secret = "hunter2-hunter2"
		_, err := ParseEnv(append([]byte(secret+"\n"), data...))
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("a line that is only a value: %v", err)
		}
		if _, err := ParseEnv(data); err != nil && !strings.HasPrefix(err.Error(), "parse environment: line ") {
			t.Errorf("an error without its line: %v", err)
		}
	})
}
