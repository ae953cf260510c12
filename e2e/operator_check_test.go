package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// A flaw is one change to a job that would get its secrets, and what check says of it.
type flaw struct {
	old, new string   // pattern of what is replaced in the jobspec, and by what
	config   string   // in place of what the job asks
	says     []string // all on one line, which begins with "problem"
}

var flaws = map[string]flaw{
	"an unknown role": {old: `role = "checked"`, new: `role = "chekced"`, says: []string{
		`task "checked", vault "default"`, `role "chekced" could not be found`, `create role "chekced"`}},
	"a role that is for another job": {old: `role = "checked"`, new: `role = "checked-bound"`, says: []string{
		`role "checked-bound" of auth/jwt-nomad does not admit this job`, `claim "nomad_job_id" does not match any associated bound claim values`, `it is "checked", and bound_claims wants one of ["another"]`}},
	"a role with a claim that nobody has": {old: `role = "checked"`, new: `role = "checked-claim"`, says: []string{
		`user_claim of role "checked-claim" of auth/jwt-nomad: claim "name" not found in token`, `set user_claim = "/nomad_job_id"`}},
	"another audience": {old: `vault\.io`, new: `consul.io`, says: []string{
		`audience claim does not match any expected audience`, `aud is ["consul.io"], and bound_audiences ["vault.io"]`, `make aud of the task's identity block one of bound_audiences of role "checked"`}},
	"an unknown cluster": {old: `role = "checked"`, new: `cluster = "east"`, says: []string{
		`vault "default": cluster "east" is unknown: the operator has configured "default", "west"`}},
	"no identity": {old: `(?s)identity {.*?}`, says: []string{
		`identity "vault": no file secrets/nomad_vault.jwt`, `add to the task:`}},
	"an identity that the task does not get": {old: `file = true`,
		says: []string{`add to the identity block: file = true`}},
	"a policy without the path": {config: renders(`{{ with secret "kv/data/default/another/config" }}{{ end }}`, ""),
		says: []string{
			`template "secrets/out" line 1: read kv/data/default/another/config: denied by Vault`,
			`role "checked" grants the policies [default checked]; what is missing in one of them is: path "kv/data/default/another/config" { capabilities = ["read"] }` + "\n"}},
	"a secret block that the policy does not allow": {config: "secret \"app\" {\n path = " +
		"\"kv/default/another/config\"\n }\n", says: []string{
		`secret "app": read kv/data/default/another/config: denied by Vault`}},
	"a pki block that the policy does not allow": {config: "pki \"web\" {\n path = \"pki/issue/web\"\n cert_file = " +
		"\"secrets/crt\"\n }\n", says: []string{
		`pki "web": write pki/issue/web: denied by Vault`}},
	"a pki block that may not revoke": {config: "pki \"web\" {\n path = \"pki/issue/web\"\n cert_file = " +
		"\"secrets/crt\"\n revoke = true\n }\n", says: []string{
		`pki "web": write pki/revoke-with-key: denied by Vault`}},
	"a policy with the paths of the vault command": {config: renders(`{{ with secret "kv/default/checked-words/config" }}{{ end }}`, ""), says: []string{
		`read kv/data/default/checked-words/config: denied by Vault`, `write data/ after kv/ in the paths of the policies`}},
	"a path of KV version 2 in version 1": {config: renders(`{{ with secret "checked-v1/data/config" }}{{ end }}`, ""),
		says: []string{
			`read checked-v1/data/config: not found in Vault`, `leave data/ out: the mount is KV version 1`}},
	"a field where version 1 has it": {config: renders("\n"+`{{ with secret "kv/default/checked/config" }}{{ .Data.color }}{{ end }}`, ""),
		says: []string{`line 2: "kv/default/checked/config" is KV version 2: its fields are under .Data.data`, `write .Data.data.color`}},
	"a field where version 2 has it": {config: renders(`{{ with secret "checked-v1/config" }}{{ .Data.data.color }}{{ end }}`, ""),
		says: []string{`"checked-v1/config" is not KV version 2: its fields are under .Data`, `write .Data.color`}},
	"a variable that nobody sets": {config: renders("${HOMER}", ""), says: []string{
		`There is no variable named "HOMER"`}},
	"a variable of Nomad's without an identity": {config: renders(`{{ nomadVarExists "a" }}`, ""), says: []string{
		`template "secrets/out": Nomad's task API wants the task's own token`, `add to the task:`}},
	"a secret that nobody has written": {config: renders(`{{ with secret "kv/default/checked/none" }}{{ end }}`, ""),
		says: []string{
			`read kv/data/default/checked/none: not found in Vault`, `write it first, or correct the path`}},
	"an engine that nobody has mounted": {config: renders(`{{ with secret "checked-none/config" }}{{ end }}`, ""),
		says: []string{
			`read checked-none/config: denied by Vault`, `no secrets engine is mounted there`, `correct the path or the namespace`}},
	"a certificate that the policy does not allow": {config: renders(`{{ with pkiCert "checked-pki/issue/x" "common_name=x" }}{{ end }}`, ""), says: []string{
		`write checked-pki/issue/x: denied by Vault`, `path "checked-pki/issue/x" { capabilities = ["create", "update"] }`}},
	"a policy for the auth method of before": {old: `role = "checked"`, new: `role = "checked-stale"`, says: []string{
		`read kv/data/default/checked/config: denied by Vault`, `{{identity.entity.aliases.auth_jwt_0.metadata.nomad_job_id}}`,
		`which a login at auth/jwt-nomad does not have: run nomad-driver-vault setup`}},
	"a template that is none": {config: renders(`{{ with secret }`, ""),
		says: []string{`parse template "secrets/out": line 1`, `unexpected "}"`}},
	"an unknown option": {config: renders("x", `chnge_mode = "noop"`), says: []string{`chnge_mode`}},
	"a wrong value": {config: renders("x", `perms = "rw"`),
		says: []string{`template "secrets/out": perms "rw" is not an octal file mode such as "0600"`}},
	"another driver": {old: `vault-exec`, new: `exec`, says: []string{`no task has a driver of this plugin`,
		`set driver = "vault-exec"`}},
	"a driver that no client has": {old: `vault-exec`, new: `vault-docker`, says: []string{
		`no client has the driver vault-docker`, `install the plugin there`}},
}

