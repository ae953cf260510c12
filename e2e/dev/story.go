package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"nomad-driver-vault/e2e/stack"
)

// A story is a part of the demo: it runs one job of example/ and shows what happens. After its first error it says no
// more.
type story struct {
	*stack.Stack
	ctx context.Context
	err error

	job   *stack.Job
	alloc *stack.Alloc
}

// tell tells one story after its headline.
func (d *story) tell(headline string, tale func(*story)) {
	if d.err != nil {
		return
	}
	fmt.Printf("\n%s\n\n", headline)
	d.job, d.alloc = nil, nil
	if tale(d); d.err != nil {
		d.err = fmt.Errorf("%s: %w", headline, d.err)
		if d.alloc != nil {
			d.err = fmt.Errorf("%w\n%s", d.err, d.alloc.Report(context.WithoutCancel(d.ctx)))
		}
	}
}

// act says what is done, and does it, unless something went wrong before.
func (d *story) act(what string, do func() error) {
	if d.err == nil {
		note("%s", what)
		d.err = do()
	}
}

// see waits for a fact, says it once it is true, and shows what belongs to it.
func (d *story) see(fact string, wait func() (string, error)) {
	if d.err != nil {
		return
	}
	var shown string
	if shown, d.err = wait(); d.err != nil {
		return
	}
	note("%s", fact)
	for line := range strings.Lines(shown) {
		fmt.Printf("          | %s\n", strings.TrimRight(line, "\n"))
	}
}

func (d *story) signal() {
	d.put("hello-exec", "good morning")
	d.run("exec.nomad.hcl", nil)
	d.printed("the task has read the secret that was there before it started", "hello", "(?m)^good morning$")
	d.put("hello-exec", "good night")
	d.printed("the task was sent SIGHUP and has read it again", "hello", "(?m)^good night$")
	d.narrate("hello")
	d.stop()
}

func (d *story) restart() {
	d.put("hello-docker", "good morning")
	d.run("docker.nomad.hcl", nil)
	d.printed("the container has the secret in its environment", "hello", "(?m)^good morning$")
	d.put("hello-docker", "good night")
	d.printed("the container was started again with the new one", "hello", "(?m)^good night$")
	d.narrate("hello")
	d.stop()
}

func (d *story) database() {
	d.run("database.nomad.hcl", map[string]string{"postgres_port": strconv.Itoa(d.Postgres.Port)})
	d.printed("the task asks PostgreSQL who it is", "query", "(?m)^I am .*$")
	d.see("that user has a lease in Vault", func() (string, error) { return d.users(1) })
	d.stop()
	d.see("user and lease are gone too", func() (string, error) {
		return "", stack.Eventually(d.ctx, func() error { _, err := d.users(0); return err })
	})
}

// users lists PostgreSQL's users that Vault made; it is an error when there are not n of them and as many leases.
func (d *story) users(n int) (string, error) {
	users, err := d.Postgres.Users(d.ctx)
	if err != nil {
		return "", err
	}
	leases, err := d.Vault.Leases(d.ctx, "database")
	if err == nil && (len(users) != n || len(leases) != n) {
		err = fmt.Errorf("users %v and leases %v instead of %d", users, leases, n)
	}
	return strings.Join(users, "\n"), err
}

func (d *story) put(job, greeting string) {
	d.act(fmt.Sprintf("vault kv put -mount=kv default/%s/config greeting=%q", job, greeting), func() error {
		return d.Vault.Put(d.ctx, "kv/data/default/"+job+"/config",
			map[string]any{"data": map[string]any{"greeting": greeting}})
	})
}

func (d *story) run(file string, vars map[string]string) {
	d.act("nomad job run example/"+file, func() (err error) {
		if d.job, err = d.Nomad.RunFile(d.ctx, "example/"+file, vars); err != nil {
			return err
		}
		d.alloc, err = d.job.Alloc(d.ctx)
		return err
	})
}

// printed waits until the task has printed the pattern, and shows it.
func (d *story) printed(fact, task, pattern string) {
	d.see(fact, func() (string, error) {
		found, err := d.alloc.Log(d.ctx, task, "stdout", pattern, 1)
		return strings.Join(found, "\n"), err
	})
}

// narrate shows what the driver itself has said where the operator looks.
func (d *story) narrate(task string) {
	d.see("what the driver says to that: nomad alloc logs -stderr "+task, func() (string, error) {
		return d.alloc.Logs(d.ctx, task, "stderr")
	})
}

// stop stops the job and shows that the task's token ends with it.
func (d *story) stop() {
	d.see("the task holds a token of Vault", func() (string, error) { return "", d.tokens(1) })
	if d.err != nil {
		return
	}
	d.act("nomad job stop -purge "+d.job.ID, func() error { return d.job.Stop(d.ctx) })
	d.alloc = nil
	d.see("the token is revoked", func() (string, error) {
		return "", stack.Eventually(d.ctx, func() error { return d.tokens(0) })
	})
}

// tokens returns an error when there are not n tokens that tasks hold.
func (d *story) tokens(n int) error {
	held, err := d.Vault.Tokens(d.ctx)
	if err == nil && len(held) != n {
		err = fmt.Errorf("there are %d tokens instead of %d", len(held), n)
	}
	return err
}
