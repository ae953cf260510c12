package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What an init task puts into alloc/ is there for the other tasks, with its leases, as long as one of them runs.

// initialized returns a job whose init task, of the job's driver, puts credentials and a value into alloc/ and ends.
// The main task, which one of Nomad's own drivers runs, connects with them all the time, and fails when it cannot.
// Their leases live for ttl, and are renewed.
func initialized(t *testing.T, s *stack.Stack, j job, ttl time.Duration) (main, init job) {
	t.Helper()
	must.NoError(t, s.Vault.DatabaseRole(t.Context(), j.Name, ttl, time.Hour))
	must.NoError(t, s.Vault.Role(t.Context(), j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }
		path "kv/data/default/%s/*" { capabilities = ["read"] }`, j.Name, j.Name), nil))
	put(t, s, j, map[string]any{"color": "green"})
	main = job{Name: j.Name, Driver: "docker", Args: []string{"busy", "/alloc/db.env"}}
	if j.Docker() {
		main.Driver, main.Args[1] = "raw_exec", "${NOMAD_ALLOC_DIR}/db.env"
	}
	main.Task = fmt.Sprintf("env {\n PGHOST = \"127.0.0.1\"\n PGPORT = %d\n }\n", s.Postgres.Port)
	init = j
	init.Name += "-init"
	init.Args = []string{"exit", "0"}
	init.Config = fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) + file("../alloc/db.env", credentials(j), onSignal) +
		file("alloc/color", inJob(j, "color"), onRestart)
	init.Task = "lifecycle {\n hook = \"prestart\"\n }\n"
	main.Group = taskOf(init.spec())
	return main, init
}

// color waits until that value is in alloc/.
func color(t *testing.T, alloc *stack.Alloc, value string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		is, err := os.ReadFile(alloc.Path("alloc", "color"))
		if err == nil && string(is) != value {
			err = fmt.Errorf("alloc/color is %s", is)
		}
		return err
	})
}

// connects fails the test unless the main task has run on with its credentials.
func connects(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) {
	t.Helper()
	now := state(t, ctx, alloc, j)
	log, err := alloc.Logs(ctx, j.Name, "stdout")
	must.NoError(t, err)
	must.Eq(t, "running", now.State, must.Sprint(log))
	must.StrNotContains(t, log, "error")
}

func TestWhatAnInitTaskPutsIntoAllocStaysWhileTheMainTaskRuns(t *testing.T) {
	each(t, "init", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 4*time.Minute)
		const ttl = 15 * time.Second
		main, init := initialized(t, s, j, ttl)
		alloc := run(t, s, main)
		user := users(t, ctx, alloc, main, 1)[0]
		must.Eq(t, "dead", state(t, ctx, alloc, init).State)
		longer := time.NewTimer(90 * time.Second) // than the lease, and than the linger
		<-longer.C
		connects(t, ctx, alloc, main)
		put(t, s, j, map[string]any{"color": "blue"})
		color(t, alloc, "blue")
		must.NoError(t, alloc.Restart(ctx, main.Name))
		must.Eq(t, user, users(t, ctx, alloc, main, 2)[1])

		ended := stop(t, ctx, s, alloc, main)
		eventually(t, time.Until(ended.Add(40*time.Second+slack)), func() error { return unrevoked(t, ctx, s, j.Name) })
		must.NoError(t, gone(ctx, s, user))
		must.FileNotExists(t, alloc.Path("alloc", "db.env"))
		must.FileNotExists(t, alloc.Path("alloc", "color"))
	})
}

// TestWhatAnInitTaskLeftOutlivesPluginsAndAgents: nobody asks for it, since its task has ended.
func TestWhatAnInitTaskLeftOutlivesPluginsAndAgents(t *testing.T) {
	s := own(t, stack.Options{Postgres: true, Agent: patient})
	ctx := within(t, 8*time.Minute)
	ttl := stretched(leaseTTL)
	type one struct {
		main, init job
		alloc      *stack.Alloc
		user       string
	}
	var all []one
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		main, init := initialized(t, s, job{Name: "left-" + driver, Driver: driver}, ttl)
		alloc := run(t, s, main)
		all = append(all, one{main, init, alloc, users(t, ctx, alloc, main, 1)[0]})
	}
	for i, disrupt := range []func(){
		func() { killPlugins(t, s) },
		func() { must.NoError(t, s.Nomad.Stop()); must.NoError(t, s.Nomad.Start(ctx)) },
		func() { must.NoError(t, s.Nomad.Kill()); must.NoError(t, s.Nomad.Start(ctx)) },
		func() { must.NoError(t, s.Nomad.Kill()); killPlugins(t, s); must.NoError(t, s.Nomad.Start(ctx)) },
	} {
		disrupt()
		value := fmt.Sprint("color ", i)
		for _, o := range all {
			put(t, s, o.main, map[string]any{"color": value})
		}
		for _, o := range all {
			color(t, o.alloc, value)
			connects(t, ctx, o.alloc, o.main)
			must.NoError(t, o.alloc.Restart(ctx, o.main.Name))
			must.Eq(t, o.user, users(t, ctx, o.alloc, o.main, i+2)[i+1])
		}
	}
	longer := time.NewTimer(ttl)
	<-longer.C
	for _, o := range all {
		connects(t, ctx, o.alloc, o.main)
		ended := stop(t, ctx, s, o.alloc, o.main)
		eventually(t, time.Until(ended.Add(40*time.Second+slack)), func() error {
			return errors.Join(unrevoked(t, ctx, s, o.main.Name), gone(ctx, s, o.user))
		})
	}
}
