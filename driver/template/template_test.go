package template

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/logtext"
)

// render parses and executes text the way the driver does.
func render(t *testing.T, s Spec, in Input) (string, error) {
	t.Helper()
	if s.Name == "" {
		s.Name = "secrets/app.conf"
	}
	tmpl, err := Parse(s)
	must.NoError(t, err)
	out, err := tmpl.Execute(t.Context(), in)
	return string(out), err
}

func TestExecute(t *testing.T) {
	cases := map[string]struct {
		text  string
		want  string
		asked string // the questions, separated by ";"
	}{
		"an empty template is empty": {``, ``, ""},
		"text alone needs nothing":   {"plain\n", "plain\n", ""},
		"a KV v2 field is under .Data.data": {`{{ with secret "kv/data/app" }}{{ .Data.data.password }}{{ end }}`,
			"hunter2", "read kv/data/app "},
		"slashes and spaces around a path are cut": {`{{ with secret " /kv/data/app/ " }}{{ .Data.metadata.version }}{{ end }}`, "3", "read kv/data/app "},
		"query parameters are not part of the path": {`{{ with secret "kv/data/app?version=2" }}x{{ end }}`, "x",
			"read kv/data/app version=2"},
		"the lease is visible":   {`{{ with secret "database/api" }}{{ .LeaseID }} {{ .LeaseDuration }} {{ .Renewable }} {{ .RequestID }} {{ .Warnings }}{{ end }}`, "database/api/1 20 true r1 [w]", "read database/api "},
		"arguments make a write": {`{{ with secret "auth/login" "role=api" " jwt = a=b" "" }}{{ .Data.token }}{{ end }}`, "hvs.token", "write auth/login map[jwt:a=b role:api]"},
		"an empty argument makes a write too": {`{{ with secret "auth/login" "" }}{{ .LeaseDuration }}{{ end }}`,
			"60", "write auth/login map[]"},
		"a write without an answer is false": {`{{ with secret "kv1/written" "a=b" }}x{{ else }}nothing{{ end }}`,
			"nothing", "write kv1/written map[a:b]"},
		"secret without arguments is nothing": {`{{ if secret }}x{{ end }}`, "", ""},
		"secrets lists in order": {`{{ range secrets "/kv/metadata/" }}{{ . }} {{ end }}{{ secrets "" }}`,
			"a b c/ []", "list kv/metadata"},
		"nested secrets in one execution": {`{{ with secret "kv1/app" }}{{ range .Data.list }}{{ . }},{{ end }}{{ end }}{{ (secret "database/api").Data.username }}`, "x-first,x-second,v-api-1", "read kv1/app ;read database/api "},
		"a missing key renders as in consul-template": {`{{ with secret "kv1/app" }}{{ .Data.nope }}{{ end }}`, "<no value>",
			"read kv1/app "},
		"env is the task's": {`{{ env "NAME" }}|{{ env "NOPE" }}|{{ mustEnv "NAME" }}`,
			"task-value||task-value", ""},
		"what is known of the node":                 {`{{ env "node.unique.name" }}|{{ envOrDefault "node.region" "d" }}`, "worker-1|eu", ""},
		"envOrDefault keeps what is set to nothing": {`{{ envOrDefault "NAME" "d" }}|{{ envOrDefault "EMPTY" "d" }}|{{ envOrDefault "NOPE" "d" }}`, "task-value||d", ""},
		"loop is a list of numbers":                 {`{{ range loop 3 }}{{ . }}{{ end }} {{ range $i, $n := loop "5" 7 }}{{ $i }}{{ $n }}{{ end }}{{ range loop 2 1 }}x{{ end }}`, "012 0516", ""},
		"helpers and sprig stay":                    {`{{ "a" | toUpper }}{{ sprig_upper "b" }}{{ scratch.Set "k" 1 }}{{ scratch.Get "k" }}{{ toJSON (explodeMap (parseJSON "{\"a/b\":1}")) }}`, `AB1{"a":{"b":1}}`, ""},
		"the builtin template action works": {`{{ define "x" }}[{{ . }}]{{ end }}{{ template "x" "y" }}`, "[y]",
			""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			out, err := render(t, Spec{Data: tc.text}, Input{Source: src, Env: map[string]string{"NAME": "task-value",
				"EMPTY": "", "node.unique.name": "worker-1", "node.region": "eu"}})
			must.NoError(t, err)
			must.Eq(t, tc.want, out)
			must.Eq(t, tc.asked, strings.Join(src.asked, ";"))
		})
	}
}

