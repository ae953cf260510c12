package operator

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"regexp"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/internal/logtext"
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
	file, alloc, cluster, path string
	vars, varFiles, configs    []string
	login                      bool
	named                      func([]string) (string, string, error)

	nomad    *nomad.Client
	vault    *api.Client   // of VAULT_ADDR, with the operator's token
	direct   *vault.Client // the same Vault, as the driver would ask it
	agent    agent
	plugins  map[string]*published // by the name that jobs use
	job      *nomad.Job
	running  *nomad.Allocation     // of -alloc
	clients  []*nomad.NodeListStub // that the job could run on or, of -alloc, does; nil where they cannot be looked at
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
	line := func(text string) string { return logtext.Line(strings.Join(strings.Fields(text), " ")) }
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
	text, hint := parts(err)
	c.problem(about, hint, "%s", text)
}

// parts are what an error says, and what to do about it, which is empty where that is not known.
func parts(err error) (text, hint string) {
	var e *vault.Error
	if !errors.As(err, &e) {
		return fmt.Sprint(err), ""
	}
	bare := *e
	bare.Hint = ""
	return bare.Error(), e.Hint
}

func runCheck(ctx context.Context, args []string, named func([]string) (string, string, error), t Terminal) error {
	c := &checker{named: named, plugins: map[string]*published{}, reached: map[string]bool{}, findings: []finding{}}
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.StringVar(&c.file, "job", "", "jobspec (HCL) of a job, which need not be running")
	flags.StringVar(&c.alloc, "alloc", "", "ID of an allocation, or its beginning, in place of -job")
	flags.Func("var", "variable of the jobspec, name=value; may be repeated. NOMAD_VAR_<name> in the environment is one, too", func(text string) error {
		c.vars = append(c.vars, text)
		if !strings.Contains(text, "=") {
			return errors.New("it is not name=value")
		}
		return nil
	})
	flags.Func("var-file", "file with variables of the jobspec; may be repeated", func(path string) error {
		c.varFiles = append(c.varFiles, path)
		return nil
	})
	flags.Func("config", "agent configuration of a client, a file or a folder; may be repeated. Run check on that client then", func(path string) error {
		c.configs = append(c.configs, path)
		return nil
	})
	flags.StringVar(&c.cluster, "cluster", "default", "which cluster of the plugin's configuration VAULT_ADDR leads to")
	flags.StringVar(&c.path, "path", "jwt-nomad", "where the JWT auth method is mounted, if neither -config nor a client says it")
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
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt) // the token of -login is revoked
	defer stop()
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
func (c *checker) check(ctx context.Context) error {
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.readPlugins(ctx); err != nil {
		return err
	}
	if err := c.readJob(ctx); err != nil {
		var wrong usage
		if errors.As(err, &wrong) {
			return err
		}
		c.problem("job", "", "%s", said(err))
		return nil
	}
	ours := 0
	for _, group := range c.job.TaskGroups {
		for _, task := range group.Tasks {
			if p := c.driver(task.Driver); p != nil {
				ours++
				c.task(ctx, p, group, task)
			}
		}
	}
	if ours == 0 {
		c.problem(fmt.Sprintf("job %q", *c.job.ID), `set driver = "vault-exec", "vault-docker" or "vault-raw_exec"`, "no task has a driver of this plugin")
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
	if c.direct, err = vault.NewClient(vault.Cluster{Name: c.cluster, Address: c.vault.Address()}, quiet); err != nil {
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
func (c *checker) task(ctx context.Context, p *published, group *nomad.TaskGroup, task *nomad.Task) {
	about := fmt.Sprintf("task %q", task.Name)
	c.served(ctx, about, p)
	claims := claimsOf(c.job, task)
	uses, err := c.review(ctx, p, group, task)
	if err != nil {
		c.fault(about, err)
		return
	}
	c.ok(about, "its vault and template blocks are right")
	c.dispatched(about, task)
	for _, use := range uses {
		about := fmt.Sprintf("task %q, vault %q", task.Name, use.Name)
		if other := p.other[use.Cluster]; other != "" {
			c.warn(about, "run check with -config on one client of each kind", "cluster %q is not the same on all clients, and not looked at: %s", use.Cluster, other)
			continue
		}
		if use.Server.Issues() {
			c.ok(about, "it gets its token by token role %q; the clients' attribute driver.%s.cluster.%s says whether that works", use.Server.Role, task.Driver, use.Cluster)
			continue
		}
		identity := c.identity(about, task, use)
		if identity == nil {
			continue
		}
		c.use(ctx, login{about: about, task: task.Name, Use: use, local: p.local, claims: claims, audience: identity.Audience,
			subject: strings.Join([]string{claims["nomad_namespace"], claims["nomad_job_id"], *group.Name, task.Name, identity.Name}, ":")})
	}
}

// dispatched warns of what whoever dispatches the job may write into a template.
func (c *checker) dispatched(about string, task *nomad.Task) {
	var conf struct {
		Template []struct{ Data, Source string }
	}
	text, err := json.Marshal(task.Config)
	if err != nil || c.job.ParameterizedJob == nil || json.Unmarshal(text, &conf) != nil {
		return
	}
	for _, t := range conf.Template {
		if name := metaInText.FindStringSubmatch(t.Data); name != nil {
			c.warn(about, fmt.Sprintf("write {{ env %q }}", name[1]), "template: data has ${%s}, which whoever dispatches the job chooses: a value that would "+
				"become template code is refused", name[1])
		}
		if payload := task.DispatchPayload; payload != nil && payload.File != "" && path.Base(t.Source) == path.Base(payload.File) {
			c.warn(about, fmt.Sprintf("write the template into data, with {{ file %q }}", "local/"+payload.File),
				"template: source %q is the payload of a dispatch: whoever dispatches the job writes the template", t.Source)
		}
	}
}

var metaInText = regexp.MustCompile(`\$\{[^}]*\b(NOMAD_META_\w+)`)

// review reads a task's config block as a start does.
func (c *checker) review(ctx context.Context, p *published, group *nomad.TaskGroup, task *nomad.Task) ([]render.Use, error) {
	env, vars, err := environment(c.job, group, task)
	if err != nil {
		return nil, err
	}
	conf, err := plugin.ReadTask(ctx, p.wraps, task.Config, vars)
	if err != nil {
		return nil, err
	}
	return render.Review(p.conf, &drivers.TaskConfig{Name: task.Name, Namespace: *c.job.Namespace, User: task.User, Env: env}, conf)
}
