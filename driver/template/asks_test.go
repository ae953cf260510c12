package template

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestAsks(t *testing.T) {
	for sentence, c := range map[string]struct {
		spec Spec
		want []Ask
	}{
		"what is asked in the text, with its line": {
			Spec{Data: "a\n{{ with secret \"/kv/data/app?version=2\" }}{{ .Data.data.x }}{{ end }}\n{{ range secrets " +
				"`kv/metadata` }}{{ . }}{{ end }}"},
			[]Ask{{"secret", "kv/data/app", false, 2, `secret "/kv/data/app?version=2"`},
				{"secrets", "kv/metadata", false, 3, "secrets `kv/metadata`"}},
		},
		"a secret with arguments and a certificate are writes": {
			Spec{Data: `{{ secret "transit/encrypt/x" "plaintext=eA==" }}{{ with pkiCert "pki/issue/x" "common_name=y" }}{{ .Cert }}{{ end }}`},
			[]Ask{{"secret", "transit/encrypt/x", true, 1, `secret "transit/encrypt/x" "plaintext=eA=="`},
				{"pkiCert", "pki/issue/x", true, 1, `pkiCert "pki/issue/x" "common_name=y"`}},
		},
		"a path that is computed is empty": {
			Spec{Data: `{{ $p := "kv/x" }}{{ secret $p }}{{ secret (printf "kv/%s" (env "X")) }}{{ "kv/x" | secret }}`},
			[]Ask{{"secret", "", false, 1, "secret $p"}, {"secret", "", false, 1, `secret (printf "kv/%s" (env "X"))`},
				{"secret", "", false, 1, "secret"}},
		},
		"in parentheses, in a branch that is never taken, and in a definition": {
			Spec{Data: "{{ define \"t\" }}{{ secret \"kv/a\" }}{{ end }}\n{{ (secret \"kv/b\").Data.x }}\n{{ if false }}{{ " +
				"else }}{{ secret \"kv/c\" }}{{ end }}"},
			[]Ask{{"secret", "kv/a", false, 1, `secret "kv/a"`}, {"secret", "kv/b", false, 2, `secret "kv/b"`},
				{"secret", "kv/c", false, 3, `secret "kv/c"`}},
		},
		"other delimiters": {Spec{Data: `<< secret "kv/a" >>{{ secret "kv/b" }}`, LeftDelim: "<<", RightDelim: ">>"},
			[]Ask{{"secret", "kv/a", false, 1, `secret "kv/a"`}}},
		"whether there is something": {Spec{Data: `{{ secretExists "kv/a?version=2" }}`},
			[]Ask{{"secretExists", "kv/a", false, 1, `secretExists "kv/a?version=2"`}}},
		"what asks no Vault": {Spec{Data: `{{ env "A" }}{{ nomadVar "x" }}{{ "secret" }}`}, nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			parsed, err := Parse(c.spec)
			must.NoError(t, err)
			must.Eq(t, c.want, parsed.Asks())
		})
	}
}

func TestAlwaysAsks(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                          false,
		"x":                                         false,
		`{{ env "X" }}`:                             false,
		`{{ with secret "a" }}x{{ end }}`:           true,
		`x{{ range secrets "a/" }}x{{ end }}`:       true,
		`{{ secret "a" | toJSON }}`:                 true,
		`{{ $s := secret "a" }}{{ $s.Data }}`:       true,
		`{{ if true }}{{ secret "a" }}{{ end }}`:    false,
		`{{ if secret "a" }}x{{ end }}`:             true,
		`{{ or (env "X") (secret "a") }}`:           false,
		`{{ define "t" }}{{ secret "a" }}{{ end }}`: false,
		`{{ with nomadVar "a" }}{{ secret .path.Value }}{{ end }}`: false,
	} {
		parsed, err := Parse(Spec{Name: "local/x", Data: text})
		must.NoError(t, err)
		must.Eq(t, want, parsed.AlwaysAsks(), must.Sprint(text))
	}
}