func TestExecuteWithOtherDelimiters(t *testing.T) {
	out, err := render(t, Spec{Data: `{{ x }}[[ "a" | toUpper ]]`, LeftDelim: "[[", RightDelim: "]]"}, Input{})
	must.NoError(t, err)
	must.Eq(t, "{{ x }}A", out)
}

func TestEnvironmentIsNeverThePlugins(t *testing.T) {
	t.Setenv("PLUGIN_ONLY", "from-the-plugin")
	out, err := render(t, Spec{Data: `{{ env "PLUGIN_ONLY" }}{{ envOrDefault "PLUGIN_ONLY" "d" }}`}, Input{})
	must.NoError(t, err)
	must.Eq(t, "d", out)
	_, err = render(t, Spec{Data: `{{ mustEnv "PLUGIN_ONLY" }}`}, Input{})
	must.EqError(t, err, `execute template "secrets/app.conf": line 1: mustEnv: environment variable "PLUGIN_ONLY" is not set or empty: set it in the task's env block`)
}

// A name that is computed is looked at when it is asked for.
func TestUnknownVariableOfTheNodeIsNeverEmpty(t *testing.T) {
	for _, text := range []string{`{{ "attr.x" | env }}`, `{{ env (print "attr" ".x") }}`, `{{ print "attr.x" | mustEnv }}`,
		`{{ envOrDefault (print "attr.x") "d" }}`} {
		_, err := render(t, Spec{Data: text}, Input{})
		must.StrContains(t, err.Error(), `drivers are not told the node's attr.x: write env { ATTR_X = "${attr.x}" } in the task`,
			must.Sprint(text))
	}
	_, err := render(t, Spec{Data: `{{ env "node.datacenter" }}`}, Input{})
	must.StrContains(t, err.Error(), "drivers are not told the node's node.datacenter")
}

