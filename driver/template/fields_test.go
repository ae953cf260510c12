package template

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// decoded is a secret as Vault's answer has it.
func decoded(t *testing.T, text string) (fields map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	must.NoError(t, d.Decode(&fields))
	return fields
}

const several = `{"user": "web", "pass": "a'b\"$c\\ d&<", "port": 5432, "on": true, "big": 12345678901234567890, "tags": ["a", "b"], "empty": "", "none": null}`

func TestFieldsAsFiles(t *testing.T) {
	for name, test := range map[string]struct {
		fields Fields
		secret string
		file   string
	}{
		"JSON": {Fields{}, `{"b": 1, "a": "<&>", "c": {"d": 12345678901234567890}}`,
			`{"a":"<&>","b":1,"c":{"d":12345678901234567890}}` + "\n"},
		"JSON by its name": {Fields{Format: "json"}, `{}`, "{}\n"},
		"env": {Fields{Format: "env"}, several,
			"big=12345678901234567890\nempty=\nnone=null\non=true\npass='a'\"'\"'b\"$c\\ d&<'\nport=5432\n" +
				"tags='[\"a\",\"b\"]'\nuser=web\n"},
		"properties": {Fields{Format: "properties"}, `{"a b=c:d": " x\n\\é", "emoji": "😀", "n": 1}`,
			`a\ b\=c\:d=\ x\n\\\u00E9` + "\nemoji=\\uD83D\\uDE00\nn=1\n"},
		"YAML":                              {Fields{Format: "yaml"}, `{"on": true, "user": "yes", "a b": "x: y\nz", "del": "\u007f", "list": [1]}`, "\"a b\": \"x: y\\nz\"\ndel: \"\\u007f\"\nlist: [1]\n\"on\": true\nuser: \"yes\"\n"},
		"one field":                         {Fields{Key: "k"}, `{"k": " x\n", "l": "y"}`, " x\n"},
		"one field of an object":            {Fields{Key: "client.secret"}, `{"client": {"secret": "x"}}`, "x"},
		"one field with a dot":              {Fields{Key: "client.secret"}, `{"client": {"secret": "x"}, "client.secret": "y"}`, "y"},
		"one field with a dot in an object": {Fields{Key: "a.b.c"}, `{"a": {"b.c": "x"}}`, "x"},
		"one field, raw":                    {Fields{Key: "k", Format: "raw", Encoding: "utf-8"}, `{"k": ""}`, ""},
		"a number":                          {Fields{Key: "k"}, `{"k": 12345678901234567890}`, "12345678901234567890"},
		"an object":                         {Fields{Key: "k"}, `{"k": {"a": "<"}}`, `{"a":"<"}`},
		"base64":                            {Fields{Key: "k", Encoding: "base64"}, `{"k": "AP/+\n"}`, "\x00\xff\xfe"},
		"hex":                               {Fields{Key: "k", Encoding: "hex"}, `{"k": "00fFfe"}`, "\x00\xff\xfe"},
		"included": {Fields{Include: []string{"tls_*", "b"}}, `{"tls_a": 1, "tls_b": 2, "b": 3, "bb": 4}`,
			`{"b":3,"tls_a":1,"tls_b":2}` + "\n"},
		"excluded": {Fields{Exclude: []string{"*_b"}}, `{"tls_a": 1, "tls_b": 2}`, `{"tls_a":1}` + "\n"},
		"exclude wins": {Fields{Include: []string{"a*"}, Exclude: []string{"ab"}}, `{"aa": 1, "ab": 2}`,
			`{"aa":1}` + "\n"},
		"renamed": {Fields{Rename: map[string]string{"a": "b", "b": "a"}}, `{"a": 1, "b": 2, "c": 3}`,
			`{"a":2,"b":1,"c":3}` + "\n"},
		"chosen, then named": {Fields{Include: []string{"a"}, Rename: map[string]string{"a": "z"}, Format: "env"},
			`{"a": 1, "z": 2}`, "z=1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, test.fields.Check())
			file, err := test.fields.File(decoded(t, test.secret))
			must.NoError(t, err)
			must.Eq(t, test.file, string(file))
		})
	}
}

func TestFieldsAsEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		fields Fields
		want   map[string]string
	}{
		"all": {Fields{Exclude: []string{"none"}}, map[string]string{"big": "12345678901234567890", "empty": "",
			"on": "true", "pass": "a'b\"$c\\ d&<", "port": "5432", "tags": `["a","b"]`, "user": "web"}},
		"renamed": {Fields{Include: []string{"user"}, Rename: map[string]string{"user": "PGUSER"}},
			map[string]string{"PGUSER": "web"}},
		"one field": {Fields{Key: "user", Rename: map[string]string{"user": "PGUSER"}}, map[string]string{"PGUSER": "web"}},
	} {
		t.Run(name, func(t *testing.T) {
			env, err := test.fields.Env(decoded(t, several))
			must.NoError(t, err)
			must.MapEq(t, test.want, env)
		})
	}
	env, err := Fields{}.Env(map[string]any{"cert": "line\nline\n"})
	must.NoError(t, err)
	must.MapEq(t, map[string]string{"cert": "line\nline\n"}, env,
		must.Sprint("an environment can hold what a file of lines cannot"))
}

