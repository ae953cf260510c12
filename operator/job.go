package operator

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/jobspec2"
)

// A Jobspec is a file with a job, and what sets its variables.
type Jobspec struct {
	File     string
	Vars     []string // name=value
	VarFiles []string
}

// AddFlags adds the flags for the variables, -var and -var-file.
func (j *Jobspec) AddFlags(flags *flag.FlagSet) {
	flags.Func("var",
		"variable of the jobspec, name=value; may be repeated. NOMAD_VAR_<name> in the environment is one, too",
		func(text string) error {
			if !strings.Contains(text, "=") {
				return errors.New("it is not name=value")
			}
			j.Vars = append(j.Vars, text)
			return nil
		})
	flags.Func("var-file", "`file` with variables of the jobspec; may be repeated", Repeated(&j.VarFiles))
}

// Parse reads the job as nomad job run does: with the variables of flags, files and the environment, and with functions
// that read files. A UsageError means that there is no such file.
func (j *Jobspec) Parse() (*nomad.Job, error) {
	text, err := os.ReadFile(filepath.Clean(j.File))
	if err != nil {
		return nil, Usagef("-job: %w", err)
	}
	parsed, err := jobspec2.ParseWithConfig(&jobspec2.ParseConfig{Path: j.File, Body: text, AllowFS: true,
		ArgVars: j.Vars, VarFiles: j.VarFiles, Envs: os.Environ(), Strict: true})
	if err != nil { // "<nil>: " stands where the position of a variable would
		return nil, fmt.Errorf("parse -job: %s", strings.ReplaceAll(err.Error(), "<nil>: ", ""))
	}
	sent, err := json.Marshal(parsed) // what is left is what Nomad's servers understand
	if err != nil {
		return nil, fmt.Errorf("encode job: %w", err)
	}
	job := new(nomad.Job)
	if err := json.Unmarshal(sent, job); err != nil {
		return nil, fmt.Errorf("decode job: %w", err)
	}
	return job, nil
}
