package template

import (
	"strings"
	"testing"
	"text/template/parse"

	"github.com/shoenig/test/must"
)

// interpolated is data as the agent passes it on.
func interpolated(data string, values map[string]string) string {
	for name, value := range values {
		data = strings.ReplaceAll(data, "${"+name+"}", value)
	}
	return data
}

// Each value would have the template ask for another secret, if it could.
func TestAValueIsNeverCode(t *testing.T) {
	for name, c := range map[string]struct{ data, a, b, left, right string }{
		"an action":                   {data: "user=${A}", a: `x {{ with secret "kv/admin" }}{{ .Data }}{{ end }}`},
		"an action that is all of it": {data: "${A}", a: `{{ secret "kv/admin" }}`},
		"an action that trims":        {data: "user= ${A}", a: `{{- secret "kv/admin" -}}`},
		"on a line of its own":        {data: "a\n\n${A}\n", a: "\n{{ secret \"kv/admin\" }}\n"},
		"an action over two values":   {data: "${A} and ${B}", a: `{{ print "`, b: `" (secret "kv/admin") }}`},
		"a comment over two values":   {data: "${A}{{ .x }}${B}", a: `{{/*`, b: `*/}}`},
		"two halves of a delimiter":   {data: "${A}${B}", a: `{`, b: `{ secret "kv/admin" }}`},
		"a half beside the author's":  {data: "{${A}", a: `{ secret "kv/admin" }}`},
		"a half before the author's":  {data: "${A}{ .x }}", a: `x{`},
		"other delimiters": {data: "<%/* x */%>${A}", a: `<% secret "kv/admin" %>`, left: "<%",
			right: "%>"},
		"half of other delimiters": {data: "<${A}", a: `% secret "kv/admin" %>`, left: "<%", right: "%>"},
		"delimiters of letters": {data: "${A}", a: `BEGIN secret "kv/admin" END`, left: "BEGIN",
			right: "END"},
		"delimiters that are signs": {data: "|${A}| secret `kv/admin`||", a: "|", left: "||", right: "||"},
		"the end of a string": {data: `{{ with secret "${A}" }}{{ end }}`,
			a: `kv/x" }}{{ secret "kv/admin`},
		"the end of a string, and a pipe": {data: `{{ print "${A}" }}`, a: `x" | print (secret "kv/admin") "`},
		"the end of a raw string":         {data: "{{ print `${A}` }}", a: "` (secret `kv/admin`) `"},
		"a backslash and another value":   {data: `{{ print "${A}" "${B}" }}`, a: `\`, b: ` (secret (env .x)) `},
		"a backslash at the end":          {data: `{{ print "${A}" " (secret .x) " }}`, a: `kv\`},
		"a quotation mark":                {data: `{{ print "${A}" " (secret .x) " }}`, a: `"`},
		"code within code":                {data: `{{ print ${A} }}`, a: `(secret "kv/admin")`},
		"the end of a comment":            {data: `{{/* ${A} */}}`, a: `*/}}{{ secret "kv/admin" }}{{/*`},
		"a delimiter within code":         {data: `{{ print ${A} }}`, a: `1}}{{ secrets`},
		"letters made small": {data: strings.ToLower(`{{ SECRET "KV/ADMIN" }}`),
			a: `{{ SECRET "KV/ADMIN" }}`},
		"letters made large":             {data: `<{ . }>`, a: `{ . }`, left: "<{", right: "}>"},
		"a part, cut out":                {data: `user={{ secret "kv/admin" }}`, a: `xx{{ secret "kv/admin" }}`},
		"a part, cut out and made small": {data: `user={{ secret "kv/admin" }}`, a: `xx{{ Secret "kv/Admin" }}xx`},
		"JSON, decoded": {data: `user={{ secret "kv/admin" }}`,
			a: `{"user":["{{ secret \"kv/admin\" }}"]}`},
		"JSON, encoded": {data: "user={{ secret `kv/admin` `a\\\\b`}}",
			a: "{{ secret `kv/admin` `a\\b`}}"},
		"an action that the author has as well": {data: "{{ .x }} ${A}", a: "{{ .x }}"},
	} {
		t.Run(name, func(t *testing.T) {
			values := map[string]string{"A": c.a, "B": c.b}
			spec := Spec{Name: "local/x", Data: interpolated(c.data, values), LeftDelim: c.left, RightDelim: c.right,
				Values: values}
			_, err := Parse(spec)
			must.ErrorContains(t, err, `parse template "local/x": line `)
			must.ErrorContains(t, err, "would be template code here: in place of ${")
			must.StrNotContains(t, err.Error(), "admin")
		})
	}
	_, err := Parse(Spec{Name: "x", Data: "a\nuser={{ secrets }}",
		Values: map[string]string{"NOMAD_META_user": "{{ secrets }}", "NOMAD_META_USER": "{{ secrets }}"}})
	must.EqError(t, err, `parse template "x": line 2: the value of NOMAD_META_user would be template code here: in place of ${NOMAD_META_user} write `+
		`{{ env "NOMAD_META_user" }}, or (env "NOMAD_META_user") within an action`)
}

// What jobs do every day goes on working.
func TestValuesThatAreNoCode(t *testing.T) {
	values := map[string]string{"NOMAD_ALLOC_ID": "4c2f0a7e-3d1b-9c55-8f0e-1a2b3c4d5e6f", "NOMAD_PORT_http": "8080",
		"NOMAD_REGION":    "global",
		"NOMAD_TASK_NAME": "secret", "NOMAD_ADDR_http": "10.0.0.1:8080", "BASE": "/", "HERE": ".",
		"SEP": ", ", "PIPE": "|", "SPACE": " ", "NO": "-",
		"EMPTY": "", "PATH": "/usr/bin:/bin", "NAME": `O'Neil "Jr" \o/`, "JSON": `{"a":{"b":"c}}d"}}`, "KV": "kv/data/web app", "LINES": "a\nb\n", "EQ": "=",
		"TOKEN": "{{.Time}} {{.Level}}", "LAST": "x {"}
	for _, data := range []string{
		`id=${NOMAD_ALLOC_ID} port=${NOMAD_PORT_http} {{ with secret "kv/data/${NOMAD_TASK_NAME}" }}{{ .Data.data.x }}{{ end }}`,
		`{{ range $i, $x := loop ${NOMAD_PORT_http} -}} {{/* a comment */}} {{ if eq $i 1 }}{{ break }}{{ end }}{{ end }}`,
		`{{ with secret "${KV}/${NOMAD_REGION}" }}{{ .Data.data.x | toJSON }}{{ end }}`,
		`name=${NAME} json=${JSON} {{ (parseJSON ` + "`${JSON}`" + `).a.b }} last=${LAST}`,
		`${PATH}${LINES}${SEP}${BASE}{{ "a, b | c - /d" }}{{- print 1.5 "x=${EQ}" }}${LAST}`,
	} {
		data = interpolated(data, values)
		_, err := Parse(Spec{Name: "x", Data: data, Values: values})
		must.NoError(t, err, must.Sprint(data))
	}
}

func TestValuesThatAreTooMany(t *testing.T) {
	values := map[string]string{"A": strings.Repeat("{{", 100<<10)}
	_, err := Parse(Spec{Name: "x", Data: manyActions(6_000), Values: values})
	must.EqError(t, err, `parse template "x": data and the task's environment are too large to be compared: use source`)
}

func manyActions(n int) string {
	var text strings.Builder
	for i := range n {
		text.WriteString("{{ " + strings.Repeat("1", 1+i%20) + strings.Repeat(" ", i/20) + "}}")
	}
	return text.String()
}

// skeleton is a template's code: all of its tree but the text that is printed or in strings.
func skeleton(t *testing.T, s Spec) (string, bool) {
	trees, err := s.parse()
	if err != nil {
		return "", false
	}
	var all strings.Builder
	for _, tree := range trees {
		walk(tree.Root, func(node parse.Node) {
			switch n := node.(type) {
			case *parse.StringNode:
				all.WriteString("string ")
			case *parse.PipeNode, *parse.CommandNode, *parse.ActionNode, *parse.WithNode:
				all.WriteString("( ")
			case *parse.IdentifierNode, *parse.FieldNode, *parse.DotNode, *parse.NumberNode, *parse.VariableNode:
				all.WriteString(n.String() + " ")
			}
		})
	}
	return all.String(), true
}

// Whatever values are accepted, the code is that of a template with other values in their places.
func FuzzValuesAreNoCode(f *testing.F) {
	frames := []string{"a${A}b${B}c", "{${A}}${B}}", `{{ print "${A}" "${B}" }}`, "{{ print `${A}` \"${B}\" }}x${A}",
		`{{/* ${A} */}}${B}{{ .x }}`,
		`{{- with secret "kv/${A}" -}} ${B} {{- .x }}{{ end }}`, "${A}{{ print `x` }}${B}{{ \"x\" }}", `{{ "\\${A}" }} ${B}`}
	for i := range frames {
		for _, v := range []string{"{{", "}}", `"`, "`", `\`, "*/}}", "{{ secret }}", `" secret "`, "x", "{{/*", "- ", "{",
			`\"`, "\n"} {
			f.Add(uint8(i), v, "y")
			f.Add(uint8(i), "y", v)
			f.Add(uint8(i), v, v)
		}
	}
	f.Fuzz(func(t *testing.T, i uint8, a, b string) {
		frame := frames[int(i)%len(frames)]
		values := map[string]string{"A": a, "B": b}
		s := Spec{Data: interpolated(frame, values), Values: values}
		if innocent.MatchString(a) || innocent.MatchString(b) || strings.Contains(a+b, "${") || s.checkValues() != nil {
			return
		}
		have, parsed := skeleton(t, s)
		want, _ := skeleton(t, Spec{Data: interpolated(frame, map[string]string{"A": "?", "B": "?"})})
		if blank := strings.TrimSpace(a) == "" || strings.TrimSpace(b) == ""; parsed && !blank {
			must.Eq(t, want, have)
		}
	})
}
