package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// How the soak of TestNothingLeaksWhilePluginsAndAgentDie goes.
const (
	soakTime  = 3 * time.Minute
	soakPause = 3 * time.Second // between two kills
	soakTTL   = 30 * time.Second
)

// crowd is a job of many tasks with database credentials that change all the time.
type crowd struct {
	job    job
	count  int
	allocs []*stack.Alloc
	pids   map[string]int // of the applications, by allocation
}

func TestNothingLeaksWhilePluginsAndAgentDie(t *testing.T) {
	s := own(t, stack.Options{Postgres: true, Agent: patient})
	ctx := within(t, 12*time.Minute)
	noUsers, err := s.Postgres.Users(ctx)
	must.NoError(t, err)
	idle := census(t, s)

	var crowds []*crowd
	for _, c := range []struct {
		name, driver, mode string
		count              int
	}{
		{"soak-signal-exec", "vault-exec", onSignal, 20},
		{"soak-signal-docker", "vault-docker", onSignal, 20},
		{"soak-restart-exec", "vault-exec", onRestart, 5},
		{"soak-restart-docker", "vault-docker", onRestart, 5},
	} {
		crowds = append(crowds, gathered(t, ctx, s, job{Name: c.name, Driver: c.driver}, c.mode, c.count))
	}
	busy := census(t, s)
	t.Log("before:", busy)

	kills := soak(t, ctx, s, crowds)
	for _, c := range crowds {
		for _, alloc := range c.allocs {
			if err := stack.Eventually(within(t, 2*time.Minute),
				func() error { return c.connected(ctx, s, alloc) }); err != nil {
				t.Fatalf("%v\n%s", err, alloc.Report(ctx))
			}
		}
	}
	eventually(t, time.Minute, func() error { return sameCensus(busy, census(t, s)) })
	restarts := 0
	for _, c := range crowds {
		must.Len(t, c.count, tokensOf(t, s, c.job.Name), must.Sprint("one token for each task of ", c.job.Name))
		leases, err := s.Vault.Leases(ctx, c.job.Name)
		must.NoError(t, err)
		must.LessEq(t, 2*c.count, len(leases), must.Sprint("for each task of ", c.job.Name,
			" the present lease and the one that ends"))
		for _, alloc := range c.allocs {
			now := state(t, ctx, alloc, c.job)
			restarts += int(now.Restarts)
			if strings.Contains(c.job.Name, "signal") {
				if now.Restarts > 0 {
					t.Fatalf("nobody asked for a restart of\n%s", alloc.Report(ctx))
				}
				must.Eq(t, c.pids[alloc.ID], application(t, alloc))
			}
		}
		t.Logf("%s: %d tokens, %d leases for %d tasks", c.job.Name, c.count, len(leases), c.count)
	}
	t.Logf("after %d kills of plugins and two ends of the agent: %v; restarts by Nomad: %d", kills, census(t, s), restarts)

	known := everyUser(t, ctx, crowds)
	for _, c := range crowds {
		_, _, err := s.Nomad.API.Jobs().Deregister(c.job.Name, false, nil)
		must.NoError(t, err)
	}
	for _, c := range crowds {
		eventually(t, 90*time.Second, func() error { return unrevoked(t, ctx, s, c.job.Name) })
		for _, alloc := range c.allocs {
			eventually(t, time.Minute, func() error { return leftBehind(t, s, c.job.Name, alloc) })
		}
	}
	left, err := s.Postgres.Users(ctx)
	must.NoError(t, err)
	forgotten := 0
	for _, user := range left {
		if slices.Contains(noUsers, user) {
			continue
		}
		// There is no lease any more. Vault forgets the user that it makes for a request that is cut off, as by the kill of
		// who asks (builtin/logical/database/path_creds_create.go): nobody has ever got to know it.
		must.SliceNotContains(t, known, user)
		forgotten++
	}
	t.Logf("users that Vault had made for a plugin that was killed meanwhile, and forgotten: %d", forgotten)
	eventually(t, time.Minute, func() error { return sameCensus(idle, census(t, s)) })
	t.Log("in the end:", census(t, s))
}

// gathered starts a crowd, and returns when each of it has connected to the database.
func gathered(t *testing.T, ctx context.Context, s *stack.Stack, j job, mode string, count int) *crowd {
	t.Helper()
	j.Args = []string{"db", "/secrets/db.env"}
	j.Group = fmt.Sprintf("count = %d", count)
	j.Task = "restart {\n attempts = 50\n delay = \"0s\"\n interval = \"10m\"\n mode = \"fail\"\n }\n"
	j = withDatabase(t, s, j, stretched(soakTTL), revokes, mode)
	registered, err := s.Nomad.Run(ctx, j.spec(), nil)
	must.NoError(t, err)
	c := &crowd{job: j, count: count, pids: map[string]int{}}
	eventually(t, time.Minute, func() error {
		if c.allocs, err = registered.Allocs(ctx); err == nil && len(c.allocs) != count {
			err = fmt.Errorf("%d of %d allocations are placed", len(c.allocs), count)
		}
		return err
	})
	for _, alloc := range c.allocs {
		users(t, ctx, alloc, j, 1)
		c.pids[alloc.ID] = application(t, alloc)
	}
	return c
}

