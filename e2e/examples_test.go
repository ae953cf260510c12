package e2e

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// examples are the jobs of example/ as they stand: what has to be there before, what the task prints then, what
// changes, and what it prints after that.
var examples = map[string]struct {
	task          string
	vars          func(*testing.T, *stack.Stack) map[string]string
	put           func(ctx context.Context, s *stack.Stack, greeting string) error
	before, after string
	own           bool // it is run by a test with a stack of its own, since the common one cannot
}{
	"exec.nomad.hcl": {task: "hello", put: putKV("hello-exec"), before: "(?m)^good morning$", after: "(?m)^good night$"},
	"docker.nomad.hcl": {task: "hello", put: putKV("hello-docker"), before: "(?m)^good morning$",
		after: "(?m)^good night$"},
	"clusters.nomad.hcl": {task: "hello", put: putKV("hello-clusters"),
		before: `(?m)^here: good morning\nthere: good morning$`, after: `(?m)^here: good night\nthere: good night$`},
	"pki.nomad.hcl": {task: "hello", before: `(?m)^-----BEGIN CERTIFICATE-----$`},
	"secret.nomad.hcl": {task: "hello", put: putKV("hello-secret"), before: `(?m)^\{"greeting":"good morning"\}$`,
		after: `(?m)^\{"greeting":"good night"\}$`},
	"init.nomad.hcl":  {task: "main", put: putKV("hello-init"), before: "(?m)^good morning$", after: "(?m)^good night$"},
	"setup.nomad.hcl": {task: "hello", before: "(?m)^good morning$", own: true}, // which setup.sh wrote
	"nomad-token.nomad.hcl": {task: "hello", put: putKV("hello-nomad-token"), before: "(?m)^good morning$",
		after: "(?m)^good night$",
		own:   true},
	"token-role.nomad.hcl": {task: "hello", put: putRoleKV, before: "(?m)^good morning$", after: "(?m)^good night$",
		own:  true,
		vars: func(*testing.T, *stack.Stack) map[string]string { return map[string]string{"cluster": "roles"} }},
	"in-place.nomad.hcl": {task: "hello", put: putKV("hello-in-place"), before: "(?m)^good morning$",
		after: "(?m)^good night$",
		own:   true},
	"nomad-vars.nomad.hcl": {task: "hello", put: putVariable,
		before: `(?m)^good morning from 127\.0\.0\.1:\d+$`, after: `(?m)^good night from 127\.0\.0\.1:\d+$`},
	"database.nomad.hcl": {task: "query", before: "I am v-jwt-", vars: portOfPostgres},
	"door-api.nomad.hcl": {task: "hello", put: putKey, vars: apiOf, before: `(?m)^you are \*{24}$`,
		after: `(?m)^you are \*{26}$`},
	"door-vault.nomad.hcl": {task: "hello", put: putKV("hello-door-vault"), before: `"greeting":"good morning"`,
		after: `"greeting":"good night"`},
	"door-only.nomad.hcl": {task: "hello", put: putKV("hello-door-only"), before: `"greeting":"good morning"`,
		after: `"greeting":"good night"`},
	"door-database.nomad.hcl": {task: "query", before: "I am v-jwt-", vars: portOfPostgres},
	"door-operator.nomad.hcl": {task: "hello", before: `(?m)^you are \*+$`, own: true},
	"registry.nomad.hcl": {task: "hello", before: `(?m)^hello from 127\.0\.0\.1:\d+/hello:1$`,
		vars: func(t *testing.T, s *stack.Stack) map[string]string {
			must.NoError(t, s.Vault.Put(t.Context(), "kv/data/default/hello-registry/registry",
				map[string]any{"data": map[string]any{"username": "puller", "password": "example"}}))
			return map[string]string{"image": registry(t, s, "puller", "example").Addr + "/hello:1"}
		}},
}