func TestParseErrors(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"an action that is not closed":        {"a\n{{ secret \"x\"", "line 2: unclosed action"},
		"an action that ends on another line": {"a\n{{ secret \"x\"\n", "line 3: unclosed action started at line 2"},
		"an if without an end": {"a\n{{ if true }}\n\n",
			"line 4: unexpected EOF: an {{ end }} is missing"},
		"an attribute of the node": {"a\n{{ if false }}\n{{ env \"attr.cpu.arch\" }}{{ end }}",
			`line 3: drivers are not told the node's attr.cpu.arch: write env { ATTR_CPU_ARCH = "${attr.cpu.arch}" } in the task, and env "ATTR_CPU_ARCH" here`},
		"the node's metadata":                     {`{{ (envOrDefault "meta.rack" "a") | toUpper }}`, `line 1: drivers are not told the node's meta.rack`},
		"the node's class":                        {`{{ with mustEnv "node.class" }}{{ end }}`, `line 1: drivers are not told the node's node.class`},
		"an unknown function":                     {"a\n\n{{ screte \"x\" }}", `line 3: function "screte" not defined`},
		"sprig's functions that look at the host": {`{{ sprig_env "HOME" }}`, `line 1: function "sprig_env" not defined`},
		"a denied function": {"\n{{ plugin \"id\" }}",
			`line 2: function "plugin" is not available in nomad-driver-vault: it runs a program as root on the host; run it in the task`},
		"a Consul function in a pipe": {`{{ "a" | key }}`,
			`line 1: function "key" reads Consul, which nomad-driver-vault does not: use secret or nomadVar`},
		"a Consul function in an unreached branch": {"{{ if false }}\n{{ else }}{{ range services }}{{ end }}{{ end }}",
			`line 2: function "services" reads Consul`},
		"a denied function within a definition": {"{{ define \"a\" }}\n{{ spew_dump . }}{{ end }}",
			`line 2: function "spew_dump" is not`},
		"a denied function in a template's data": {`{{ define "a" }}{{ end }}{{ template "a" (ls "x") }}`,
			`line 1: function "ls" reads`},
		"a denied function's field": {`{{ with $x := (node).Node }}{{ end }}`,
			`line 1: function "node" reads`},
		"the first of several": {"{{ define \"a\" }}\n{{ ls \"\" }}{{ end }}\n{{ key \"\" }}",
			`line 2: function "ls"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(Spec{Name: "local/x", Data: tc.text})
			must.ErrorContains(t, err, `parse template "local/x": `+tc.want)
		})
	}
}

func TestSourceErrorsStayInTheChain(t *testing.T) {
	for _, text := range []string{
		"\n{{ secret \"nope\" }}",
		"\n{{ with secret \"nope\" \"a=b\" }}{{ end }}",
		"\n{{ if true }}{{ range secrets \"denied\" }}{{ end }}{{ end }}",
		"\n{{ define \"a\" }}{{ (pkiCert \"nope\" \"common_name=x\").Cert }}{{ end }}{{ template \"a\" }}",
	} {
		_, err := render(t, Spec{Data: text}, Input{Source: newSource()})
		var denied *errVault
		must.True(t, errors.As(err, &denied), must.Sprint(err))
		must.StrContains(t, err.Error(), `execute template "secrets/app.conf": line 2: `)
		must.StrContains(t, err.Error(), denied.Error())
	}
}

func TestErrAbsent(t *testing.T) {
	for text, want := range map[string]string{
		`{{ nomadVar "nope" }}`:         `line 1: nomadVar: variable "nope" of Nomad does not exist: create it`,
		`{{ nomadVarListSafe "none" }}`: `line 1: nomadVarListSafe: any variable of Nomad under "none" does not exist: create one, or use nomadVarList`,
	} {
		_, err := render(t, Spec{Data: text}, Input{Source: newSource()})
		must.ErrorIs(t, err, ErrAbsent)
		must.StrHasSuffix(t, want, err.Error())
	}
	_, err := render(t, Spec{Data: `{{ nomadVar "broken" }}`}, Input{Source: newSource()})
	must.ErrorContains(t, err, "read variable: 500")
	must.False(t, errors.Is(err, ErrAbsent))
}

func TestExecuteEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tmpl, err := Parse(Spec{Name: "x", Data: `{{ secret "hangs" }}`})
		must.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = tmpl.Execute(ctx, Input{Source: newSource()})
		must.ErrorIs(t, err, context.DeadlineExceeded)
		src := newSource()
		_, err = tmpl.Execute(ctx, Input{Source: src})
		must.ErrorIs(t, err, context.DeadlineExceeded)
		must.Len(t, 0, src.asked)
	})
}

func TestMissingKey(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"a missing key is named": {
			"\n{{ with secret \"kv1/app\" }}{{ .Data.nope }}{{ end }}",
			`line 2: <.Data.nope>: map has no entry for key "nope"`},
		"a KV v2 secret read as v1": {
			`{{ with secret "kv/data/app" }}{{ .Data.password }}{{ end }}`,
			`line 1: <.Data.password>: map has no entry for key "password": "kv/data/app" is KV version 2: its fields are under .Data.data`},
		"a KV v1 secret read as v2": {
			`{{ with secret "kv1/app" }}{{ .Data.data.user }}{{ end }}`,
			`line 1: <.Data.data.user>: map has no entry for key "data": "kv1/app" is not KV version 2: its fields are under .Data`},
		"a key missing in both versions has no hint": {
			`{{ with secret "kv/data/app" }}{{ .Data.data.nope }}{{ end }}`,
			`line 1: <.Data.data.nope>: map has no entry for key "nope"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := render(t, Spec{Data: tc.text, ErrorOnMissingKey: true}, Input{Source: newSource()})
			must.EqError(t, err, `execute template "secrets/app.conf": `+tc.want)
		})
	}
	_, err := render(t, Spec{Data: `{{ with secret "kv/data/app" }}{{ .Data.password }}{{ end }}`},
		Input{Source: newSource()})
	must.EqError(t, err, `execute template "secrets/app.conf": `+cases["a KV v2 secret read as v1"].want,
		must.Sprint("it rendered <no value>"))
	_, err = render(t, Spec{Data: `{{ with secret "kv1/app" }}{{ .Data.data.user }}{{ end }}`}, Input{Source: newSource()})
	must.EqError(t, err, `execute template "secrets/app.conf": line 1: <.Data.data.user>: nil pointer evaluating interface {}.user: "kv1/app" is not KV version 2: its fields are under .Data`)
}

