package operator

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// TestJobIsReadAsNomadRunsIt has variables of flags, files and the environment, and a function that reads a file.
func TestJobIsReadAsNomadRunsIt(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	write("db.tpl", `{{ with secret "database/creds/api" }}{{ end }}`)
	job := write("api.nomad.hcl", `
variable "role" {}
variable "datacenters" { type = list(string) }
variable "region" { default = "global" }
job "api" {
  region      = var.region
  datacenters = var.datacenters
  group "api" {
    task "api" {
      driver = "vault-exec"
      config {
        command = "/bin/api"
        vault { role = var.role }
        template {
          data        = file("./db.tpl")
          destination = "secrets/db"
        }
      }
    }
  }
}
`)
	vars := write("prod.hcl", `datacenters = ["a", "b"]`)
	t.Setenv("NOMAD_VAR_region", "north")
	t.Chdir(dir)
	spec := Jobspec{File: job, Vars: []string{"role=$${api}"}, VarFiles: []string{vars}}
	parsed, err := spec.Parse()
	must.NoError(t, err)
	must.Eq(t, "north", *parsed.Region)
	must.Eq(t, []string{"a", "b"}, parsed.Datacenters)
	config := parsed.TaskGroups[0].Tasks[0].Config
	must.Eq(t, `[map[role:$${api}]]`, fmt.Sprint(config["vault"]))
	must.StrContains(t, fmt.Sprint(config["template"]), "database/creds/api")

	spec.Vars = nil
	_, err = spec.Parse()
	must.ErrorContains(t, err, `parse -job: Unset variable "role"`)
	spec.Vars, spec.VarFiles = []string{"role=api", "no=such"}, append(spec.VarFiles, "none.hcl")
	_, err = spec.Parse()
	must.ErrorContains(t, err, "none.hcl")
}
