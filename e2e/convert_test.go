package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

const converts = "../operator/convert/testdata/"

// adapted are jobs of operator/convert/testdata that can run here: what is put in the place of programs and images that
// no registry has at hand, and the lines to compare.
var adapted = map[string]struct {
	puts  []string // old, new, old, new, ...
	shows string   // pattern of a line
	lines int
}{
	"cat": {puts: []string{`"/usr/bin/cat"`, `"/bin/sh"`, `["secrets/vault_token"]`, // which ends no line
		`["-c", "cat secrets/vault_token; echo"]`}, shows: `hvs\.\S+$`, lines: 1},
	"printenv": {puts: []string{`"/usr/bin/printenv"`, `"/bin/sh"` + "\n        args = [\"-c\", \"env\"]"},
		shows: `VAULT_TOKEN=\S+$`, lines: 1},
	"mongo": {puts: []string{`"mongo:7"`, `"` + stack.Image + `"` + `
        network_mode = "host"
        init         = true
        command      = "sh"
        args         = ["-c", "env; sleep 600"]`, `ports = ["db"]`, ""}, shows: `MONGO_INITDB_ROOT_\S+$`, lines: 2},
	"mongo-query": {puts: []string{`"mongo:7"`, `"` + stack.Image + `"`, `"mongosh"`, `"sh"`, `args = [`,
		`init = true
        args = ["-c", "for a in \"$@\"; do echo \"arg $a\"; done; sleep 600", "sh",`}, shows: `arg .*$`, lines: 8},
	"escapes-heredoc":  {shows: `(?:hello|good) .*$`, lines: 2},
	"directives":       {shows: `\w+ = .*$`, lines: 3},
	"dynamic-template": {shows: `(?:green|blue)$`, lines: 2},
	"delimiters": {puts: []string{`"acme/chart:1"`, `"` + stack.Image + `"`, `command = "chart"`, `command = "sh"`,
		`args    = [`, `init = true
        args = ["-c", "echo \"$@\"; cat $NOMAD_SECRETS_DIR/chart.env; sleep 600", "sh",`},
		shows: `(?:--key .*|\w+=.*)$`, lines: 3},
}

// TestConvertedJobsDoWhatTheyDid runs jobs with Nomad's own drivers and blocks, and then what `convert` makes of them,
// and compares what they print.
func TestConvertedJobsDoWhatTheyDid(t *testing.T) {
	t.Parallel()
	names := slices.Sorted(maps.Keys(adapted))
	listed, err := os.ReadFile(converts + "run.txt")
	must.NoError(t, err)
	must.Eq(t, names, strings.Fields(string(listed)), must.Sprint("docs/migration.md says that these are run"))
	s := own(t, stack.Options{Postgres: true, NomadsOwn: true})
	setUpConverted(t, s)
	specs := map[string]string{}
	for _, name := range names {
		specs[name] = adapt(t, name)
	}
	before := printed(t, s, specs)
	for _, name := range names {
		path := filepath.Join(t.TempDir(), name+".nomad.hcl")
		must.NoError(t, os.WriteFile(path, []byte(specs[name]), 0o600))
		out, code := operate(t, s, "", "convert", "-w", path)
		must.Eq(t, "", out)
		must.Zero(t, code)
		made, err := os.ReadFile(path)
		must.NoError(t, err)
		must.StrContains(t, string(made), `driver = "vault-`)
		specs[name] = string(made)
	}
	must.Eq(t, before, printed(t, s, specs))
}

func setUpConverted(t *testing.T, s *stack.Stack) {
	ctx := within(t, time.Minute)
	for path, fields := range map[string]map[string]any{
		"mongo/config": {"root_password": "secret-password"}, "script/config": {"greeting": "good morning"},
		"directives/config": {"color": "green"}, "many/one": {"color": "green"}, "many/two": {"color": "blue"},
		"chart/config": {"key": "chart-key"},
	} {
		must.NoError(t, s.Vault.Put(ctx, "kv/data/default/"+path, map[string]any{"data": fields}))
	}
	must.NoError(t, s.Vault.DatabaseRole(ctx, "mongo", time.Hour, time.Hour))
	must.NoError(t, s.Vault.Role(ctx, "mongo-dynamic-secret",
		"path \"database/creds/mongo\" { capabilities = [\"read\"] }\n"+revokes, nil))
}

var jobHeader = regexp.MustCompile(`(?m)^job "[^"]+" \{\n`)

// adapt returns a job as it can run here: to its end, and not again.
func adapt(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(converts + "jobs/" + name + ".nomad.hcl")
	must.NoError(t, err)
	spec := strings.NewReplacer(adapted[name].puts...).Replace(string(text))
	if !strings.Contains(spec, `= "batch"`) {
		spec = jobHeader.ReplaceAllString(spec, "${0}  type = \"batch\"\n")
	}
	return spec
}

// anew is what Vault and Nomad make anew.
var anew = regexp.MustCompile(`hvs\.\S+|v-jwt-\S+|\b[A-Za-z0-9-]{20}\b|:\d+$`)

// printed runs all jobs beside each other, and returns what they print, without what Vault makes anew for each.
func printed(t *testing.T, s *stack.Stack, specs map[string]string) map[string][]string {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	all, jobs, allocs := map[string][]string{}, map[string]*stack.Job{}, map[string]*stack.Alloc{}
	names := slices.Sorted(maps.Keys(specs))
	read := func(name string) {
		task := taskName.FindStringSubmatch(specs[name])[1]
		lines, err := allocs[name].Log(ctx, task, "stdout", `(?m)^`+adapted[name].shows, adapted[name].lines)
		must.NoError(t, err, must.Sprint(name, allocs[name].Report(ctx)))
		for i, line := range lines {
			lines[i] = anew.ReplaceAllString(line, "…")
		}
		slices.Sort(lines)
		all[name] = lines
	}
	for _, name := range names {
		var err error
		jobs[name], err = s.Nomad.Run(ctx, specs[name], nil)
		must.NoError(t, err)
		allocs[name], err = jobs[name].Alloc(ctx)
		must.NoError(t, err)
		if name == "mongo" { // whose service the next one asks for
			read(name)
		}
	}
	for _, name := range names {
		read(name)
	}
	for _, name := range names {
		must.NoError(t, jobs[name].Stop(ctx))
	}
	return all
}

var taskName = regexp.MustCompile(`task "([^"]+)"`)
