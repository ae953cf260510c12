package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
	"nomad-driver-vault/operator"
)

// The jobs of operator/convert/testdata/jobs are run with Nomad's own drivers and blocks, and as convert makes them.
// What became of each is a table in docs/migration.md.

const (
	corpusDir  = "../operator/convert/testdata"
	corpusPage = "../docs/migration.md"
)

var update = flag.Bool("update", false, "write the table of jobs in docs/migration.md anew")

// An edit is what a person makes of what convert has left to decide: old text, new text, and so on. The job is
// converted again then.
type edit []string

const role = `role = "nomad-workloads"`

var edits = map[string]edit{
	"escaping-path":    {`"local/../../shared/ca.pem"`, `"local/ca.pem"`},
	"computed-driver":  {`driver = var.driver`, `driver = "docker"`},
	"data-of-variable": {`"${COLOR}"`, `"$(COLOR)"`},
	"dynamic-map": {`key \"several/config\"`, `with nomadVar \"nomad/jobs/several\" }}{{ .config }}{{ end`,
		"      config {\n", "identity {\n file = true\n }\n      config {\n"},
	"dynamic-of-variable": {`for_each = var.files`, `for_each = ["a", "b"]`},
	"frontend":            {`policies    = ["access-tables"]`, role, "      config {\n", identity + "      config {\n"},
	"node-variables": {`env "node.class"`, `env "NODE_CLASS"`,
		"      config {\n", "env {\n NODE_CLASS = \"${node.class}\"\n }\n      config {\n"},
	"vault": {`policies    = ["access-kv"]`, role, "      config {\n", identity + "      config {\n"},
}

const identity = `
identity {
  name = "vault"
  aud  = ["vault.io"]
  file = true
  ttl  = "1h"
}
`

// TestCorpusDoesWhatItDid compares what the jobs see natively with what they see converted, and what check says before
// with what becomes of them.
func TestCorpusDoesWhatItDid(t *testing.T) {
	t.Parallel()
	c := startCorpus(t)
	natively := c.run(t, c.files(t, "jobs"))
	converted, edited := c.files(t, "converted"), c.edited(t)
	here, after := c.run(t, converted), c.run(t, edited)
	table := "| job | to decide | outcome |\n|---|---|---|\n"
	for _, name := range c.names {
		c.agrees(t, converted[name], here[name])
		findings, err := os.ReadFile(filepath.Join(corpusDir, "converted", name+".txt"))
		must.NoError(t, err)
		outcome := natively[name].outcome(t, here[name])
		if file, ok := edited[name]; ok {
			c.agrees(t, file, after[name])
			outcome += "; after an edit " + natively[name].outcome(t, after[name])
		}
		table += fmt.Sprintf("| [%s](../operator/convert/testdata/jobs/%[1]s.nomad.hcl) | %d | %s |\n", name,
			strings.Count(string(findings), "\n"), strings.ReplaceAll(outcome, "|", `\|`))
	}
	compareTable(t, table)
}

// agrees fails the test unless check finds a problem of the job where its start was refused, in the same words.
func (c *corpus) agrees(t *testing.T, file string, became *fate) {
	t.Helper()
	if !became.ours {
		return
	}
	if v := (verdict{problemsOf(t, c.Stack, file), became.refused}); !v.agrees() {
		t.Errorf("%s: check says %q, and the start %q", file, v.problems, v.refused)
	}
}

// problemsOf returns what check finds wrong with a job.
func problemsOf(t *testing.T, s *stack.Stack, file string, args ...string) (problems []string) {
	t.Helper()
	out, code := operate(t, s, "", append([]string{"check", "-json", "-job=" + file}, args...)...)
	var report struct {
		Findings []struct{ Status, Message string }
	}
	must.NoError(t, json.Unmarshal([]byte(out), &report), must.Sprint(out))
	for _, found := range report.Findings {
		if found.Status == "problem" {
			problems = append(problems, found.Message)
		}
	}
	must.Eq(t, len(problems) > 0, code != 0, must.Sprint(out))
	return problems
}

// compareTable compares the table with the one of the page, or writes it there.
func compareTable(t *testing.T, table string) {
	t.Helper()
	page, err := os.ReadFile(corpusPage)
	must.NoError(t, err)
	header, _, _ := strings.Cut(table, "\n")
	before, after, found := strings.Cut(string(page), header)
	must.True(t, found)
	old, after, found := strings.Cut(after, "\n\n")
	must.True(t, found)
	if *update {
		must.NoError(t, os.WriteFile(corpusPage, []byte(before+table+"\n"+after), 0o600))
		return
	}
	must.Eq(t, table, header+old+"\n", must.Sprint("go test -run TestCorpusDoesWhatItDid ./e2e -update writes it anew"))
}

// A corpus is the jobs and the stack that they run on.
type corpus struct {
	*stack.Stack
	names  []string
	dir    string // of jobs that were edited
	served string // address of what artifacts fetch
}