const checkedPolicy = `
	path "kv/data/{{identity.entity.aliases.ACCESSOR.metadata.nomad_namespace}}/{{identity.entity.aliases.ACCESSOR.metadata.nomad_job_id}}/*" {
		capabilities = ["read"]
	}
	path "kv/default/checked-words/*" { capabilities = ["read"] }
	path "checked-v1/*" { capabilities = ["read"] }
	path "database/creds/checked" { capabilities = ["read"] }`

func setUpChecked(t *testing.T, s *stack.Stack) {
	ctx := within(t, 2*time.Minute)
	method, err := s.Vault.API.Logical().ReadWithContext(ctx, "sys/auth/jwt-nomad")
	must.NoError(t, err)
	policy := strings.ReplaceAll(checkedPolicy, "ACCESSOR", method.Data["accessor"].(string))
	must.NoError(t, s.Vault.Put(ctx, "kv/data/default/checked/config",
		map[string]any{"data": map[string]any{"color": canary}}))
	must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, "checked-v1", &vault.MountInput{Type: "kv"}))
	must.NoError(t, s.Vault.Put(ctx, "checked-v1/config", map[string]any{"color": canary}))
	must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, "checked-pki", &vault.MountInput{Type: "pki"}))
	must.NoError(t, s.Vault.Role(ctx, "checked", policy, nil))
	must.NoError(t, s.Vault.Role(ctx, "checked-stale", strings.ReplaceAll(checkedPolicy, "ACCESSOR", "auth_jwt_0"), nil))
	must.NoError(t, s.Vault.Role(ctx, "checked-bound", policy,
		map[string]any{"bound_claims": map[string]any{"nomad_job_id": "another"}}))
	must.NoError(t, s.Vault.Role(ctx, "checked-claim", policy, map[string]any{"user_claim": "name",
		"user_claim_json_pointer": false}))
}

// asks is what a job asks that is as it should be: of both versions of KV, of a database, and by a path that only the
// task knows.
var asks = renders(`{{ with secret "kv/data/default/checked/config" }}{{ end }}{{ with secret "kv/default/${NOMAD_JOB_ID}/config" }}{{ end }}
{{ with secret "checked-v1/config" }}{{ end }}{{ with secret "database/creds/checked" }}{{ end }}`, "")

// checkedJob returns the file of a job with a flaw.
func checkedJob(t *testing.T, config string, f flaw) string {
	t.Helper()
	text := job{Name: "checked", Driver: "vault-exec", Args: []string{"show"},
		Config: "vault {\n role = \"checked\"\n }\n" + config}.spec()
	changed := text
	if f.old != "" {
		changed = regexp.MustCompile(f.old).ReplaceAllLiteralString(text, f.new)
		must.NotEq(t, text, changed)
	}
	return jobFile(t, changed)
}

