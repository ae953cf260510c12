package template

import (
	"cmp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseEnv(t *testing.T) {
	vars, err := ParseEnv([]byte("# comment\nA=1\n\nexport B = \"two words\\n\"\nC='x' # y\nD=\n"))
	must.NoError(t, err)
	must.Eq(t, map[string]string{"A": "1", "B": "two words\n", "C": "x", "D": ""}, vars)

	const secret = "hunter2"
	for name, tc := range map[string]struct{ text, want string }{
		"no separator":          {"A=1\n" + secret, "line 2: not NAME=value"},
		"a line of a PEM block": {"A=-----BEGIN\nMIIhunter2+=\n", "line 2: not NAME=value"},
		"no name":               {"=" + secret, "line 1: not NAME=value"},
		"a name with a digit":   {"\n\n2hunter2=x", "line 3: not NAME=value"},
		"an open quotation":     {`A="` + secret, "line 1: a quotation mark"},
		"another":               {`A='` + secret, "line 1: a quotation mark"},
		"a wrong escape":        {`A="\hunter2"`, "line 1: the value has"},
		"a control character":   {"A=\x01" + secret, "line 1: the value has"},
		"a line too long":       {"A=1\nB=" + strings.Repeat(secret, 10000), "line 2: longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseEnv([]byte(tc.text))
			must.ErrorContains(t, err, "parse environment: "+tc.want)
			must.StrNotContains(t, err.Error(), secret)
			must.StrNotContains(t, err.Error(), `'h'`)
		})
	}
}

func TestValueArrivesWholeInTheEnvironmentOrIsRefused(t *testing.T) {
	const bare, json = "A={{ .x }}\n", "A={{ .x | toJSON }}\n"
	for name, tc := range map[string]struct {
		text, value string
		want        string // empty: it is refused
	}{
		"a number sign":                   {bare, "hunter2#x", ""},
		"a number sign in quotes":         {"A='{{ .x }}'\n", "hunter2#x", "hunter2#x"},
		"a number sign in JSON":           {json, "hunter2#x", "hunter2#x"},
		"a quotation mark":                {bare, `hun"ter"2`, ""},
		"an apostrophe in apostrophes":    {"A='{{ .x }}' B=''\n", `hun'ter2`, ""},
		"quotation marks in JSON":         {json, `hun"ter'2`, `hun"ter'2`},
		"a backslash":                     {bare, `hun\ter2`, `hun\ter2`},
		"a backslash in quotes":           {`A="{{ .x }}"`, `hun\ter2`, ""},
		"a backslash in JSON":             {json, `hun\ter2`, `hun\ter2`},
		"a dollar":                        {bare, "$hunter$2", "$hunter$2"},
		"an equals sign":                  {bare, "hunter=2==", "hunter=2=="},
		"two lines":                       {bare, "hunter2\nB=b", ""},
		"two lines in JSON":               {json, "hunter2\nB=b", "hunter2\nB=b"},
		"a newline at its end":            {bare, "hunter2\n", "hunter2"},
		"a file of variables":             {"{{ .x }}\n", "# hunter2\nA='a' # b\n", "a"},
		"a file of variables behind text": {"B=b\n  {{ .x }}\n", "A='a' # b", "a"},
		"a comment":                       {"# A={{ .x }}\nA=b # {{ .x }}", "#hunter2", ""},
		"a comment alone":                 {"# A={{ .x }}\nA=b", "#hunter2", "b"},
		"a comment of the author's":       {"A=a # {{ .y }}\n", "x", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			source := &fakeSource{secrets: map[string]*Secret{"s": {Data: map[string]any{"x": tc.value, "y": "b"}}}}
			parsed, err := Parse(Spec{Name: "e", Env: true, Data: `{{ with secret "s" }}{{ with .Data }}` + tc.text + `{{ end }}{{ end }}`})
			must.NoError(t, err)
			out, err := parsed.Execute(t.Context(), Input{Source: source})
			vars, parseErr := ParseEnv(out)
			if tc.want == "" {
				must.Error(t, cmp.Or(err, parseErr))
				must.StrContains(t, cmp.Or(err, parseErr).Error(), "use NAME={{ ... | toJSON }}")
				must.StrNotContains(t, cmp.Or(err, parseErr).Error(), "hunter")
				return
			}
			must.NoError(t, err)
			must.NoError(t, parseErr)
			must.Eq(t, tc.want, vars["A"])
		})
	}
}

func TestTokenInAnAnswerIsShownAndInNoError(t *testing.T) {
	source := &fakeSource{secrets: map[string]*Secret{"t": {Auth: &SecretAuth{ClientToken: "hvs.hunter2"}}}}
	for text, want := range map[string]string{
		`{{ with secret "t" "ttl=1h" }}{{ .Auth.ClientToken }}{{ end }}`:            "hvs.hunter2",
		`{{ with secret "t" "ttl=1h" }}{{ .Auth.ClientToken | parseInt }}{{ end }}`: "",
	} {
		parsed, err := Parse(Spec{Name: "t", Data: text})
		must.NoError(t, err)
		out, err := parsed.Execute(t.Context(), Input{Source: source})
		if want == "" {
			must.ErrorContains(t, err, "parseInt")
			must.StrNotContains(t, err.Error(), "hunter2")
			continue
		}
		must.NoError(t, err)
		must.Eq(t, want, string(out))
	}
}