func putKV(job string) func(context.Context, *stack.Stack, string) error {
	return func(ctx context.Context, s *stack.Stack, greeting string) error {
		return s.Vault.Put(ctx, "kv/data/default/"+job+"/config",
			map[string]any{"data": map[string]any{"greeting": greeting}})
	}
}

// putKey puts a key that is as long as the greeting makes it: of a door's task, only the length can be seen.
func putKey(ctx context.Context, s *stack.Stack, greeting string) error {
	key := map[string]string{"good morning": strings.Repeat("1-", 12), "good night": strings.Repeat("2-", 13)}[greeting]
	return s.Vault.Put(ctx, "kv/data/default/hello-door-api/key", map[string]any{"data": map[string]any{"key": key}})
}

func apiOf(t *testing.T, _ *stack.Stack) map[string]string {
	a := newAPI(t, "")
	return map[string]string{"url": a.URL, "ca_pem": string(a.ca())}
}

func portOfPostgres(_ *testing.T, s *stack.Stack) map[string]string {
	return map[string]string{"postgres_port": strconv.Itoa(s.Postgres.Port)}
}

func putRoleKV(ctx context.Context, s *stack.Stack, greeting string) error {
	const read = `path "kv/data/hello-token-role/*" { capabilities = ["read"] }`
	if err := s.Vault.API.Sys().PutPolicyWithContext(ctx, "hello-token-role", read); err != nil {
		return err
	}
	return s.Vault.Put(ctx, "kv/data/hello-token-role/config",
		map[string]any{"data": map[string]any{"greeting": greeting}})
}

func putVariable(ctx context.Context, s *stack.Stack, greeting string) error {
	_, _, err := s.Nomad.API.Variables().Update(&nomad.Variable{
		Path: "nomad/jobs/hello-vars", Items: nomad.VariableItems{"greeting": greeting},
	}, (&nomad.WriteOptions{}).WithContext(ctx))
	return err
}

func TestExamplesRunAsTheyStand(t *testing.T) {
	files, err := filepath.Glob("../example/*.nomad.hcl")
	must.NoError(t, err)
	must.SliceLen(t, len(examples), files, must.Sprint("a job of example/ without a test"))
	tests := sources(t)
	for _, name := range slices.Sorted(maps.Keys(examples)) {
		if examples[name].own {
			must.RegexMatch(t, regexp.MustCompile(`runExample\(t, s[.\w]*, "`+regexp.QuoteMeta(name)+`"\)`), tests,
				must.Sprint("no test runs it"))
			continue
		}
		t.Run(name, func(t *testing.T) { runExample(t, common(t), name) })
	}
}

// sources is the text of the tests here.
func sources(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	must.NoError(t, err)
	var all strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		must.NoError(t, err)
		all.Write(text)
	}
	return all.String()
}

func TestExampleOfAnAgentsConfigurationServesThePlugins(t *testing.T) {
	s := own(t, stack.Options{AsInExamples: true})
	for _, name := range []string{"exec.nomad.hcl", "docker.nomad.hcl", "door-api.nomad.hcl"} {
		t.Run(name, func(t *testing.T) { runExample(t, s, name) })
	}
}

func runExample(t *testing.T, s *stack.Stack, name string) {
	e := examples[name]
	ctx := within(t, 2*time.Minute)
	if e.put != nil {
		must.NoError(t, e.put(ctx, s, "good morning"))
	}
	spec, err := os.ReadFile(filepath.Join("../example", name))
	must.NoError(t, err)
	var vars map[string]string
	if e.vars != nil {
		vars = e.vars(t, s)
	}
	_, alloc := registerWith(t, s, string(spec), vars)
	_, err = alloc.Log(ctx, e.task, "stdout", e.before, 1)
	must.NoError(t, err)
	if e.put == nil {
		return
	}
	must.NoError(t, e.put(ctx, s, "good night"))
	_, err = alloc.Log(ctx, e.task, "stdout", e.after, 1)
	must.NoError(t, err)
}