func TestErrorsShowNoSecret(t *testing.T) {
	const with = `{{ with secret "kv/data/app" }}`
	cases := map[string]struct {
		text   string
		want   string
		secret string
	}{
		"a function quotes its argument": {with + `{{ .Data.data.password | parseInt }}{{ end }}`,
			`parseInt: strconv.ParseInt: parsing "[redacted]": invalid syntax`, "hunter2"},
		"in another form": {with + `{{ .Data.data.password | toUpper | parseInt }}{{ end }}`,
			`parsing "[redacted]"`, "HUNTER2"},
		"with quotation marks in it": {with + `{{ .Data.data.half | parseInt }}{{ end }}`, `parsing "[redacted]"`,
			"cret\""},
		"one character long": {with + `{{ .Data.data.pin | parseBool }}{{ end }}`, `parsing "[redacted]"`,
			`"7"`},
		"a range prints its value": {with + `{{ range .Data.data.password | parseYAML }}{{ end }}{{ end }}`,
			"line 1: range can't iterate over this value", "hunter2"},
		"a range over a short string": {with + `{{ range eq .Data.data.pin "7" }}{{ end }}{{ end }}`,
			"range can't iterate over this value", "over true"},
		"a comparison prints both": {with + `{{ if eq .Data .Data }}{{ end }}{{ end }}`,
			"eq: non-comparable type this value", "hunter2"},
		"the author fails with it": {with + `{{ sprig_fail (printf "bad %s" .Data.data.multi) }}{{ end }}`,
			"sprig_fail: with a text that is made of values, and not shown", "line2"},
		"one character long, without quotation": {with + `{{ sprig_fail (printf "code %s" .Data.data.pin) }}{{ end }}`,
			"sprig_fail: with a text that is made of values, and not shown", "code 7"},
		"short, and in the template as well": {with + `{{/* -+ */}}{{ .Data.data.odd | parseInt }}{{ end }}`,
			`parsing "[redacted]"`, "-+"},
		"a value in another form": {with + `{{ sprig_fail (sprig_b64enc .Data.data.password) }}{{ end }}`,
			"sprig_fail: with a text that is made of values, and not shown", "aHVudGVyMg"},
		"the author's own words": {with + `{{ sprig_fail "no such color" }}{{ end }}`,
			"sprig_fail: no such color", "hunter2"},
		"a path with a line of its own": {`{{ secret "denied/%0a[ERROR]%1b[2J" }}`,
			`read "denied/\n[ERROR]\x1b[2J": permission denied`, "\x1b"},
		"the token of a login": {`{{ with secret "auth/login" "a=b" }}{{ sprig_fail .Data.token }}{{ end }}`,
			"sprig_fail: with a text that is made of values, and not shown", "hvs"},
		"a Nomad variable": {`{{ with nomadVar "nomad/jobs/app" }}{{ sprig_fail .pass.Value }}{{ end }}`,
			"sprig_fail: with a text that is made of values, and not shown", "variable"},
		"a long environment variable": {`{{ sprig_fail (env "LONG") }}`,
			"sprig_fail: with a text that is made of values, and not shown", "env-secret"},
		"an argument of ours": {with + `{{ secret "kv1/app" .Data.data.password }}{{ end }}`,
			"secret: argument 1 after the path is not key=value", "hunter2"},
		"a service name of ours": {with + `{{ nomadService (printf "%s!" .Data.data.password) }}{{ end }}`,
			`nomadService: argument "[redacted]" does not have the form`, "hunter2"},
		"a loop of ours": {with + `{{ loop .Data.data.password }}{{ end }}`,
			"loop: an argument is a string but not a whole number", "hunter2"},
		"a path": {with + `{{ secret (printf "kv/data/%s" .Data.data.password) }}{{ end }}`,
			`secret: read "kv/data/[redacted]": permission denied`, "hunter2"},
		"a path to list": {with + `{{ secrets (print "denied/" .Data.data.password) }}{{ end }}`,
			`secrets: read "denied/[redacted]": permission denied`, "hunter2"},
		"an argument that Vault quotes": {with +
			`{{ secret "quoted" (printf "common_name=x-%s" .Data.data.password) }}{{ end }}`, `secret: common name x-[redacted] not allowed`, "hunter2"},
		"one of a certificate": {with +
			`{{ pkiCert "quoted" (printf "common_name=%s" .Data.data.pin) }}{{ end }}`, `pkiCert: common name [redacted] not allowed`, "name 7"},
		"a path to a Nomad variable": {with + `{{ nomadVar (print "no/" .Data.data.password) }}{{ end }}`,
			`nomadVar: variable "no/[redacted]" of Nomad does not exist`, "hunter2"},
		"a path to a file": {with + `{{ file (print "local/" .Data.data.password) }}{{ end }}`,
			`file: read file "local/[redacted]": `, "hunter2"},
		"what the template itself quotes stays": {`{{ parseInt "author" }}`,
			`parseInt: strconv.ParseInt: parsing "author": invalid syntax`, "redacted"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := render(t, Spec{Data: tc.text}, Input{Source: newSource(), Env: map[string]string{"LONG": "env-secret"}})
			must.ErrorContains(t, err, `execute template "secrets/app.conf": line 1: `)
			must.ErrorContains(t, err, tc.want)
			must.StrNotContains(t, err.Error(), tc.secret)
			must.StrNotContains(t, err.Error(), "\n")
		})
	}
}

