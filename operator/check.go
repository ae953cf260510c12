package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin"
)

const checkAbout = `Says whether a job would get its secrets: whether its blocks are right, clients have the driver, Vault can be reached, has
Nomad's keys and the role, the role admits the job, and its policies allow what the templates ask for. Nothing is changed,
and no secret is read. Each finding is one line: ok, warning or problem, with what to do about it. The exit code is 1 when
there are problems.

Nomad is the one of NOMAD_ADDR, NOMAD_TOKEN and the nomad command's other variables, Vault that of VAULT_ADDR, VAULT_TOKEN
and the vault command's. The Vault token has to read auth methods, roles and policies; what it may not is a warning.`

var errFound = errors.New("there are problems")

// checker collects what is found.
type checker struct {
	file, alloc   string
	vars, configs []string
	cluster, path string
	login         bool
	named         func([]string) (string, string, error)

	nomad    *nomad.Client
	vault    *api.Client   // of VAULT_ADDR, with the operator's token
	direct   *vault.Client // the same Vault, as the driver would ask it
	sched    *vault.Scheduler
	agent    agent
	plugins  map[string]*published // by the name that jobs use
	running  *nomad.Allocation     // of -alloc
	reached  map[string]bool       // clusters that were looked at
	findings []finding
}

type finding struct {
	Status  string `json:"status"` // ok, warning or problem
	About   string `json:"about"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"` // empty where there is nothing to do, or where the message says it
}

func (c *checker) add(status, about, fix, format string, args ...any) {
	line := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	c.findings = append(c.findings, finding{status, about, line(fmt.Sprintf(format, args...)), line(fix)})
}
func (c *checker) ok(about, format string, args ...any) { c.add("ok", about, "", format, args...) }
func (c *checker) warn(about, fix, format string, args ...any) {
	c.add("warning", about, fix, format, args...)
}
func (c *checker) problem(about, fix, format string, args ...any) {
	c.add("problem", about, fix, format, args...)
}

// fault is a problem that the driver would have, too, in its words.
func (c *checker) fault(about string, err error) {
	var e *vault.Error
	if !errors.As(err, &e) {
		c.problem(about, "", "%v", err)
		return
	}
	bare := *e
	bare.Hint = ""
	c.problem(about, e.Hint, "%v", &bare)
}

// repeated collects a flag that may be repeated.
type repeated []string

func (r *repeated) String() string     { return strings.Join(*r, ",") }
func (r *repeated) Set(v string) error { *r = append(*r, v); return nil }

func runCheck(ctx context.Context, args []string, named func([]string) (string, string, error), t Terminal) error {
	c := &checker{named: named, plugins: map[string]*published{}, reached: map[string]bool{}, findings: []finding{}}
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.StringVar(&c.file, "job", "", "jobspec (HCL) of a job, which need not be running")
	flags.StringVar(&c.alloc, "alloc", "", "ID of an allocation, or its beginning, in place of -job")
	flags.Var((*repeated)(&c.vars), "var", "variable of the jobspec, name=value; may be repeated")
	flags.Var((*repeated)(&c.configs), "config", "agent configuration of a client, a file or a folder; may be repeated. Run check on that client then")
	flags.StringVar(&c.cluster, "cluster", "default", "which cluster of the plugin's configuration VAULT_ADDR leads to")
	flags.StringVar(&c.path, "path", "jwt-nomad", "without -config: where the JWT auth method is mounted")
	flags.BoolVar(&c.login, "login", false, "with -alloc: log in with the task's identity, read by alloc exec, and ask Vault what it may do")
	inJSON := flags.Bool("json", false, "print JSON")
	if err := parse(flags, checkAbout, args, t); err != nil {
		return err
	}
	switch {
	case (c.file == "") == (c.alloc == ""):
		return misuse("name a job: -job FILE or -alloc ID")
	case c.login && c.alloc == "":
		return misuse("-login needs -alloc")
	}
	for i, v := range c.vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return misuse("-var %q is not name=value", v)
		}
		c.vars[i] = fmt.Sprintf("%s = %q", name, value)
	}
	if err := c.check(ctx); err != nil {
		return err
	}
	if err := c.print(t.Out, *inJSON); err != nil {
		return err
	}
	if slices.ContainsFunc(c.findings, func(f finding) bool { return f.Status == "problem" }) {
		return errFound
	}
	return nil
}

func (c *checker) print(w io.Writer, inJSON bool) error {
	if inJSON {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"findings": c.findings})
	}
	for _, f := range c.findings {
		line := fmt.Sprintf("%-7s  %s: %s", f.Status, f.About, f.Message)
		if f.Fix != "" {
			line += "; " + f.Fix
		}
		fmt.Fprintln(w, line)
	}
	return nil
}