// What is written is what the readers of such files read: a shell, Nomad's parser, YAML.
func TestFieldsAreReadAsTheyWereMeant(t *testing.T) {
	fields := decoded(t, several)
	want := map[string]string{"big": "12345678901234567890", "empty": "", "none": "null", "on": "true",
		"pass": "a'b\"$c\\ d&<", "port": "5432", "tags": `["a","b"]`, "user": "web"}
	file, err := Fields{Format: "env"}.File(fields)
	must.NoError(t, err)
	env, err := ParseEnv(file)
	must.NoError(t, err)
	must.MapEq(t, want, env)

	path := t.TempDir() + "/env"
	must.NoError(t, os.WriteFile(path, file, 0o600))
	shell := exec.Command("/bin/sh", "-c", `set -a; . "$0"; env`, path)
	shell.Env = []string{"PATH=/usr/bin:/bin"}
	printed, err := shell.Output()
	must.NoError(t, err)
	for name, value := range want {
		must.StrContains(t, "\n"+string(printed), "\n"+name+"="+value+"\n")
	}

	odd := decoded(t, `{"yes": "no", "n": 1.5, "s": "1", "date": "2026-01-02", "nul": null, "multi": "a: b\n- c\n\u0085\ufeff", "deep": [["y", 1], []], "~": "tilde", "😀": "\u2028"}`)
	yaml, err := Fields{Format: "yaml"}.File(odd)
	must.NoError(t, err)
	path = t.TempDir() + "/yaml"
	must.NoError(t, os.WriteFile(path, yaml, 0o600))
	root, err := os.OpenRoot(filepath.Dir(path))
	must.NoError(t, err)
	defer root.Close()
	parsed, err := Parse(Spec{Name: "x", Data: `{{ range $k, $v := file "yaml" | parseYAML }}{{ $k | toJSON }}:{{ $v | toJSON }}{{ "\n" }}{{ end }}`})
	must.NoError(t, err)
	read, err := parsed.Execute(t.Context(), Input{Root: root})
	must.NoError(t, err)
	var meant strings.Builder
	for _, k := range slices.Sorted(maps.Keys(odd)) {
		key, _ := json.Marshal(k)
		value, _ := json.Marshal(odd[k])
		fmt.Fprintf(&meant, "%s:%s\n", key, value)
	}
	must.Eq(t, meant.String(), string(read))
}

func TestFieldsThatCannotBeMeant(t *testing.T) {
	for says, f := range map[string]Fields{
		`format "raw" is that of one field: set key`:            {Format: "raw"},
		`format "toml" is unknown: use "json"`:                  {Format: "toml"},
		`format "json" with key: the file has that value alone`: {Format: "json", Key: "k"},
		`include and exclude choose among all fields`:           {Key: "k", Exclude: []string{"x"}},
		`encoding "utf-16" is unknown: use "utf-8", "base64"`:   {Key: "k", Encoding: "utf-16"},
		`encoding is that of one field: set key`:                {Encoding: "hex"},
		`include: "[" is not a pattern such as "tls_*"`:         {Include: []string{"a", "["}},
		`exclude: "[" is not a pattern`:                         {Exclude: []string{"["}},
		`rename: the new name of "a" is empty`:                  {Rename: map[string]string{"a": ""}},
	} {
		must.ErrorContains(t, f.Check(), says)
	}
}

func TestFieldsThatDoNotFitAreOneErrorWithoutTheValue(t *testing.T) {
	const secret = "hunter2"
	for name, test := range map[string]struct {
		fields Fields
		secret string
		says   string
		env    bool
	}{
		"no such field": {Fields{Key: "k"}, `{"l": "hunter2"}`, `key: the secret has no field "k"`, false},
		"not base64": {Fields{Key: "k", Encoding: "base64"}, `{"k": "hunter2!"}`,
			`field "k" is not encoded in base64: correct encoding`, false},
		"not hex": {Fields{Key: "k", Encoding: "hex"}, `{"k": "hunter2"}`,
			`field "k" is not encoded in hex`, false},
		"a newline in env": {Fields{Format: "env"}, `{"k": "a\nhunter2"}`,
			`field "k" has a newline or another control character, which format "env" cannot hold`, false},
		"a NUL in env": {Fields{Format: "env"}, `{"k": "a\u0000hunter2"}`,
			`field "k" has a newline or another control character`, false},
		"a name in env": {Fields{Format: "env"}, `{"k-k": "hunter2"}`,
			`field "k-k" cannot be the name of a variable`, false},
		"a name in the environment": {Fields{}, `{"k=k": "hunter2"}`,
			`field "k=k" cannot be the name of a variable, which has letters, digits and _ only: rename it`, true},
		"a NUL in the environment": {Fields{}, `{"k": "hunter2\u0000"}`,
			`field "k" is binary, which the environment cannot hold: use a file`, true},
		"binary in the environment": {Fields{Key: "k", Encoding: "hex"}, `{"k": "ff68"}`, `field "k" is binary`, true},
		"nothing chosen": {Fields{Include: []string{"x"}}, `{"k": "hunter2"}`,
			"include and exclude leave none of the secret's 1 fields", false},
		"nothing to rename": {Fields{Rename: map[string]string{"x": "y"}}, `{"k": "hunter2"}`,
			`rename: the secret has no field "x"`, false},
		"renamed to one that is": {Fields{Rename: map[string]string{"x": "y"}}, `{"x": "hunter2", "y": ""}`,
			`rename: two fields get the name "y"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, test.fields.Check())
			var err error
			if test.env {
				_, err = test.fields.Env(decoded(t, test.secret))
			} else {
				_, err = test.fields.File(decoded(t, test.secret))
			}
			must.ErrorContains(t, err, test.says)
			must.StrNotContains(t, err.Error(), secret)
		})
	}
	_, err := Fields{}.File(map[string]any{"k": strings.Repeat("x", MaxOutput)})
	must.ErrorContains(t, err, "the file has more than the 16777216 bytes allowed")
}