func TestErrorsAreOneLineForAnyTerminal(t *testing.T) {
	_, err := render(t, Spec{Data: `{{ parseInt "a\u202eb\x1b" }}`}, Input{})
	must.Error(t, err)
	must.Eq(t, logtext.Line(err.Error()), err.Error())
}

// What the template's own text asks for, and what Nomad calls a job, has to be read in an error.
func TestErrorsShowWhatWasAskedFor(t *testing.T) {
	for text, want := range map[string]string{
		`{{ with secret "kv/data/app" }}{{ secret "kv/7/hunter2" }}{{ end }}`:                    `read "kv/7/hunter2": permission denied`,
		`{{ $job := env "NOMAD_JOB_NAME" }}{{ secret (printf "kv/data/%s/db" $job) }}`:           `read "kv/data/long-job-name/db": permission denied`,
		`{{ secret (printf "kv/data/%s/db" (env "NOMAD_TOKEN_vault")) }}`:                        `read "kv/data/[redacted]/db": permission denied`,
		`{{ with secret "kv/data/app" }}{{ nomadVar (env "NOMAD_JOB_NAME") }}{{ end }}`:          `variable "long-job-name" of Nomad does not exist`,
		`{{ with secret "kv/data/app" }}{{ secret "quoted" "common_name=hunter2.de" }}{{ end }}`: `common name [redacted].de not allowed`,
	} {
		env := map[string]string{"NOMAD_JOB_NAME": "long-job-name", "NOMAD_TOKEN_vault": "header.claims.signature"}
		_, err := render(t, Spec{Data: text}, Input{Source: newSource(), Env: env})
		must.ErrorContains(t, err, want)
	}
}

