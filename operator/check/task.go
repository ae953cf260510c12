package check

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/client/taskenv"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/zclconf/go-cty/cty"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/plugin"
)

// checkTask looks at one task that has a driver of this plugin.
func (c *checker) checkTask(ctx context.Context, d *taskDriver, group *nomad.TaskGroup, task *nomad.Task) {
	about := fmt.Sprintf("task %q", task.Name)
	c.checkDriver(ctx, about, d)
	uses, err := c.review(ctx, d, group, task)
	if err != nil {
		c.driverError(about, err)
		return
	}
	c.ok(about, "its vault and template blocks are right")
	c.checkDispatch(about, task)
	for _, use := range uses {
		about := fmt.Sprintf("task %q, vault %q", task.Name, use.Name)
		if differ := d.differ[use.Cluster]; differ != "" {
			c.warn(about, "run check with -config on one client of each kind",
				"cluster %q is not the same on all clients, and not looked at: %s", use.Cluster, differ)
			continue
		}
		if use.Server.Issues() {
			c.ok(about, "it gets its token by token role %q; "+
				"the clients' attribute driver.%s.cluster.%s says whether that works",
				use.Server.Role, task.Driver, use.Cluster)
			continue
		}
		if identity := c.checkIdentity(about, task, use); identity != nil {
			c.checkVaultBlock(ctx, newLogin(about, d, use, identityOf(c.job, group, task, identity)))
		}
	}
}

// review reads the task's config block as a start does, and returns what it would ask of which Vault.
func (c *checker) review(ctx context.Context, d *taskDriver, group *nomad.TaskGroup, task *nomad.Task) (
	[]render.Use, error) {
	env, vars, err := taskEnv(c.job, group, task)
	if err != nil {
		return nil, err
	}
	conf, err := plugin.ReadTask(ctx, d.wraps, task.Config, vars)
	if err != nil {
		return nil, err
	}
	of := &drivers.TaskConfig{Name: task.Name, Namespace: *c.job.Namespace, User: task.User, Env: env}
	return render.Review(d.conf, of, conf)
}

var reference = regexp.MustCompile(`\$\{\s*([A-Za-z_][\w.-]*)\s*\}`)

// taskEnv is what a config block may refer to, as far as the job says it. What only a client knows stands for itself:
// the value of node.class is "${node.class}".
func taskEnv(job *nomad.Job, group *nomad.TaskGroup, task *nomad.Task) (
	map[string]string, map[string]cty.Value, error) {
	env := map[string]string{"NOMAD_JOB_ID": *job.ID, "NOMAD_NAMESPACE": *job.Namespace, "NOMAD_JOB_NAME": *job.Name,
		"NOMAD_GROUP_NAME": *group.Name, "NOMAD_TASK_NAME": task.Name,
		"NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets", "NOMAD_ALLOC_DIR": "/alloc"}
	for _, meta := range []map[string]string{job.Meta, group.Meta, task.Meta} {
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
	for _, found := range reference.FindAllStringSubmatch(string(text), -1) {
		if name := found[1]; strings.Contains(name, ".") {
			node[name] = "${" + name + "}"
		} else if _, known := env[name]; !known {
			env[name] = "${" + name + "}"
		}
	}
	vars, _, err := taskenv.NewTaskEnv(env, env, nil, node, nil, "", "").AllValues()
	return env, vars, err
}

var metaReference = regexp.MustCompile(`\$\{[^}]*\b(NOMAD_META_\w+)`)

// checkDispatch warns of what whoever dispatches the job could write into a template.
func (c *checker) checkDispatch(about string, task *nomad.Task) {
	var conf struct {
		Template []struct{ Data, Source string }
	}
	text, err := json.Marshal(task.Config)
	if err != nil || c.job.ParameterizedJob == nil || json.Unmarshal(text, &conf) != nil {
		return
	}
	for _, t := range conf.Template {
		if name := metaReference.FindStringSubmatch(t.Data); name != nil {
			c.warn(about, fmt.Sprintf("write {{ env %q }}", name[1]), "template: data has ${%s}, which whoever dispatches the "+
				"job chooses: a value that would become template code is refused", name[1])
		}
		payload := task.DispatchPayload
		if payload != nil && payload.File != "" && path.Base(t.Source) == path.Base(payload.File) {
			c.warn(about, fmt.Sprintf("write the template into data, with {{ file %q }}", "local/"+payload.File),
				"template: source %q is the payload of a dispatch: whoever dispatches the job writes the template", t.Source)
		}
	}
}

// checkIdentity returns the identity block that a vault block logs in with, nil if there is none to look at.
func (c *checker) checkIdentity(about string, task *nomad.Task, use render.Use) *nomad.WorkloadIdentity {
	i := slices.IndexFunc(task.Identities, func(i *nomad.WorkloadIdentity) bool {
		return i.Name == use.Identity || use.IdentityFile != "" && i.Filepath == use.IdentityFile
	})
	if i < 0 && task.Vault != nil && use.Role == "" && use.IdentityFile == "" && use.Identity == "vault" {
		c.ok(about, "the task is served with the token that Nomad derives for its own vault block, "+
			"which is not looked at here")
		return nil
	}
	if i < 0 {
		c.problem(about, "add to the task: "+use.IdentityBlock, "the task has no identity %q", use.Identity)
		return nil
	}
	identity := task.Identities[i]
	switch {
	case !identity.File && !identity.Env:
		c.problem(about, "add to the identity block: file = true", "the task is not given its identity %q", identity.Name)
	case !identity.File:
		c.warn(about, "add to the identity block: file = true",
			"identity %q is in the environment only, where Nomad does not renew it", identity.Name)
	case identity.TTL == 0:
		c.warn(about, `add to the identity block: ttl = "1h"`, "identity %q has no end, "+
			"and Vault takes such a JWT for a few minutes after it was made only", identity.Name)
	default:
		c.ok(about, "the task has its identity %q", identity.Name)
	}
	return identity
}

// identityOf returns the claims that the task's identity will have, as far as the job decides them
// (https://developer.hashicorp.com/nomad/docs/concepts/workload-identity). A dispatched job has its parent's.
func identityOf(job *nomad.Job, group *nomad.TaskGroup, task *nomad.Task, block *nomad.WorkloadIdentity) identity {
	id := cmp.Or(*job.ParentID, *job.ID)
	return identity{
		task:     task.Name,
		claims:   map[string]string{"nomad_job_id": id, "nomad_namespace": *job.Namespace, "nomad_task": task.Name},
		audience: block.Audience,
		subject:  strings.Join([]string{*job.Namespace, id, *group.Name, task.Name, block.Name}, ":"),
	}
}