// jobFile returns a file with a jobspec.
func jobFile(t *testing.T, spec string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job.nomad.hcl")
	must.NoError(t, os.WriteFile(path, []byte(spec), 0o600))
	return path
}

func TestCheckSaysWhetherAJobGetsItsSecrets(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec")}, Postgres: true,
		Clusters: []string{"west"}})
	setUpChecked(t, s)
	must.NoError(t, s.Vault.DatabaseRole(within(t, time.Minute), "checked", time.Hour, time.Hour))
	agent := "-config=" + filepath.Join(s.Dir, "client.hcl")

	t.Run("a job that is right", func(t *testing.T) {
		for _, args := range [][]string{nil, {agent}} {
			out, code := operate(t, s, "", append([]string{"check", "-job=" + checkedJob(t, asks, flaw{})}, args...)...)
			must.Zero(t, code, must.Sprint(out))
			for _, says := range []string{
				`ok       task "checked": 1 of 1 clients have the driver vault-exec`,
				`the task has its identity "vault"`,
				`auth/jwt-nomad has role "checked", and Vault reads Nomad's keys`,
				`role "checked" of auth/jwt-nomad admits the task`,
				`line 1: read kv/data/default/checked/config is allowed`,
				`line 2: read checked-v1/config is allowed`,
				`line 2: read database/creds/checked is allowed`,
			} {
				must.StrContains(t, out, says)
			}
			// a test's stack, for the sake of tasks of other users
			open := `warning  data_dir: every user of this host can enter `
			must.Eq(t, args != nil, strings.Contains(out, open))
			must.StrNotContains(t, strings.ReplaceAll(out, open, ""), "warning")
			must.StrNotContains(t, out, canary)
		}
		leases, err := s.Vault.Leases(t.Context(), "checked")
		must.NoError(t, err)
		must.SliceEmpty(t, leases, must.Sprint("nothing is read"))
		tokens, err := s.Vault.Tokens(t.Context())
		must.NoError(t, err)
		must.SliceEmpty(t, tokens, must.Sprint("nobody logs in"))
	})
	for _, sentence := range slices.Sorted(maps.Keys(flaws)) {
		f := flaws[sentence]
		t.Run(sentence, func(t *testing.T) {
			file := checkedJob(t, cmp.Or(f.config, asks), f)
			for _, args := range [][]string{nil, {agent}} {
				out, code := operate(t, s, "", append([]string{"check", "-job=" + file}, args...)...)
				must.Eq(t, 1, code, must.Sprint(out))
				must.True(t, slices.ContainsFunc(strings.SplitAfter(out, "\n"), func(line string) bool {
					return strings.HasPrefix(line, "problem ") && mistake{says: f.says}.said(line)
				}), must.Sprintf("says not %q:\n%s", f.says, out))
			}
			out, code := operate(t, s, "", "check", "-json", "-job="+file)
			must.Eq(t, 1, code)
			var report struct {
				Findings []struct{ Status, About, Message, Fix string }
			}
			must.NoError(t, json.Unmarshal([]byte(out), &report), must.Sprint(out))
			must.SliceContainsFunc(t, report.Findings, "problem", func(found struct{ Status, About, Message, Fix string },
				status string) bool {
				return found.Status == status && found.About != "" && found.Message != ""
			})
		})
	}
	t.Run("a path that only the task knows is a warning", func(t *testing.T) {
		file := checkedJob(t, renders(`{{ with secret (printf "kv/data/default/%s/config" (env "X")) }}{{ end }}{{ secret "kv/${node.unique.id}" }}`, ""), flaw{})
		out, code := operate(t, s, "", "check", "-job="+file)
		must.Zero(t, code, must.Sprint(out))
		must.Eq(t, 2, strings.Count(out, "only the task knows the path"))
	})
	t.Run("what the operator may not see is a warning", func(t *testing.T) {
		token, err := s.Vault.API.Auth().Token().CreateWithContext(t.Context(),
			&vault.TokenCreateRequest{Policies: []string{"default"}})
		must.NoError(t, err)
		out, code := operateWith(t, s, []string{"VAULT_TOKEN=" + token.Auth.ClientToken}, "", "check",
			"-job="+checkedJob(t, asks, flaw{}))
		must.Zero(t, code, must.Sprint(out))
		must.StrContains(t, out, `has role "checked", and Vault reads Nomad's keys`)
		must.StrContains(t, out, "role and policies cannot be looked at: list auth methods: permission denied (403); set "+
			"VAULT_TOKEN to a token that may")
		must.Eq(t, 4, strings.Count(out, "not known whether the policies allow it"))
		out, code = operateWith(t, s, []string{"VAULT_TOKEN=" + token.Auth.ClientToken}, "", "check",
			"-job="+checkedJob(t, asks, flaws["an unknown role"]))
		must.Eq(t, 1, code)
		must.StrContains(t, out, `create role "chekced"`)
	})
	t.Run("a jobspec without a namespace is of NOMAD_NAMESPACE", func(t *testing.T) {
		file := checkedJob(t, renders(`{{ with secret "kv/data/elsewhere/checked/config" }}{{ end }}`, ""), flaw{})
		must.NoError(t, s.Vault.Put(t.Context(), "kv/data/elsewhere/checked/config",
			map[string]any{"data": map[string]any{"color": canary}}))
		for namespace, wants := range map[string]int{"elsewhere": 0, "default": 1} {
			out, code := operateWith(t, s, []string{"NOMAD_NAMESPACE=" + namespace}, "", "check", "-job="+file)
			must.Eq(t, wants, code, must.Sprint(out))
		}
	})
	t.Run("an identity that will not last is a warning", func(t *testing.T) {
		for old, says := range map[string]string{`ttl  = "1h"`: `add to the identity block: ttl = "1h"`,
			`file = true`: `add to the identity block: file = true`} {
			out, code := operate(t, s, "", "check", "-job="+checkedJob(t, asks, flaw{old: old, new: "env = true"}))
			must.Zero(t, code, must.Sprint(out))
			must.StrContains(t, out, says)
		}
	})
	t.Run("a cluster that VAULT_ADDR does not lead to is asked without the token", func(t *testing.T) {
		for _, args := range [][]string{nil, {agent}} {
			out, code := operate(t, s, "", append([]string{"check", "-cluster=west", "-job=" + checkedJob(t, asks, flaw{})},
				args...)...)
			must.Zero(t, code, must.Sprint(out))
			must.StrContains(t, out, `has role "checked", and Vault reads Nomad's keys`)
			must.StrContains(t, out, "run check again with -cluster=default, VAULT_ADDR and VAULT_TOKEN of that cluster")
			must.StrNotContains(t, out, "allow")
		}
	})
	t.Run("an agent's configuration alone", func(t *testing.T) {
		out, code := operate(t, s, "", "check", agent)
		must.Zero(t, code, must.Sprint(out))
		must.StrContains(t, out, `ok       plugin "vault-exec": it is in plugin_dir`)
		must.StrContains(t, out, `ok       cluster "west": `+s.Clusters["west"].Addr+` answers`)
		must.StrNotContains(t, out, "problem")
	})
	t.Run("a Vault that is not the one of the plugin", func(t *testing.T) {
		conf := filepath.Join(t.TempDir(), "agent.hcl")
		text := fmt.Sprintf("plugin \"vault-exec\" {\n config {\n vault \"default\" {\n address = %q\n }\n }\n }\n",
			s.Clusters["west"].Addr)
		must.NoError(t, os.WriteFile(conf, []byte(text), 0o600))
		must.NoError(t, s.Vault.Role(t.Context(), "checked-here", checkedPolicy, nil))
		must.NoError(t, s.Clusters["west"].Role(t.Context(), "checked-there", checkedPolicy, nil))
		for role, wants := range map[string]int{"checked-here": 1, "checked-there": 0} {
			out, code := operate(t, s, "", "check", "-config="+conf, "-job="+checkedJob(t, "",
				flaw{old: `role = "checked"`, new: `role = "` + role + "\"\n file = true"}))
			must.Eq(t, wants, code, must.Sprint(out))
			must.Eq(t, 1-wants, strings.Count(out, `has no role "checked-there" of auth/jwt-nomad; create it, or set VAULT_ADDR to that of cluster "default"`), must.Sprint(out))
		}
	})
	t.Run("keys that Vault cannot fetch, and a Vault that is away",
		func(t *testing.T) { testCheckOutages(t, s, checkedJob(t, asks, flaw{}), agent) })
	t.Run("a running task", func(t *testing.T) {
		text, err := os.ReadFile(checkedJob(t, rendersItself, flaw{}))
		must.NoError(t, err)
		_, alloc := register(t, s, string(text))
		must.NoError(t, alloc.Running(within(t, 2*time.Minute)))
		before, err := s.Vault.Tokens(t.Context())
		must.NoError(t, err)
		testCheckRenders(t, s, alloc.ID)
		for _, args := range [][]string{{"-alloc=" + alloc.ID}, {"-alloc=" + alloc.ID[:8], "-login", agent}} {
			out, code := operate(t, s, "", append([]string{"check"}, args...)...)
			must.Zero(t, code, must.Sprint(out))
			must.StrContains(t, out, "read database/creds/checked is allowed")
			must.Eq(t, len(args) > 1, strings.Contains(out, `-login: auth/jwt-nomad took the identity "vault" of task "checked" in `+
				`allocation `+alloc.ID+` for role "checked"; the token had the policies [checked default]`), must.Sprint(out))
		}
		must.NoError(t, s.Vault.API.Sys().PutPolicyWithContext(t.Context(), "checked",
			`path "kv/*" { capabilities = ["read"] }`))
		out, code := operate(t, s, "", "check", "-login", "-alloc="+alloc.ID)
		must.Eq(t, 1, code)
		must.StrContains(t, out, "read database/creds/checked: denied by Vault")
		after, err := s.Vault.Tokens(t.Context())
		must.NoError(t, err)
		must.SliceContainsAll(t, before, after, must.Sprint("a token is left"))
	})
	t.Run("policies as Vault itself reads them", func(t *testing.T) { testCheckReadsPolicies(t, s) })
	t.Run("two docker drivers on one engine", func(t *testing.T) {
		file := checkedJob(t, "", flaw{old: "vault-exec", new: "vault-docker"})
		for off, found := range map[string]bool{"": true,
			"plugin \"docker\" {\n config {\n gc {\n dangling_containers {\n enabled = false\n }\n }\n }\n }": false,
			"client {\n options {\n \"driver.denylist\" = \"docker\"\n }\n }":                                 false} {
			conf := filepath.Join(t.TempDir(), "agent.hcl")
			must.NoError(t, os.WriteFile(conf, []byte(off+"\nplugin \"vault-docker\" {\n config {\n vault \"default\" {\n "+
				"address = \""+s.Vault.Addr+"\"\n }\n }\n }\n"), 0o600))
			out, _ := operate(t, s, "", "check", "-job="+file, "-config="+conf)
			must.Eq(t, found, strings.Contains(out, "gc { dangling_containers { enabled = false } }"),
				must.Sprint(off, "\n", out))
		}
	})
	t.Run("who asks in the wrong way is told so", func(t *testing.T) {
		for _, args := range [][]string{{"check"}, {"check", "-job=x", "-alloc=y"}, {"check", "-login", "-job=x"},
			{"check", "-job=/none"},
			{"check", "-job=x", "-config=/none"}, {"check", "-x"}, {"setup", "more"}, {"setup", "-format=x"}, {"setup",
				"-kv="}} {
			out, code := operate(t, s, "", args...)
			must.Eq(t, 2, code, must.Sprint(args, out))
			must.Eq(t, 1, strings.Count(out, "\n"), must.Sprint(out))
		}
		for _, name := range []string{"setup", "check"} {
			out, code := operate(t, s, "", name, "-h")
			must.Zero(t, code)
			must.StrContains(t, out, "Usage: nomad-driver-vault "+name)
		}
	})
}