func TestTemplatesCannotChangeTheSource(t *testing.T) {
	src := newSource()
	_, err := render(t, Spec{Data: `{{ with secret "kv/data/app" }}{{ sprig_set .Data.data "password" "changed" }}{{ end }}`}, Input{Source: src})
	must.NoError(t, err)
	out, err := render(t, Spec{Data: `{{ with secret "kv/data/app" }}{{ .Data.data.password }}{{ end }}`},
		Input{Source: src})
	must.NoError(t, err)
	must.Eq(t, "hunter2", out)
}

func TestLimits(t *testing.T) {
	_, err := render(t, Spec{Data: `{{ range loop 17 }}{{ sprig_repeat 1048576 "x" }}{{ end }}`}, Input{})
	must.ErrorContains(t, err, `execute template "secrets/app.conf": the result has more than the 16777216 bytes allowed: split the template`)
	for _, text := range []string{
		`{{ range loop 9000000 }}{{ end }}`,
		`{{ range loop 100 }}{{ $x := loop 100000 }}{{ end }}`,
		`{{ loop "-9223372036854775808" "9223372036854775807" }}`,
	} {
		_, err := render(t, Spec{Data: text}, Input{})
		must.ErrorContains(t, err, "loop: it takes more than the 67108864 bytes that the templates of one task may")
	}
}

func TestNomadFunctions(t *testing.T) {
	cases := map[string]struct{ text, want, asked string }{
		"services are sorted, and so are their tags": {`{{ range nomadServices "@west" }}{{ .Name }}{{ .Tags }} {{ end }}`,
			"db[] web[a v2] ", "services west"},
		"a service's instances": {`{{ range nomadService "web@west" }}{{ .ID }}{{ .Name }} {{ .Address }}:{{ .Port }} {{ .Node }} {{ .Datacenter }} {{ .JobID }} {{ .AllocID }} {{ .Tags }};{{ end }}`, "i1web 10.0.0.1:80 n1 dc1 j a [blue v2];web 10.0.0.2:81     [green];", "service {Name:web Region:west Choose:}"},
		"instances with a tag": {`{{ range nomadService "green.web" }}{{ .Port }}{{ end }}`, "81",
			"service {Name:web Region: Choose:}"},
		"chosen instances": {`{{ range nomadService 1 "me" "web" }}{{ .Port }} {{ end }}`, "80 81 ",
			"service {Name:web Region: Choose:1|me}"},
		"instances by tag and port": {`{{ range $tag, $s := byTag (nomadService "web") }}{{ $tag }}={{ len $s }} {{ end }}{{ range $p, $_ := byPort (nomadService "web") }}{{ $p }} {{ end }}`, "blue=1 green=1 v2=1 80 81 ", "service {Name:web Region: Choose:};service {Name:web Region: Choose:}"},
		"a variable's items":        {`{{ with nomadVar "/nomad/jobs/app" }}{{ .user }} {{ .Keys }} {{ .Values }} {{ range .Tuples }}{{ .K }}{{ .V }}{{ end }} {{ .pass.Value }} {{ .Metadata.ModifyIndex }} {{ .Parent.Path }} {{ . | toJSON }}{{ end }}`, `u1 [pass user] [variable-secret u1] passvariable-secretuseru1 variable-secret 9 nomad/jobs/app {"pass":"variable-secret","user":"u1"}`, "variable {Path:nomad/jobs/app Namespace: Region:}"},
		"a variable elsewhere":      {`{{ nomadVarExists "nomad/jobs/app@prod.west" }}{{ nomadVarExists "nope" }}{{ nomadVarExists "" }}{{ nomadVar "" }}`, "truefalsefalsemap[]", "variable {Path:nomad/jobs/app Namespace:prod Region:west};variable {Path:nope Namespace: Region:}"},
		"a list of variables":       {`{{ range nomadVarList "a@*" }}{{ . }} {{ .Namespace }} {{ .ModifyIndex }} {{ .ModifyTime.Time.UnixNano }}{{ end }}`, "a/b default 7 1", "variables {Path:a Namespace:* Region:}"},
		"all variables":             {`{{ len nomadVarList }}{{ len (nomadVarList "//") }}{{ len (nomadVarList "none") }}{{ len (nomadVarListSafe "a") }}`, "1101", "variables {Path: Namespace: Region:};variables {Path: Namespace: Region:};variables {Path:none Namespace: Region:};variables {Path:a Namespace: Region:}"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			out, err := render(t, Spec{Data: tc.text}, Input{Source: src})
			must.NoError(t, err)
			must.Eq(t, tc.want, out)
			must.Eq(t, tc.asked, strings.Join(src.asked, ";"))
		})
	}
}

