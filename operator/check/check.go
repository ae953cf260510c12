// Package check says whether a job would get its secrets. It reads the job's blocks with the driver's own code, asks
// Nomad for the clients and Vault for the role and its policies, and reports each finding in one line. It changes
// nothing.
package check

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"nomad-driver-vault/operator"
)

const about = `Says whether a job would get its secrets: whether its blocks are right, clients have the driver, Vault can
be reached, has Nomad's keys and the role, the role admits the job, its policies allow what the templates ask for, and
its doors are right and, with -config on a client, their upstreams answer.
With -config alone it says whether an agent would start with that configuration and reach its Vaults.
Nothing is changed, and no secret is read without -render. Each finding is one line, ok, warning or problem, with what
to do about it. The exit code is 1 when there are problems.

Nomad is the one of NOMAD_ADDR, NOMAD_TOKEN and the nomad command's other variables, Vault that of VAULT_ADDR,
VAULT_TOKEN and the vault command's. The Vault token has to read auth methods, roles and policies; what it may not is a
warning.`

// Command returns the subcommand. publisher tells which plugin blocks of an agent's configuration are of this plugin.
func Command(publisher operator.Publisher) operator.Command {
	return operator.Command{Name: "check", Summary: "say whether a job would get its secrets", About: about,
		Flags: func(flags *flag.FlagSet) operator.Run {
			o := options{publisher: publisher}
			o.addFlags(flags)
			return func(ctx context.Context, _ []string, t operator.Terminal) error { return run(ctx, o, t) }
		}}
}

func run(ctx context.Context, o options, t operator.Terminal) error {
	if err := o.complete(); err != nil {
		return err
	}
	c := &checker{options: o, drivers: map[string]*taskDriver{}, probed: map[string]bool{}}
	c.findings = []finding{}                             // in JSON none is an empty list
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt) // the token of -login is revoked
	defer stop()
	if err := c.check(ctx); err != nil {
		return err
	}
	if err := c.print(t.Out); err != nil {
		return err
	}
	if c.hasProblem() {
		return operator.ErrReported
	}
	return nil
}

// addFlags adds the flags that set o.
func (o *options) addFlags(flags *flag.FlagSet) {
	flags.StringVar(&o.spec.File, "job", "", "`file` with the jobspec (HCL) of a job, which need not be running")
	flags.StringVar(&o.alloc, "alloc", "", "ID of an allocation, or its beginning, in place of -job")
	o.spec.AddFlags(flags)
	flags.Func("config",
		"agent configuration (HCL or JSON) of a client, a `file` or a folder; may be repeated. Run check on that client then",
		operator.Repeated(&o.configs))
	flags.StringVar(&o.cluster, "cluster", "default", "which cluster of the plugin's configuration VAULT_ADDR leads to")
	flags.StringVar(&o.path, "path", "jwt-nomad",
		"where the JWT auth method is mounted, if neither -config nor a client says it")
	flags.BoolVar(&o.login, "login", false,
		"with -alloc: log in with the task's identity, read by alloc exec, and ask Vault what it may do")
	flags.BoolVar(&o.render, "render", false, "print each file and variable of the tasks as a start would make them, "+
		"read with VAULT_TOKEN or, with -login, as the task")
	flags.BoolVar(&o.showSecrets, "show-secrets", false, "with -render: print values of Vault and of Nomad's variables, "+
		"which are *** otherwise")
	flags.BoolVar(&o.json, "json", false, "print JSON")
}

// complete says what is missing, and which flags do not go together.
func (o *options) complete() error {
	switch {
	case o.spec.File != "" && o.alloc != "", o.spec.File == "" && o.alloc == "" && len(o.configs) == 0:
		return operator.Usagef("name one: -job FILE or -alloc ID, or an agent's -config FILE alone")
	case o.login && o.alloc == "":
		return operator.Usagef("-login needs -alloc")
	case o.render && o.spec.File == "" && o.alloc == "":
		return operator.Usagef("-render needs -job or -alloc")
	case o.showSecrets && !o.render:
		return operator.Usagef("-show-secrets needs -render")
	}
	return nil
}

// check looks at everything. It returns an error if it cannot look at all.
func (c *checker) check(ctx context.Context) error {
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.readAgent(ctx); err != nil {
		return err
	}
	if c.spec.File == "" && c.alloc == "" {
		c.checkClusters(ctx)
		return nil
	}
	if err := c.readJob(ctx); err != nil {
		var wrong operator.UsageError
		if errors.As(err, &wrong) {
			return err
		}
		c.problem("job", "", "%s", nomadSays(err))
		return nil
	}
	ours := 0
	for _, group := range c.job.TaskGroups {
		for _, task := range group.Tasks {
			if d := c.driver(task.Driver); d != nil {
				ours++
				c.checkTask(ctx, d, group, task)
			}
		}
	}
	if ours == 0 {
		c.problem(fmt.Sprintf("job %q", *c.job.ID), `set driver = "vault-exec", "vault-docker" or "vault-raw_exec"`,
			"no task has a driver of this plugin")
	}
	return nil
}
