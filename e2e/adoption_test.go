package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/e2e/stack"
)

// Nothing is lost when the plugin or the agent goes down: the next plugin process goes on where the last one stopped.

// leaseTTL, stretched, is the lifetime of the database credentials here, after a half to two thirds of which they are
// renewed: no restart of an agent may take the rest of it.
const leaseTTL = 40 * time.Second

// patient lets the servers wait for a client that is down: they would place its tasks elsewhere after ten seconds.
const patient = "server {\n heartbeat_grace = \"1h\"\n }\n"

// settled says all of a task that a restart of plugin or agent must leave as it is.
func settled(t *testing.T, ctx context.Context, s *stack.Stack, alloc *stack.Alloc, j job) string {
	t.Helper()
	info, err := os.Stat(alloc.Path(j.Name, "secrets/db.env"))
	must.NoError(t, err)
	leases, err := s.Vault.Leases(ctx, j.Name)
	must.NoError(t, err)
	now := state(t, ctx, alloc, j)
	return fmt.Sprintf("process %d, tokens %v, leases %v, file %d of %v, restarts %d, changes %v", application(t, alloc),
		tokensOf(t, s, j.Name),
		leases, info.Sys().(*syscall.Stat_t).Ino, info.ModTime(), now.Restarts, changes(t, ctx, alloc, j))
}

func TestTasksAreAdopted(t *testing.T) {
	s := own(t, stack.Options{Postgres: true, Agent: patient})
	ctx := within(t, 6*time.Minute)
	ttl := stretched(leaseTTL)
	var all []*adopted
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		all = append(all, adoptable(t, ctx, s, driver, ttl))
	}
	users, err := s.Postgres.Users(ctx)
	must.NoError(t, err)

	for _, disruption := range []struct {
		name string
		do   func()
	}{
		{"kill -9 of the plugins", func() { killPlugins(t, s) }},
		{"a graceful restart of the agent", func() {
			must.NoError(t, s.Nomad.Stop())
			must.NoError(t, s.Nomad.Start(ctx))
		}},
		{"kill -9 of the agent", func() {
			served := append(plugins(s, "vault-exec"), plugins(s, "vault-docker")...)
			must.NoError(t, s.Nomad.Kill())
			must.NoError(t, s.Nomad.Start(ctx))
			must.Eq(t, served, append(plugins(s, "vault-exec"), plugins(s, "vault-docker")...),
				must.Sprint("they outlive their agent"))
		}},
		{"kill -9 of agent and plugins", func() {
			must.NoError(t, s.Nomad.Kill())
			killPlugins(t, s)
			must.NoError(t, s.Nomad.Start(ctx))
		}},
		{"an upgrade of the plugin in place", func() {
			upgrade(t, s)
			must.NoError(t, s.Nomad.Stop())
			must.NoError(t, s.Nomad.Start(ctx))
			for _, a := range all {
				exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", plugins(s, a.job.Driver)[0]))
				must.NoError(t, err)
				must.Eq(t, filepath.Join(s.Dir, "upgraded"), exe)
			}
		}},
		{"a restart while Vault does not answer", func() {
			must.NoError(t, s.Vault.Pause())
			must.NoError(t, s.Nomad.Stop())
			must.NoError(t, s.Nomad.Start(ctx))
			for _, a := range all {
				a.works(t, ctx) // without Vault
			}
			must.NoError(t, s.Vault.Resume())
		}},
		{"a restart that takes longer than leases are renewed", func() {
			must.NoError(t, s.Nomad.Stop())
			for _, a := range all { // Or some would end: the last renewal was as long ago as two thirds of that.
				a.renew(t, ctx, s)
			}
			down := time.NewTimer(ttl * 7 / 10)
			<-down.C
			must.NoError(t, s.Nomad.Start(ctx))
		}},
	} {
		t.Log("after", disruption.name)
		disruption.do()
		for _, a := range all {
			a.works(t, ctx)
			must.Eq(t, a.before, settled(t, ctx, s, a.alloc, a.job), must.Sprint("after ", disruption.name))
			a.shows(t, s)
		}
		now, err := s.Postgres.Users(ctx)
		must.NoError(t, err)
		must.Eq(t, users, now)
	}

	for _, a := range all {
		must.SliceEmpty(t, search(t, s, a.secrets), must.Sprint("nothing on disk that a task was given"))
		log, err := a.alloc.Logs(ctx, a.job.Name, "stdout")
		must.NoError(t, err)
		must.StrNotContains(t, log, "error", must.Sprint("every connection was accepted"))
		said, err := a.alloc.Logs(ctx, a.job.Name, "stderr")
		must.NoError(t, err)
		must.Eq(t, 6, strings.Count(said, "taken over after the end of the plugin before, vault \"default\" token "),
			must.Sprint(said))
		stop(t, ctx, s, a.alloc, a.job)
	}
	for _, a := range all { // They were taken over, and so it takes ten seconds.
		eventually(t, 10*time.Second+slack, func() error { return leftBehind(t, s, a.job.Name, a.alloc) })
	}
}