func TestArgumentErrors(t *testing.T) {
	for text, want := range map[string]string{
		`{{ secret "/" }}`:                 "secret: the path is empty",
		`{{ secret " " "a=b" }}`:           "secret: the path is empty",
		`{{ secret "a%zz" }}`:              `secret: path "a%zz": invalid URL escape "%zz"`,
		`{{ pkiCert "" }}`:                 "pkiCert: the path is empty",
		`{{ pkiCert "kv1/app" }}`:          `pkiCert: no certificate in PEM form in Vault's answer for "kv1/app"`,
		`{{ pkiCert "kv1/written" }}`:      `pkiCert: no answer from Vault for "kv1/written"`,
		`{{ nomadService }}`:               "nomadService: the arguments are not a service",
		`{{ nomadService 1 }}`:             "nomadService: the service is not a string",
		`{{ nomadService "a" "b" "c" }}`:   "nomadService: the first two of three arguments",
		`{{ nomadService "a b" }}`:         `nomadService: argument "a b" does not have the form <tag>.<name>@<region>`,
		`{{ nomadServices "web" }}`:        `nomadServices: argument "web" does not have the form @<region>`,
		`{{ nomadVar "@x" }}`:              `nomadVar: argument "@x" does not have the form <path>@<namespace>.<region>`,
		`{{ nomadVar "/" }}`:               "nomadVar: the path is empty",
		`{{ nomadVarList "a" "b" }}`:       "nomadVarList: 2 arguments",
		`{{ nomadVarList "a@b*" }}`:        `nomadVarList: argument "a@b*" does not have the form`,
		`{{ loop }}`:                       "loop: 0 arguments, where 1 or 2 are expected",
		`{{ loop 1.5 }}`:                   "loop: an argument has the type float64",
		`{{ file "../x" }}`:                `file: read file "../x": path "../x" is not below the task's directory`,
		`{{ file "local/x" }}`:             `file: read file "local/x": the directory is not open to templates`,
		`{{ with secret 5 }}{{ end }}`:     `line 1: <5>: expected string; found 5`,
		`{{ template "nope" }}`:            `template "nope" not defined`,
		`{{ (secret "kv1/app").Missing }}`: "can't evaluate field Missing",
	} {
		_, err := render(t, Spec{Data: text}, Input{Source: newSource()})
		must.ErrorContains(t, err, want)
	}
}

func TestPKICert(t *testing.T) {
	leaf, key := certificate(t, false)
	issuer, _ := certificate(t, true)
	root, _ := certificate(t, true)
	src := newSource()
	src.secrets["pki/issue/api"] = &Secret{Data: map[string]any{
		"certificate": leaf, "private_key": key, "issuing_ca": issuer, "ca_chain": []any{issuer, root},
		"serial_number": "1", "private_key_type": "ec",
	}}
	text := `{{ with pkiCert "/pki/issue/api" "common_name=x" }}{{ .Cert }}|{{ .Key }}|{{ .CA }}|{{ range .CAChain }}{{ . }}+{{ end }}|{{ .Data.Cert }}{{ end }}{{ if pkiCert }}x{{ end }}`
	out, err := render(t, Spec{Data: text}, Input{Source: src})
	must.NoError(t, err)
	must.Eq(t, strings.Join([]string{leaf, key, issuer, issuer + "+" + root + "+", leaf}, "|"), out)
	must.Eq(t, []string{"write pki/issue/api map[common_name:x]"}, src.asked)
}