// soak kills one plugin after the other, and the agent twice, and returns how often it has killed one.
func soak(t *testing.T, ctx context.Context, s *stack.Stack, crowds []*crowd) (kills int) {
	t.Helper()
	ends := []func() error{s.Nomad.Kill, s.Nomad.Stop}
	tick := time.NewTicker(soakPause)
	defer tick.Stop()
	began := time.Now()
	for time.Since(began) < soakTime || len(ends) > 0 {
		eventually(t, 2*time.Minute, func() error { return started(ctx, s, crowds) })
		for _, pid := range plugins(s, []string{"vault-exec", "vault-docker"}[kills%2]) {
			must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
		kills++
		if time.Since(began) > soakTime/3*time.Duration(3-len(ends)) && len(ends) > 0 {
			must.NoError(t, ends[0]())
			must.NoError(t, s.Nomad.Start(ctx))
			ends = ends[1:]
		}
		mustBeRestored(t, ctx, s, crowds, time.Now())
		<-tick.C
	}
	return kills
}

// started returns nil when Nomad is not about to start any of the tasks. It asks once more where a plugin has died over
// a start, and fails the task where the next one dies, too.
func started(ctx context.Context, s *stack.Stack, crowds []*crowd) error {
	for _, c := range crowds {
		allocs, _, err := s.Nomad.API.Jobs().Allocations(c.job.Name, false, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, alloc := range allocs {
			if now := alloc.TaskStates[c.job.Name]; now == nil || now.State == "pending" {
				return fmt.Errorf("%s is being started", alloc.ID)
			}
		}
	}
	return nil
}

// mustBeRestored returns when the client has measured every task since then, after it or a plugin was started anew.
// Until then the client fails the tasks of a plugin that dies: their prestart hooks ask the driver for its capabilities
// (client/allocrunner/taskrunner/volume_hook.go).
func mustBeRestored(t *testing.T, ctx context.Context, s *stack.Stack, crowds []*crowd, at time.Time) {
	t.Helper()
	limit := within(t, 2*time.Minute)
	for _, c := range crowds {
		for _, alloc := range c.allocs { // most are restored while the first is waited for
			if err := stack.Eventually(limit, func() error { return restored(s, alloc.ID, c.job.Name, at) }); err != nil {
				t.Fatalf("%s is being restored: %v\n%s", alloc.ID, err, alloc.Report(ctx))
			}
		}
	}
}

// restored returns nil when the client has measured the task since then.
func restored(s *stack.Stack, alloc, task string, at time.Time) error {
	usage, err := s.Nomad.API.Allocations().Stats(&nomad.Allocation{ID: alloc}, nil)
	if err != nil {
		return err
	}
	if last := usage.Tasks[task]; last == nil || last.Timestamp < at.UnixNano() {
		return errors.New("it is not measured")
	}
	return nil
}

// everyUser returns as whom the applications have ever connected.
func everyUser(t *testing.T, ctx context.Context, crowds []*crowd) (names []string) {
	t.Helper()
	for _, c := range crowds {
		for _, alloc := range c.allocs {
			log, err := alloc.Logs(ctx, c.job.Name, "stdout")
			must.NoError(t, err)
			for _, line := range regexp.MustCompile(connected).FindAllStringSubmatch(log, -1) {
				names = append(names, line[1])
			}
		}
	}
	must.SliceNotEmpty(t, names)
	return names
}

// connected returns nil when the application has connected last as the user that is in its file, whom PostgreSQL knows.
func (c *crowd) connected(ctx context.Context, s *stack.Stack, alloc *stack.Alloc) error {
	env, err := os.ReadFile(alloc.Path(c.job.Name, "secrets/db.env"))
	if err != nil {
		return err
	}
	user, _, _ := strings.Cut(strings.TrimPrefix(string(env), "PGUSER="), "\n")
	log, err := alloc.Logs(ctx, c.job.Name, "stdout")
	if err != nil {
		return err
	}
	if !strings.HasSuffix(log, "connected as "+user+"\n") {
		return fmt.Errorf("%s has not connected as %s; it says %s", alloc.ID, user, log[max(0, len(log)-300):])
	}
	if gone(ctx, s, user) == nil {
		return fmt.Errorf("PostgreSQL does not know %s", user)
	}
	return nil
}

// census counts what a task costs on this machine: processes by what they are, the ends of log pipes that the plugins
// hold, and the files that they keep.
func census(t *testing.T, s *stack.Stack) map[string]int {
	t.Helper()
	found := map[string]int{}
	procs, err := filepath.Glob("/proc/[0-9]*")
	must.NoError(t, err)
	for _, proc := range procs {
		environ, _ := os.ReadFile(proc + "/environ")
		cmdline, _ := os.ReadFile(proc + "/cmdline")
		argv := strings.Split(string(cmdline), "\x00")
		switch of := strings.Contains(string(environ), s.Dir); {
		case strings.HasPrefix(argv[0], filepath.Join(s.Dir, "plugins")+"/"):
			found["plugins"]++
			found["pipes"] += pipesOf(proc)
		case of && len(argv) > 1 && slices.Contains([]string{"executor", "docker_logger", "logmon"}, argv[1]):
			found[argv[1]+"s"]++
		}
	}
	records, err := filepath.Glob(filepath.Join(s.Dir, "state", "*", "*"))
	must.NoError(t, err)
	found["records"] = len(records)
	return found
}

// pipesOf counts the log pipes that a process has open.
func pipesOf(proc string) (n int) {
	files, _ := os.ReadDir(proc + "/fd")
	for _, file := range files {
		if name, _ := os.Readlink(filepath.Join(proc, "fd", file.Name())); strings.HasSuffix(name, ".fifo") {
			n++
		}
	}
	return n
}

func sameCensus(want, have map[string]int) error {
	if !maps.Equal(want, have) {
		return fmt.Errorf("there were %v, and are %v", want, have)
	}
	return nil
}