// TestLeaseThatEndsWhileThePluginIsDown: one rotation, one action.
func TestLeaseThatEndsWhileThePluginIsDown(t *testing.T) {
	s := own(t, stack.Options{Postgres: true, Agent: patient})
	ctx := within(t, 3*time.Minute)
	var jobs []job
	var allocs []*stack.Alloc
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		j := job{Name: "ended-" + driver[len("vault-"):], Driver: driver, Args: []string{"db", "/secrets/db.env"}}
		j = withDatabase(t, s, j, stretched(leaseTTL/2), revokes, onSignal)
		jobs, allocs = append(jobs, j), append(allocs, run(t, s, j))
	}
	var old []string
	for i, j := range jobs {
		old = append(old, users(t, ctx, allocs[i], j, 1)...)
	}
	must.NoError(t, s.Nomad.Stop())
	eventually(t, time.Minute, func() error { return gone(ctx, s, old...) })
	must.NoError(t, s.Nomad.Start(ctx))
	for i, j := range jobs {
		must.NotEq(t, old[i], users(t, ctx, allocs[i], j, 2)[1])
		must.Len(t, 1, changed(t, ctx, allocs[i], j, 1))
		must.Zero(t, state(t, ctx, allocs[i], j).Restarts)
		must.Len(t, 1, tokensOf(t, s, j.Name))
	}
}

// adopted is a task that has connected to the database ever since, and ends when it cannot.
type adopted struct {
	job     job
	alloc   *stack.Alloc
	before  string
	file    string // with the credentials
	secrets map[string]string
	signals int
}

func adoptable(t *testing.T, ctx context.Context, s *stack.Stack, driver string, ttl time.Duration) *adopted {
	t.Helper()
	j := job{Name: "adopted-" + driver[len("vault-"):], Driver: driver, Args: []string{"busy", "/secrets/db.env"}}
	j = withDatabase(t, s, j, time.Hour, revokes, onRestart)
	must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, ttl, time.Hour)) // which can be renewed
	j.Config = strings.Replace(j.Config, "role =", "file = true\n role =", 1)
	a := &adopted{job: j, alloc: run(t, s, j)}
	users(t, ctx, a.alloc, j, 1)
	a.before, a.file = settled(t, ctx, s, a.alloc, j), find(t, a.alloc, j, "secrets/db.env", `(?s).+`)
	a.secrets = map[string]string{
		"token":             find(t, a.alloc, j, "secrets/vault_token", `.+`),
		"JWT":               find(t, a.alloc, j, "secrets/nomad_vault.jwt", `.+`),
		"database password": find(t, a.alloc, j, "secrets/db.env", `PGPASSWORD=(.+)`),
	}
	return a
}

// works checks that Nomad's commands reach the task, and that its log goes on.
func (a *adopted) works(t *testing.T, ctx context.Context) {
	t.Helper()
	eventually(t, time.Minute, func() error { return a.alloc.Signal(ctx, a.job.Name, "SIGHUP") })
	a.signals++
	_, err := a.alloc.Log(ctx, a.job.Name, "stdout", "signal hangup\nconnected as", a.signals)
	must.NoError(t, err)
	stdout, stderr, code := execute(t, a.alloc, a.job, false, "", "cat /secrets/db.env")
	must.Zero(t, code, must.Sprint(stderr))
	must.Eq(t, a.file, stdout)
}