// certificate returns a self-signed certificate and its key, both PEM.
func certificate(t *testing.T, isCA bool) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	form := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, IsCA: isCA,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, form, form, private.Public(), private)
	must.NoError(t, err)
	raw, err := x509.MarshalECPrivateKey(private)
	must.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}))
}

func TestFile(t *testing.T) {
	host := t.TempDir()
	write := func(name, text string) {
		must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(host, name)), 0o755))
		must.NoError(t, os.WriteFile(filepath.Join(host, name), []byte(text), 0o644))
	}
	write("outside", "never")
	write("alloc/shared", "shared")
	write("task/local/a", "local-a")
	write("task/secrets/b", "secrets-b")
	must.NoError(t, os.Symlink("a", filepath.Join(host, "task/local/link")))
	must.NoError(t, os.Symlink("../../outside", filepath.Join(host, "task/local/escape")))
	must.NoError(t, syscall.Mkfifo(filepath.Join(host, "task/local/pipe"), 0o644))
	must.NoError(t, os.Truncate(filepath.Join(host, "outside"), 0))
	must.NoError(t, os.WriteFile(filepath.Join(host, "task/local/big"), nil, 0o644))
	must.NoError(t, os.Truncate(filepath.Join(host, "task/local/big"), MaxOutput+1))
	root, err := os.OpenRoot(filepath.Join(host, "task"))
	must.NoError(t, err)
	defer root.Close()
	alloc, err := os.OpenRoot(filepath.Join(host, "alloc"))
	must.NoError(t, err)
	defer alloc.Close()
	in := Input{Root: root, Alloc: alloc, Env: map[string]string{"NOMAD_TASK_DIR": "/var/nomad/alloc/x/task/local",
		"NOMAD_ALLOC_DIR": "/alloc"}}

	for path, want := range map[string]string{
		`"local/a"`:                              "local-a",
		`" /secrets/b "`:                         "secrets-b",
		`(printf "%s/a" (env "NOMAD_TASK_DIR"))`: "local-a",
		`"local/link"`:                           "local-a",
		`"/alloc/shared"`:                        "shared",
		`"alloc/shared"`:                         "shared",
		`""`:                                     "",
	} {
		out, err := render(t, Spec{Data: "{{ file " + path + " }}"}, in)
		must.NoError(t, err)
		must.Eq(t, want, out)
	}
	for path, want := range map[string]string{
		`"local/none"`:      "no such file or directory",
		`"local/escape"`:    "path escapes from parent",
		`"local/../../x"`:   "is not below the task's directory",
		`"local/pipe"`:      "it is a named pipe, not a regular file",
		`"local"`:           "it is a directory, not a regular file",
		`"local/big"`:       "it is too large: more than 16777216 bytes",
		`"/etc/os-release"`: "no such file or directory",
	} {
		_, err := render(t, Spec{Data: "{{ file " + path + " }}"}, in)
		must.ErrorContains(t, err, `line 1: file: read file `+path+`: `)
		must.ErrorContains(t, err, want)
	}
}

func BenchmarkExecute(b *testing.B) {
	tmpl, err := Parse(Spec{Name: "x", Data: `{{ with secret "kv/data/app" }}PASSWORD={{ .Data.data.password }}
PIN={{ .Data.data.pin | toJSON }}{{ end }}{{ with secret "database/api" }}
USER={{ .Data.username }}{{ end }}`})
	must.NoError(b, err)
	in := Input{Source: newSource()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tmpl.Execute(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
}