const renderedData = `{{ with secret "kv/data/default/checked/config" }}color={{ .Data.data.color }} {{ .Data.data.color | base64Encode }}{{ end }}
{{ with secret "database/creds/checked" }}user={{ .Data.username }}{{ end }}
job={{ env "NOMAD_JOB_ID" }}`

// rendersItself is what a job asks of which check shows what becomes of it.
var rendersItself = renders(renderedData, "") + secretInEnv

const secretInEnv = "secret \"app\" {\n path = \"kv/default/checked/config\"\n env = true\n }\n"

// testCheckRenders has a task's file and variables printed, as if it did not run and as it runs.
func testCheckRenders(t *testing.T, s *stack.Stack, alloc string) {
	ctx := within(t, 2*time.Minute)
	const file, masked = `==> task "checked", file checked/secrets/out, mode 0644`, "color=*** ***\nuser=***\njob=checked\n"
	running := checkedJob(t, rendersItself, flaw{})
	leases, err := s.Vault.Leases(ctx, "checked")
	must.NoError(t, err)
	_, _, err = s.Nomad.API.Variables().Create(&nomad.Variable{Path: "nomad/jobs/checked",
		Items: map[string]string{"word": canary + "-of-nomad"}}, nil)
	must.NoError(t, err)
	asksNomad := checkedJob(t, renders(renderedData+`{{ with nomadVar "nomad/jobs/checked" }}{{ .word }}{{ end }}`, "")+secretInEnv, flaw{})
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"-job=" + running}, masked},
		{[]string{"-job=" + asksNomad}, "job=checked***\n"},
		{[]string{"-alloc=" + alloc, "-login"}, masked},
		{[]string{"-job=" + running, "-show-secrets"}, "color=" + canary},
	} {
		out, code := operate(t, s, "", append([]string{"check", "-render"}, c.args...)...)
		must.Zero(t, code, must.Sprint(out))
		for _, says := range []string{file, c.says, `==> task "checked", variable color`} {
			must.StrContains(t, out, says)
		}
		must.Eq(t, len(c.args) > 1 && c.args[1] == "-show-secrets", strings.Contains(out, canary), must.Sprint(out))
		must.StrNotContains(t, out, "warning")
	}
	out, code := operate(t, s, "", "check", "-render", "-job="+checkedJob(t,
		renders(`{{ with secret "kv/default/checked/config" }}{{ .Data.color }}{{ end }}`, ""), flaw{}))
	must.Eq(t, 1, code)
	must.StrContains(t, out, `"kv/default/checked/config" is KV version 2: its fields are under .Data.data`)
	out, code = operate(t, s, "", "check", "-render", "-job="+checkedJob(t, renders(`made={{ with secret "auth/token/create" `+
		`"ttl=1h" }}{{ .Auth.ClientToken }} {{ .Auth.Accessor }}{{ end }}`, ""), flaw{}))
	must.Zero(t, code, must.Sprint(out))
	must.StrContains(t, out, "made=*** ***\n")
	beside := right["a door and a template with its secret"]
	out, code = operate(t, s, "", "check", "-render", "-job="+checkedJob(t, beside.config, beside))
	must.Zero(t, code, must.Sprint(out))
	must.StrContains(t, out, file+"\n***\n")
	left, err := s.Vault.Leases(ctx, "checked")
	must.NoError(t, err)
	must.Eq(t, leases, left, must.Sprint("a lease is left"))
}

