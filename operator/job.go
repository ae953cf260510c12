package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/client/taskenv"
	"github.com/hashicorp/nomad/jobspec2"
	"github.com/zclconf/go-cty/cty"

	"nomad-driver-vault/driver/render"
)

const readNodes = `set NOMAD_TOKEN to a token with node { policy = "read" }`

// readJob reads the job and the clients. An error that is no misuse is what Nomad says of the job.
func (c *checker) readJob(ctx context.Context) (err error) {
	q := (&nomad.QueryOptions{}).WithContext(ctx)
	if c.alloc != "" {
		return c.readAlloc(q)
	}
	if c.job, err = c.parseJob(); err != nil {
		return err
	}
	if namespace := os.Getenv("NOMAD_NAMESPACE"); c.job.Namespace == nil && namespace != "" { // as nomad job run does
		c.job.Namespace = &namespace
	}
	c.job.Canonicalize()
	clients, _, err := c.nomad.Nodes().List(q)
	if err != nil {
		c.warn("job", readNodes, "the clients cannot be looked at: %s", said(err))
		return nil
	}
	c.clients = slices.DeleteFunc(clients, func(n *nomad.NodeListStub) bool { return !admissible(c.job, n) })
	return nil
}

// parseJob reads the file as nomad job run does: with variables of flags, files and the environment, and functions that read files.
func (c *checker) parseJob() (*nomad.Job, error) {
	text, err := os.ReadFile(filepath.Clean(c.file))
	if err != nil {
		return nil, misuse("-job: %w", err)
	}
	parsed, err := jobspec2.ParseWithConfig(&jobspec2.ParseConfig{Path: c.file, Body: text, AllowFS: true, ArgVars: c.vars, VarFiles: c.varFiles,
		Envs: os.Environ(), Strict: true})
	if err != nil {
		return nil, fmt.Errorf("parse -job: %s", strings.ReplaceAll(err.Error(), "<nil>: ", "")) // which is where a variable was set
	}
	sent, err := json.Marshal(parsed) // and what Nomad's servers understand
	if err != nil {
		return nil, fmt.Errorf("encode job: %w", err)
	}
	job := new(nomad.Job)
	if err := json.Unmarshal(sent, job); err != nil {
		return nil, fmt.Errorf("decode job: %w", err)
	}
	return job, nil
}

// readAlloc is readJob for -alloc.
func (c *checker) readAlloc(q *nomad.QueryOptions) error {
	found, _, err := c.nomad.Allocations().PrefixList(c.alloc)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d allocations have an ID that begins with %q", len(found), c.alloc)
	}
	if err != nil {
		return err
	}
	if c.running, _, err = c.nomad.Allocations().Info(found[0].ID, q); err != nil {
		return err
	}
	c.job = c.running.Job
	node, _, err := c.nomad.Nodes().Info(c.running.NodeID, q)
	if err != nil {
		c.warn("job", readNodes, "the client cannot be looked at: %s", said(err))
		return nil
	}
	c.clients = []*nomad.NodeListStub{{Name: node.Name, Drivers: node.Drivers}}
	return nil
}

// admissible reports whether a client may run a job by what every job says: its node pool and datacenters.
func admissible(job *nomad.Job, n *nomad.NodeListStub) bool {
	pool := cmp.Or(*job.NodePool, "default")
	return n.Status == nomad.NodeStatusReady && (pool == "all" || pool == n.NodePool) &&
		(len(job.Datacenters) == 0 || slices.ContainsFunc(job.Datacenters, func(glob string) bool { return like(glob, n.Datacenter) }))
}

// said is what Nomad says of a failed request.
func said(err error) string {
	var answer nomad.UnexpectedResponseError
	if errors.As(err, &answer) {
		return fmt.Sprintf("%s (%d)", answer.Body(), answer.StatusCode())
	}
	return err.Error()
}

// claimsOf are the claims of a task's identity that the job decides
// (https://developer.hashicorp.com/nomad/docs/concepts/workload-identity). A dispatched job has its parent's.
func claimsOf(job *nomad.Job, task *nomad.Task) map[string]string {
	return map[string]string{"nomad_job_id": cmp.Or(*job.ParentID, *job.ID), "nomad_namespace": *job.Namespace, "nomad_task": task.Name}
}

// identity returns the identity block that a vault block logs in with, nil where there is none.
func (c *checker) identity(about string, task *nomad.Task, use render.Use) *nomad.WorkloadIdentity {
	i := slices.IndexFunc(task.Identities, func(i *nomad.WorkloadIdentity) bool {
		return i.Name == use.Identity || use.IdentityFile != "" && i.Filepath == use.IdentityFile
	})
	if i < 0 && task.Vault != nil && use.Role == "" && use.IdentityFile == "" && use.Identity == "vault" {
		c.ok(about, "the task is served with the token that Nomad derives for its own vault block, which is not looked at here")
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
		c.warn(about, "add to the identity block: file = true", "identity %q is in the environment only, where Nomad does not renew it", identity.Name)
	case identity.TTL == 0:
		c.warn(about, `add to the identity block: ttl = "1h"`, "identity %q has no end, and Vault takes such a JWT for a few minutes after it was made only", identity.Name)
	default:
		c.ok(about, "the task has its identity %q", identity.Name)
	}
	return identity
}

var reference = regexp.MustCompile(`\$\{\s*([A-Za-z_][\w.-]*)\s*\}`)

// environment is what a config block may refer to: what the job says, and of what only a client knows the reference itself.
func environment(job *nomad.Job, group *nomad.TaskGroup, task *nomad.Task) (map[string]string, map[string]cty.Value, error) {
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
		return nil, nil, err
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