func startCorpus(t *testing.T) *corpus {
	t.Helper()
	c := &corpus{Stack: own(t, stack.Options{Postgres: true, NomadsOwn: true, Clusters: []string{"east"},
		Agent: "client {\n node_class = \"web\"\n meta {\n rack = \"r1\"\n }\n }\n" +
			"consul {\n address = \"" + serveConsul(t) + "\"\n }\n"}), dir: t.TempDir()}
	files, err := filepath.Glob(corpusDir + "/jobs/*.nomad.hcl")
	must.NoError(t, err)
	must.GreaterEq(t, 30, len(files))
	for _, file := range files {
		c.names = append(c.names, strings.TrimSuffix(filepath.Base(file), ".nomad.hcl"))
	}
	c.served = serveFiles(t)
	c.setUp(t)
	return c
}

// setUp makes what the jobs ask for. Each role of theirs may read all of it, and takes the audience of each.
func (c *corpus) setUp(t *testing.T) {
	ctx := within(t, time.Minute)
	must.NoError(t, c.Vault.API.Sys().UnmountWithContext(ctx, "secret"))
	for _, mount := range []string{"secret", "rabbitmq"} {
		must.NoError(t, c.Vault.API.Sys().MountWithContext(ctx, mount, &vault.MountInput{Type: "kv"}))
	}
	must.NoError(t, c.Vault.Put(ctx, "secret/foo", map[string]any{"bar": "baz"}))
	must.NoError(t, c.Vault.Put(ctx, "rabbitmq/creds/several", map[string]any{"username": "rabbit"}))
	must.NoError(t, c.Vault.Put(ctx, "pki/roles/haproxy", map[string]any{"allow_any_name": true}))
	all := map[string]any{"a": "letter a", "b": "letter b", "ca": "a CA", "color": "green", "comment": "a comment",
		"greeting": "good morning", "key": "a key", "password": "a password", "root_password": "secret-password",
		"token": "a token", "x": "letter x"}
	for _, path := range []string{"shared/tls", "script/config", "directives/config", "many/one", "many/two",
		"chart/config", "mongo/config", "from-file/config", "settings/config", "gateway/config", "several/x", "nginx/config",
		"computed/a", "computed/b", "layout/config", "agent/config", "flags/config", "flags/watcher", "legacy/config",
		"both/db", "both/config", "shop/web"} {
		must.NoError(t, c.Vault.Put(ctx, "kv/data/default/"+path, map[string]any{"data": all}))
	}
	must.NoError(t, c.Clusters["east"].Put(ctx, "kv/data/default/east/config", map[string]any{"data": all}))
	for _, path := range []string{"red", "blue"} {
		must.NoError(t, c.Vault.Put(ctx, "kv/data/tenants/"+path, map[string]any{"data": map[string]any{"key": path}}))
	}
	for _, role := range []string{"report", "accessdb", "mongo", "worker", "several", "dsn", "from-file"} {
		must.NoError(t, c.Vault.DatabaseRole(ctx, role, time.Hour, time.Hour))
	}
	for job, items := range map[string]map[string]string{"flags": {"flags": "a flag"}, "several": {"config": "several"}} {
		_, _, err := c.Nomad.API.Variables().Create(&nomad.Variable{Path: "nomad/jobs/" + job, Items: items}, nil)
		must.NoError(t, err)
	}
	may := `path "pki/issue/*" { capabilities = ["update"] }` + revokes
	for _, path := range []string{"secret", "kv", "rabbitmq", "database"} {
		may += fmt.Sprintf("\npath \"%s/*\" { capabilities = [\"read\"] }", path)
	}
	more := map[string]any{"bound_audiences": []string{"vault.io", "vault.example.com"}}
	for _, role := range c.roles(t) {
		must.NoError(t, c.Vault.Role(ctx, role, may, more))
	}
}

// roles are those that the jobs name, and the one of the agents.
func (c *corpus) roles(t *testing.T) []string {
	found := map[string]bool{"nomad-workloads": true}
	for _, file := range c.files(t, "jobs") {
		for _, group := range readJob(t, file).TaskGroups {
			for _, task := range group.Tasks {
				if task.Vault != nil && task.Vault.Role != "" {
					found[task.Vault.Role] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// files are those of the jobs in a folder of testdata, by the jobs' names.
func (c *corpus) files(t *testing.T, folder string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range c.names {
		all[name] = filepath.Join(corpusDir, folder, name+".nomad.hcl")
	}
	return all
}

// readJob reads a job as nomad job run does.
func readJob(t *testing.T, file string) *nomad.Job {
	t.Helper()
	job, err := (&operator.Jobspec{File: file}).Parse()
	must.NoError(t, err, must.Sprint(file))
	job.Canonicalize()
	return job
}

// edited are the files of the jobs with edits, converted again.
func (c *corpus) edited(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for name, e := range edits {
		text, err := os.ReadFile(filepath.Join(corpusDir, "converted", name+".nomad.hcl"))
		must.NoError(t, err)
		for i := 0; i < len(e); i += 2 {
			must.StrContains(t, string(text), e[i])
		}
		file := filepath.Join(c.dir, name+".nomad.hcl")
		must.NoError(t, os.WriteFile(file, []byte(strings.NewReplacer(e...).Replace(string(text))), 0o600))
		out, code := operate(t, c.Stack, "", "convert", "-w", file)
		must.Zero(t, code, must.Sprint(out))
		all[name] = file
	}
	return all
}