// testCheckOutages takes away what Vault and check need, one after the other.
func testCheckOutages(t *testing.T, s *stack.Stack, file, agent string) {
	ctx := within(t, 2*time.Minute)
	says := func(args []string, parts ...string) {
		t.Helper()
		out, code := operate(t, s, "", append([]string{"check", "-job=" + file}, args...)...)
		must.Eq(t, 1, code, must.Sprint(out))
		must.True(t, slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
			return strings.HasPrefix(line, "problem ") && mistake{says: parts}.said(line)
		}), must.Sprint(out))
	}
	const config = "auth/jwt-nomad/config"
	before, err := s.Vault.API.Logical().ReadWithContext(ctx, config)
	must.NoError(t, err)
	server, err := url.Parse(s.Nomad.Addr)
	must.NoError(t, err)
	keys := httptest.NewServer(httputil.NewSingleHostReverseProxy(server))
	must.NoError(t, s.Vault.Put(ctx, config, map[string]any{"jwks_url": keys.URL + "/.well-known/jwks.json"}))
	keys.Close()
	says([]string{agent}, "fetching keys", `Vault must reach Nomad's keys: check jwks_url in auth/jwt-nomad/config`)
	must.NoError(t, s.Vault.Put(ctx, config, map[string]any{"jwks_url": before.Data["jwks_url"]}))

	must.NoError(t, s.Vault.Pause())
	says([]string{agent}, `cluster "default"`, "Vault unavailable", "no answer in time",
		`address in the plugin's vault "default" block is `+s.Vault.Addr)
	must.NoError(t, s.Vault.Resume())
}

