package template

import (
	"encoding/json"
	"maps"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
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

// FuzzFields looks for files of a secret's fields that their readers read otherwise than they were meant, and for a
// value in an error.
func FuzzFields(f *testing.F) {
	for _, value := range []string{"plain", `a'b"$c\ d&<`, "a: b\n- c\n\u0085\ufeff", "\u2028", "#x", "hunter2\x00", " "} {
		f.Add("user", value)
		f.Add("yes", value)
		f.Add("k k=:\n", value)
	}
	backFromYAML, err := Parse(Spec{Name: "x", Data: `{{ range $k, $v := env "FILE" | parseYAML }}{ {{ $k | toJSON }}: {{ $v | toJSON }} }{{ end }}`})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if !utf8.ValidString(name + value) { // what Vault answers is JSON
			return
		}
		fields := map[string]any{name: value}
		for format, back := range map[string]func([]byte) (map[string]string, error){
			"env":  ParseEnv,
			"json": fromJSON,
			"yaml": func(file []byte) (map[string]string, error) {
				data, err := backFromYAML.Execute(t.Context(), Input{Env: map[string]string{"FILE": string(file)}})
				if err != nil {
					return nil, err
				}
				return fromJSON(data)
			},
		} {
			file, err := Fields{Format: format}.File(fields)
			if format == "env" && err != nil {
				if len(value) > 8 && !strings.Contains(name, value) && strings.Contains(err.Error(), value) {
					t.Errorf("a value is in the error: %v", err)
				}
				continue
			}
			if read, err := back(file); err != nil || !maps.Equal(read, map[string]string{name: value}) {
				t.Errorf("%s: %q became %q: %v", format, fields, read, err)
			}
		}
	})
}

func fromJSON(data []byte) (read map[string]string, err error) {
	err = json.Unmarshal(data, &read)
	return read, err
}
