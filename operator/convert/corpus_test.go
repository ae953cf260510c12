package convert

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/client/taskenv"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"github.com/zclconf/go-cty/cty"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/operator"
	"nomad-driver-vault/plugin"
)

var update = flag.Bool("update", false, "write testdata/converted anew")

// TestJobsAreConverted converts each job of testdata/jobs into the one of testdata/converted, which stays as it is when
// it is converted again. Findings are in a file beside it.
func TestJobsAreConverted(t *testing.T) {
	for _, name := range corpus(t) {
		t.Run(name, func(t *testing.T) {
			made, findings, err := rewrite(read(t, "testdata/jobs/"+name+".nomad.hcl"))
			must.NoError(t, err)
			var says strings.Builder
			for _, f := range findings {
				fmt.Fprintf(&says, "%d: %s\n", f.line, f.says)
			}
			golden(t, name+".nomad.hcl", string(made))
			golden(t, name+".txt", says.String())
			again, findings, err := rewrite(read(t, "testdata/converted/"+name+".nomad.hcl"))
			must.NoError(t, err)
			must.Eq(t, string(made), string(again))
			for _, f := range findings { // only of what was not converted
				must.StrContains(t, f.says, "convert again")
			}
		})
	}
}

// TestConvertedJobsAreAccepted reads each converted job as nomad job run does, and its config blocks as a start does.
// One that is refused has a finding. e2e runs them.
func TestConvertedJobsAreAccepted(t *testing.T) {
	for _, name := range corpus(t) {
		if err := review(t, "testdata/converted/"+name+".nomad.hcl"); err != nil {
			must.FileContains(t, "testdata/converted/"+name+".txt", ": ", must.Sprint("refused without a finding: ", err))
		}
	}
}

func corpus(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/jobs/*.nomad.hcl")
	must.NoError(t, err)
	must.GreaterEq(t, 30, len(files))
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".nomad.hcl"))
	}
	return names
}

func read(t *testing.T, name string) jobspec {
	t.Helper()
	text, err := os.ReadFile(name)
	must.NoError(t, err)
	return jobspec{name: name, audience: "vault.io", text: text}
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata/converted", name)
	if *update {
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	must.Eq(t, string(read(t, path).text), text)
}

// review returns the first error with which a start of a task of ours would fail.
func review(t *testing.T, file string) error {
	t.Helper()
	spec := operator.Jobspec{File: file}
	job, err := spec.Parse()
	must.NoError(t, err)
	job.Canonicalize()
	for _, group := range job.TaskGroups {
		for _, task := range group.Tasks {
			if wraps, ours := strings.CutPrefix(task.Driver, "vault-"); ours {
				if err := reviewTask(t, wraps, task); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func reviewTask(t *testing.T, wraps string, task *nomad.Task) error {
	t.Helper()
	_, conf, err := plugin.ReadTask(t.Context(), wraps, task.Config, references(t, task.Config))
	if err != nil {
		return err
	}
	op := config.Operator{Clusters: []vault.Cluster{{Name: "default"}, {Name: "east"}}, PollInterval: time.Minute,
		MinPollInterval: time.Second}
	uses, err := render.Review(op, &drivers.TaskConfig{Name: task.Name, Namespace: "default",
		Env: map[string]string{}}, conf)
	for _, use := range uses.Vaults {
		named := func(i *nomad.WorkloadIdentity) bool { return i.Name == use.Vault.Identity }
		if !slices.ContainsFunc(task.Identities, named) && task.Vault == nil {
			err = errors.Join(err, fmt.Errorf("task %q has no identity %q", task.Name, use.Vault.Identity))
		}
	}
	return err
}

var reference = regexp.MustCompile(`\$\{\s*([A-Za-z_][\w.-]*)\s*\}`)

// references are the variables of the client that a config block has, and what they are: themselves.
func references(t *testing.T, block map[string]any) map[string]cty.Value {
	t.Helper()
	text, err := json.Marshal(block)
	must.NoError(t, err)
	env, node := map[string]string{"NOMAD_JOB_ID": "job"}, map[string]string{"node.unique.id": "id"}
	for _, m := range reference.FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(m[1], ".") {
			node[m[1]] = m[1]
		} else if strings.HasPrefix(m[1], "NOMAD_") {
			env[m[1]] = "/" + strings.ToLower(m[1])
		}
	}
	values, _, err := taskenv.NewTaskEnv(env, env, nil, node, nil, "", "").AllValues()
	must.NoError(t, err)
	return values
}