// shows checks that the plugin that serves the task now shows it, and no secret.
func (a *adopted) shows(t *testing.T, s *stack.Stack) {
	t.Helper()
	dir := filepath.Join(s.Dir, "state", a.job.Driver)
	table, code := operate(t, s, "", "status", "-state-dir", dir)
	must.Zero(t, code, must.Sprint(table))
	must.StrContains(t, table, a.alloc.ID[:8])
	all, code := operate(t, s, "", "status", "-json", "-state-dir", dir, a.alloc.ID[:8])
	must.Zero(t, code, must.Sprint(all))
	var shown struct{ Plugins []status.Document }
	must.NoError(t, json.Unmarshal([]byte(all), &shown))
	must.Eq(t, plugins(s, a.job.Driver)[0], shown.Plugins[0].Plugin.PID)
	task := shown.Plugins[0].Tasks[0]
	must.Eq(t, []string{a.job.Name, a.job.Name, "running"}, []string{task.Job, task.Group, task.State})
	must.Eq(t, 1, task.Generation)
	must.Eq(t, tokensOf(t, s, a.job.Name), []string{task.Sessions[0].Accessor})
	must.Eq(t, "database/creds/"+a.job.Name, task.Sessions[0].Secrets[0].Path)
	for what, secret := range a.secrets {
		must.StrNotContains(t, table+all, secret, must.Sprint(what))
	}
}

// renew extends the leases of the task to their full TTL, as only an operator can.
func (a *adopted) renew(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	leases, err := s.Vault.Leases(ctx, a.job.Name)
	must.NoError(t, err)
	for _, id := range leases {
		_, err := s.Vault.API.Sys().RenewWithContext(ctx, "database/creds/"+a.job.Name+"/"+id, 0)
		must.NoError(t, err)
	}
}