// TestCheckKnowsTheClustersOfClients is about settings of the plugin's clusters that are not the ones of setup, on a
// machine that has no configuration of the plugin.
func TestCheckKnowsTheClustersOfClients(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec")},
		Proxies: map[string]bool{"secure": true}, Blocks: map[string]string{
			"own":   "jwt_auth_backend_path = \"jwt-own\"\n create_from_role = \"own\"",
			"away":  "jwt_auth_backend_path = \"none\"",
			"roles": "token_file = \"/none\"\n create_from_role = \"nomad-cluster\"",
		}})
	ctx := within(t, 3*time.Minute)
	out, code := operate(t, s, "", "setup", "-yes", "-path=jwt-own", "-role=other", "-policy=own")
	must.Zero(t, code, must.Sprint(out))
	role, err := s.Vault.API.Logical().ReadWithContext(ctx, "auth/jwt-own/role/other")
	must.NoError(t, err)
	must.NoError(t, s.Vault.Put(ctx, "auth/jwt-own/role/own", role.Data))
	role.Data["token_policies"] = []string{"none"} // the default role
	must.NoError(t, s.Vault.Put(ctx, "auth/jwt-own/role/other", role.Data))
	must.NoError(t, s.Vault.Put(ctx, "kv/data/default/told/config",
		map[string]any{"data": map[string]any{"color": canary}}))
	spec := func(cluster, more string) string {
		return job{Name: "told", Driver: "vault-exec", Args: []string{"show"}, Config: "vault {\n cluster = \"" + cluster +
			"\"\n " + more + "\n }\n" +
			renders(`{{ with secret "kv/data/default/told/config" }}{{ end }}`, "")}.spec()
	}
	_, alloc := register(t, s, spec("own", ""))
	must.NoError(t, alloc.Running(ctx))
	node := []string{"NOMAD_TOKEN=" + submitter(t, s)}
	secure := []string{"VAULT_ADDR=" + s.Proxies["secure"].Addr, "VAULT_CACERT=" + s.Proxies["secure"].CA}
	for sentence, c := range map[string]struct {
		cluster, more string // of the task's vault block
		env, args     []string
		code          int
		says          []string
		never         string
	}{
		"auth path and role are those of the clients": {cluster: "own", args: []string{"-cluster=own"}, never: "warning",
			says: []string{
				`ok       cluster "own": ` + s.Vault.Addr + " answers", `auth/jwt-own has role "own"`, `role "own" of auth/jwt-own admits the task`,
				`read kv/data/default/told/config is allowed`}},
		"an auth path that is wrong on the clients": {cluster: "away", args: []string{"-cluster=away"}, code: 1,
			says: []string{
				`there is no JWT auth method at auth/none (correct jwt_auth_backend_path in the plugin's vault "away" block)`}},
		"as the running task, by the role of the clients": {args: []string{"-cluster=own", "-alloc=" + alloc.ID, "-login"},
			never: "warning", says: []string{
				`auth/jwt-own has role "own"`, `read kv/data/default/told/config is allowed`}},
		"the token role of a cluster": {cluster: "roles", more: `policies = ["a"]`, never: "warning", says: []string{
			`it gets its token by token role "nomad-cluster"; the clients' attribute driver.vault-exec.cluster.roles says whether that works`}},
		"a cluster whose CA is on the clients alone": {cluster: "secure", never: "allowed", says: []string{
			`warning  cluster "secure": ` + s.Proxies["secure"].Addr +
				` cannot be asked from here, without the clients' network, ca_file, cert_file and so on`,
			`certificate signed by unknown authority; run check with -config on a client`}},
		"the same, on a client": {cluster: "secure", args: []string{"-config=" + filepath.Join(s.Dir, "client.hcl")},
			never: "cannot be asked", says: []string{
				`cluster "secure": ` + s.Proxies["secure"].Addr + " answers"}},
		"VAULT_ADDR by its own address and CA": {cluster: "own", args: []string{"-cluster=own"}, env: secure, says: []string{
			`warning  cluster "own": VAULT_ADDR is ` + s.Proxies["secure"].Addr +
				`, and address in the plugin's configuration ` + s.Vault.Addr,
			`set VAULT_ADDR to the latter if it is another Vault`, `auth/jwt-own has role "own"`, `read kv/data/default/told/config is allowed`}},
		"a VAULT_ADDR where nobody is": {cluster: "own", args: []string{"-cluster=own"},
			env: []string{"VAULT_ADDR=http://127.0.0.1:1"}, code: 1, never: "has role", says: []string{
				`problem  cluster "own": http://127.0.0.1:1: look up health: Vault unavailable`, `correct VAULT_ADDR`}},
		"clients that cannot be looked at": {cluster: "own", args: []string{"-cluster=own", "-path=jwt-own"}, env: node,
			code: 1, says: []string{
				`the clients cannot be looked at`, `node { policy = "read" }`,
				`no client tells its vault "own" block: VAULT_ADDR and auth/jwt-own are taken for it; give -config, or -path`, `auth/jwt-own has a default role`,
				`role "other" of auth/jwt-own admits the task`, ": denied by Vault"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			args := append([]string{"check"}, c.args...)
			if !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "-alloc") }) {
				file := filepath.Join(t.TempDir(), "job.nomad.hcl")
				must.NoError(t, os.WriteFile(file, []byte(spec(c.cluster, c.more)), 0o600))
				args = append(args, "-job="+file)
			}
			out, code := operateWith(t, s, c.env, "", args...)
			must.Eq(t, c.code, code, must.Sprint(out))
			for _, says := range c.says {
				must.StrContains(t, out, says)
			}
			if c.never != "" {
				must.StrNotContains(t, out, c.never)
			}
		})
	}
}