// check looks at everything. An error keeps it from looking at all.
func (c *checker) check(ctx context.Context) (err error) {
	c.sched = vault.NewScheduler(1)
	defer c.sched.Close()
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.readPlugins(ctx); err != nil {
		return usage{err}
	}
	job, clients, err := c.readJob(ctx)
	var wrong usage
	switch {
	case errors.As(err, &wrong):
		return err
	case err != nil:
		c.problem("job", "", "%s", oneLine(err))
		return nil
	}
	ours := 0
	for _, group := range job.TaskGroups {
		for _, task := range group.Tasks {
			if p := c.driver(task.Driver, clients); p != nil {
				ours++
				about := fmt.Sprintf("task %q", task.Name)
				c.served(ctx, about, task.Driver, p, clients)
				c.task(ctx, about, p, job, group, task)
			}
		}
	}
	if ours == 0 {
		c.problem(fmt.Sprintf("job %q", *job.ID), `set driver = "vault-exec", "vault-docker" or "vault-raw_exec"`, "no task has a driver of this plugin")
	}
	return nil
}

// connect reads the environment, once: the clients of the plugin's clusters must not see the operator's VAULT_ variables.
func (c *checker) connect() (err error) {
	if c.nomad, err = nomad.NewClient(nomad.DefaultConfig()); err != nil {
		return fmt.Errorf("read the NOMAD_ variables: %w", err)
	}
	if c.vault, err = connect(); err != nil {
		return err
	}
	c.vault.SetClientTimeout(patience)
	c.vault.SetMaxRetries(1)
	if c.direct, err = vault.NewClient(vault.Cluster{Name: c.cluster, Address: c.vault.Address(), AuthPath: c.path}, c.sched, quiet); err != nil {
		return fmt.Errorf("read the VAULT_ variables: %w", err)
	}
	for _, entry := range os.Environ() {
		if key, _, _ := strings.Cut(entry, "="); strings.HasPrefix(key, "VAULT_") {
			if err := os.Unsetenv(key); err != nil {
				return err
			}
		}
	}
	return nil
}

// task looks at one task of ours.
func (c *checker) task(ctx context.Context, about string, p *published, job *nomad.Job, group *nomad.TaskGroup, task *nomad.Task) {
	claims := claimsOf(job, task)
	env, vars, err := environment(job, group, task, claims)
	if err != nil {
		c.fault(about, err)
		return
	}
	conf, err := plugin.ReadTask(ctx, p.wraps, task.Config, vars)
	if err != nil {
		c.fault(about, err)
		return
	}
	uses, err := driver.Review(p.conf, &drivers.TaskConfig{Name: task.Name, Namespace: claims["nomad_namespace"], User: task.User, Env: env}, conf)
	if err != nil {
		c.fault(about, err)
		return
	}
	c.ok(about, "its vault and template blocks are right")
	for _, use := range uses {
		about := fmt.Sprintf("task %q, vault %q", task.Name, use.Name)
		if use.Server.Issues() {
			c.ok(about, "it gets its token by token role %q; the clients' attribute driver.%s.cluster.%s says whether that works", use.Server.Role, task.Driver, use.Cluster)
			continue
		}
		identity := c.identity(about, task, use)
		if identity == nil {
			continue
		}
		c.use(ctx, login{about: about, task: task.Name, Use: use, vague: p.vague, claims: claims, audience: identity.Audience,
			subject: strings.Join([]string{claims["nomad_namespace"], claims["nomad_job_id"], *group.Name, task.Name, identity.Name}, ":")})
	}
}

// claimsOf are the claims of a task's identity that the job decides
// (https://developer.hashicorp.com/nomad/docs/concepts/workload-identity). A dispatched job has its parent's.
func claimsOf(job *nomad.Job, task *nomad.Task) map[string]string {
	id, namespace := *job.ID, os.Getenv("NOMAD_NAMESPACE")
	if job.ParentID != nil && *job.ParentID != "" {
		id = *job.ParentID
	}
	if job.Namespace != nil {
		namespace = *job.Namespace
	}
	return map[string]string{"nomad_job_id": id, "nomad_namespace": cmp.Or(namespace, "default"), "nomad_task": task.Name}
}

// identity returns the identity block that a vault block logs in with, nil where there is none.
func (c *checker) identity(about string, task *nomad.Task, use driver.Use) *nomad.WorkloadIdentity {
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
