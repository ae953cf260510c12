package check

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/client/taskenv"
	"github.com/zclconf/go-cty/cty"
)

var (
	interpolated = regexp.MustCompile(`\$\{[^}]*\}`)
	identifier   = regexp.MustCompile(`[A-Za-z_][\w-]*(\.[\w-]+)*`)
)

// taskEnv is what a config block may refer to, as far as the job says it. What only a client knows stands for itself:
// the value of node.class is "${node.class}". A name that no client knows is left out: the block is refused for it.
func (c *checker) taskEnv(d *taskDriver, group *nomad.TaskGroup, task *nomad.Task) (
	map[string]string, map[string]cty.Value, error) {
	env := map[string]string{"NOMAD_JOB_ID": *c.job.ID, "NOMAD_NAMESPACE": *c.job.Namespace, "NOMAD_JOB_NAME": *c.job.Name,
		"NOMAD_GROUP_NAME": *group.Name, "NOMAD_TASK_NAME": task.Name,
		"NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets", "NOMAD_ALLOC_DIR": "/alloc"}
	for _, meta := range []map[string]string{c.job.Meta, group.Meta, task.Meta} {
		for key, value := range meta {
			env["NOMAD_META_"+key], env["NOMAD_META_"+strings.ToUpper(key)] = value, value
		}
	}
	maps.Copy(env, task.Env)
	text, err := json.Marshal(task.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("encode config: %w", err)
	}
	node := map[string]string{"node.unique.id": "${node.unique.id}"} // AllValues wants one
	for _, expression := range interpolated.FindAllString(string(text), -1) {
		for _, name := range identifier.FindAllString(expression, -1) {
			root, _, dotted := strings.Cut(name, ".")
			_, known := env[name]
			switch {
			case dotted && slices.Contains([]string{"node", "attr", "meta", "device", "secret"}, root):
				node[name] = "${" + name + "}"
			case !dotted && !known && c.mayKnow(name, d, task):
				env[name] = "${" + name + "}"
			}
		}
	}
	vars, _, err := taskenv.NewTaskEnv(env, env, nil, node, nil, "", "").AllValues()
	return env, vars, err
}

// nomadVariable matches those that Nomad sets for every task, or for some (client/taskenv/env.go).
var nomadVariable = regexp.MustCompile(`^NOMAD_((MEMORY_LIMIT|MEMORY_MAX_LIMIT|CPU_LIMIT|CPU_CORES|ALLOC_ID|` +
	`SHORT_ALLOC_ID|ALLOC_NAME|ALLOC_INDEX|JOB_PARENT_ID|DC|PARENT_CGROUP|REGION|TOKEN|UNIX_ADDR)$|` +
	`(TOKEN|ADDR|IP|PORT|HOST_ADDR|HOST_IP|HOST_PORT|ALLOC|UPSTREAM)_)`)

// mayKnow reports whether a client may have a variable that the job does not set.
func (c *checker) mayKnow(name string, d *taskDriver, task *nomad.Task) bool {
	if key, meta := strings.CutPrefix(name, "NOMAD_META_"); meta {
		p := c.job.ParameterizedJob
		sameKey := func(of string) bool { return strings.EqualFold(of, key) }
		return p != nil && slices.ContainsFunc(slices.Concat(p.MetaRequired, p.MetaOptional), sameKey)
	}
	if strings.HasPrefix(name, "NOMAD_") {
		return nomadVariable.MatchString(name)
	}
	// Nomad hides the host's environment from drivers that bring a root of their own (client's task_dir_hook.go).
	ownRoot := d.wraps == "docker" || d.wraps == "exec" && len(c.chroots(d)) == 0
	devices := task.Resources != nil && len(task.Resources.Devices) > 0
	return !ownRoot || devices || task.Vault != nil || len(task.Templates) > 0
}