// submitter is a Nomad token that may submit jobs and not look at clients.
func submitter(t *testing.T, s *stack.Stack) string {
	t.Helper()
	write := (&nomad.WriteOptions{}).WithContext(t.Context())
	_, err := s.Nomad.API.ACLPolicies().Upsert(&nomad.ACLPolicy{Name: "submitter",
		Rules: `namespace "default" { policy = "write" }`}, write)
	must.NoError(t, err)
	token, _, err := s.Nomad.API.ACLTokens().Create(&nomad.ACLToken{Name: "submitter", Type: "client",
		Policies: []string{"submitter"}}, write)
	must.NoError(t, err)
	return token.SecretID
}

// testCheckReadsPolicies compares what check makes of policies with what Vault says to the task itself (-login). The
// template asks for nothing when it is executed.
func testCheckReadsPolicies(t *testing.T, s *stack.Stack) {
	ctx := within(t, 3*time.Minute)
	must.NoError(t, s.Vault.Role(ctx, "policies", checkedPolicy,
		map[string]any{"token_policies": []string{"policies", "policies-2"}}))
	var text strings.Builder
	for _, path := range []string{"a", "a/b", "a/b/c", "ab", "b/x", "b/x/y", "b/z/y", "default/policies/x",
		"default/other/x", "d", "e/f"} {
		text.WriteString(`{{ secret "checked-v1/` + path + `" }}{{ secrets "checked-v1/` + path +
			`" }}{{ secret "checked-v1/` + path + `" "x=y" }}`)
	}
	_, alloc := register(t, s, job{Name: "policies", Driver: "vault-exec", Args: []string{"show"},
		Config: "vault {\n role = \"policies\"\n }\n" + renders("{{ if false }}"+text.String()+"{{ end }}", "")}.spec())
	must.NoError(t, alloc.Running(ctx))
	method, err := s.Vault.API.Logical().ReadWithContext(ctx, "sys/auth/jwt-nomad")
	must.NoError(t, err)
	said := func(args ...string) (lines []string) {
		out, _ := operate(t, s, "", append([]string{"check", "-alloc=" + alloc.ID}, args...)...)
		return append(lines, regexp.MustCompile(`(read|list|write) checked-v1/\S*( is allowed|: denied)`).FindAllString(out,
			-1)...)
	}
	seen := map[bool]int{}
	for _, policies := range [][2]string{
		{`path "*" { capabilities = ["read", "list"] }`, `path "checked-v1/a*" { capabilities = ["deny"] }`},
		{`path "checked-v1/*" { capabilities = ["read"] } path "checked-v1/a/*" { capabilities = ["list", "update"] }`,
			`path "checked-v1/a/b" { capabilities = ["create", "read"] }`},
		{`path "checked-v1/+/x" { capabilities = ["list"] } path "checked-v1/b/*" { capabilities = ["read"] }`,
			`path "checked-v1/+/+/y" { capabilities = ["read"] } path "checked-v1/b/+/y" { capabilities = ["deny"] }`},
		{`path "checked-v1/+/x" { capabilities = ["read"] } path "checked-v1/+/*" { capabilities = ["list"] }`,
			`path "+/a" { capabilities = ["read", "list"] } path "checked-v1/b/x*" { capabilities = ["update"] }`},
		{`path "checked-v1/{{identity.entity.aliases.ACCESSOR.metadata.nomad_namespace}}/{{identity.entity.aliases.ACCESSOR.metadata.nomad_job_id}}/*" { capabilities = ["read", "list"] }`,
			`path "checked-v1/default/{{identity.entity.aliases.ACCESSOR.name}}/x" { capabilities = ["update"] } path "checked-v1/{{identity.entity.aliases.auth_jwt_0.name}}/*" { capabilities = ["read"] }`},
		{`path "checked-v1/a/b/" { capabilities = ["list"] } path "checked-v1/d" { capabilities = ["list"] }`,
			`path "checked-v1/d" { capabilities = ["read"] } path "checked-v1/e/" { capabilities = ["list"] }`},
	} {
		for i, name := range []string{"policies", "policies-2"} {
			policy := strings.ReplaceAll(policies[i], "ACCESSOR", method.Data["accessor"].(string))
			must.NoError(t, s.Vault.API.Sys().PutPolicyWithContext(ctx, name, policy))
		}
		read, asked := said(), said("-login")
		must.SliceLen(t, 33, read)
		must.Eq(t, asked, read, must.Sprint(policies))
		for _, line := range read {
			seen[strings.HasSuffix(line, "allowed")]++
		}
	}
	must.Greater(t, 20, seen[true])
	must.Greater(t, 20, seen[false])
}