// plugins are the processes of the plugin with that file name.
func plugins(s *stack.Stack, name string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		cmdline, _ := os.ReadFile(file)
		if argv := strings.Split(string(cmdline), "\x00"); argv[0] == filepath.Join(s.Dir, "plugins", name) {
			var pid int
			if _, err := fmt.Sscanf(file, "/proc/%d/cmdline", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killPlugins ends every plugin process as a crash does.
func killPlugins(t *testing.T, s *stack.Stack) {
	t.Helper()
	for _, name := range []string{"vault-exec", "vault-docker"} {
		for _, pid := range plugins(s, name) {
			must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
}

// upgrade puts another binary in the place of the plugin's.
func upgrade(t *testing.T, s *stack.Stack) {
	t.Helper()
	link := filepath.Join(s.Dir, "plugins", "vault-exec")
	old, err := os.Open(link)
	must.NoError(t, err)
	defer old.Close()
	path := filepath.Join(s.Dir, "upgraded")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	must.NoError(t, err)
	_, err = io.Copy(file, old)
	must.NoError(t, err)
	must.NoError(t, file.Close())
	for _, name := range []string{"vault-exec", "vault-docker"} {
		link := filepath.Join(s.Dir, "plugins", name)
		must.NoError(t, os.Remove(link))
		must.NoError(t, os.Symlink(path, link))
	}
}

// TestAgentThatDiesInAStart: the start goes on in the plugin, and Nomad knows nothing of what becomes of it. The agent
// that comes back starts the task anew or, where the allocation was collected meanwhile, never asks about it.
func TestAgentThatDiesInAStart(t *testing.T) {
	t.Parallel()
	proxies := map[string]bool{}
	for _, driver := range drivers {
		proxies["anew-"+driver], proxies["never-"+driver] = false, false
	}
	s := own(t, stack.Options{Postgres: true, Agent: patient, Proxies: proxies})
	ctx := within(t, 5*time.Minute)

	anew := dying(t, s, "anew-")
	served := append(plugins(s, "vault-exec"), plugins(s, "vault-docker")...)
	must.NoError(t, s.Nomad.Kill())
	must.NoError(t, s.Nomad.Start(ctx))
	must.Eq(t, served, append(plugins(s, "vault-exec"), plugins(s, "vault-docker")...),
		must.Sprint("they outlive their agent"))
	for j := range anew {
		waits(t, s, j, 2)
		must.NoError(t, s.Proxies[j.Name].Mend())
	}
	for j, alloc := range anew {
		must.NoError(t, alloc.Running(ctx))
		shown(t, ctx, alloc, *j, "/secrets/db.env", 1)
		must.NoError(t, alone(t, s, j, alloc))
		must.Zero(t, state(t, ctx, alloc, *j).Restarts)
		ended := stop(t, ctx, s, alloc, *j)
		eventually(t, time.Until(ended.Add(slack)), func() error { return leftBehind(t, s, j.Name, alloc) })
	}

	never := dying(t, s, "never-")
	must.NoError(t, s.Nomad.Kill())
	for j, alloc := range never {
		must.NoError(t, s.Proxies[j.Name].Mend())
		eventually(t, time.Minute, func() error { return alone(t, s, j, alloc) })
		_, _, err := s.Nomad.API.Jobs().Deregister(j.Name, true, nil)
		must.NoError(t, err)
		must.NoError(t, alloc.Remove())
	}
	// or it would start the tasks before it asks the server
	must.NoError(t, os.Remove(filepath.Join(s.Dir, "client/client/state.db")))
	must.NoError(t, s.Nomad.Start(ctx))
	for j, alloc := range never {
		eventually(t, 2*time.Minute, func() error { return leftBehind(t, s, j.Name, alloc) })
	}
}

// dying runs a job for each driver whose start waits for Vault.
func dying(t *testing.T, s *stack.Stack, prefix string) map[*job]*stack.Alloc {
	t.Helper()
	jobs := map[*job]*stack.Alloc{}
	for _, driver := range drivers {
		j := behind(t, s, job{Name: prefix + driver, Driver: "vault-" + driver, Args: []string{"show", "/secrets/db.env"}},
			time.Hour, time.Hour)
		must.NoError(t, s.Proxies[j.Name].Break(stack.Hung))
		jobs[&j] = run(t, s, j)
	}
	for j := range jobs {
		waits(t, s, j, 1)
	}
	return jobs
}

// waits returns when starts of the job have asked a Vault that hangs so many times.
func waits(t *testing.T, s *stack.Stack, j *job, times int) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		if met := s.Proxies[j.Name].Met(); met < times {
			return fmt.Errorf("%s has asked Vault %d times, not %d", j.Name, met, times)
		}
		return nil
	})
}

// alone returns nil when the task has one process and one token.
func alone(t *testing.T, s *stack.Stack, j *job, alloc *stack.Alloc) error {
	t.Helper()
	if processes, tokens := applications(alloc), tokensOf(t, s, j.Name); len(processes) != 1 || len(tokens) != 1 {
		return fmt.Errorf("%s has %d processes and %d tokens", j.Name, len(processes), len(tokens))
	}
	return nil
}

// TestWhatNomadCollectedMeanwhileIsRevoked: nobody comes any more for a task whose allocation was collected while
// plugin and agent were down, and nobody but the plugin knows that it had a token.
func TestWhatNomadCollectedMeanwhileIsRevoked(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Postgres: true, Agent: patient})
	ctx := within(t, 4*time.Minute)
	var jobs []job
	var allocs []*stack.Alloc
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		j := job{Name: "collected-" + driver[len("vault-"):], Driver: driver, Args: []string{"db", "/secrets/db.env"}}
		j = withDatabase(t, s, j, time.Hour, revokes, onSignal)
		jobs, allocs = append(jobs, j), append(allocs, run(t, s, j))
		users(t, ctx, allocs[len(allocs)-1], j, 1)
	}
	must.NoError(t, s.Nomad.Kill())
	killPlugins(t, s)
	for i, j := range jobs {
		_, _, err := s.Nomad.API.Jobs().Deregister(j.Name, true, nil)
		must.NoError(t, err)
		must.Error(t, unrevoked(t, ctx, s, j.Name))
		must.NoError(t, allocs[i].Remove())
	}
	must.NoError(t, os.Remove(filepath.Join(s.Dir, "client/client/state.db")))
	must.NoError(t, s.Nomad.Start(ctx))
	for i, j := range jobs {
		eventually(t, 2*time.Minute, func() error { return leftBehind(t, s, j.Name, allocs[i]) })
	}
}
