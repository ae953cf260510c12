package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// The parts work together without the plugin: where a test of ours fails and these do not, the plugin is to blame.

func TestPartsAcceptATasksIdentity(t *testing.T) {
	s := common(t)
	ctx := within(t, 2*time.Minute)
	alloc := run(t, s, job{Name: "parts-identity", Driver: "raw_exec", Args: []string{"show"}})
	must.NoError(t, alloc.Running(ctx))
	jwt, err := os.ReadFile(alloc.Path("parts-identity", "secrets/nomad_vault.jwt"))
	must.NoError(t, err)

	must.NoError(t, s.Vault.Put(ctx, "kv/data/default/parts-identity/config",
		map[string]any{"data": map[string]any{"color": "green"}}))
	login, err := s.Vault.API.Logical().WriteWithContext(ctx, "auth/jwt-nomad/login",
		map[string]any{"jwt": string(jwt), "role": "nomad-workloads"})
	must.NoError(t, err)
	tokens, err := s.Vault.Tokens(ctx)
	must.NoError(t, err)
	must.SliceContains(t, tokens, login.Auth.Accessor)

	task := as(t, s, login.Auth.ClientToken)
	secret, err := task.Logical().ReadWithContext(ctx, "kv/data/default/parts-identity/config")
	must.NoError(t, err)
	must.Eq(t, map[string]any{"color": "green"}, secret.Data["data"].(map[string]any))
	_, err = task.Logical().ReadWithContext(ctx, "kv/data/default/another-job/config")
	must.ErrorContains(t, err, "permission denied")
	must.NoError(t, task.Auth().Token().RevokeSelfWithContext(ctx, ""))
}

func as(t *testing.T, s *stack.Stack, token string) *vault.Client {
	c, err := s.Vault.API.Clone()
	must.NoError(t, err)
	c.SetToken(token)
	return c
}

func TestPartsGiveCredentialsThatPostgreSQLAccepts(t *testing.T) {
	for _, driver := range []string{"raw_exec", "exec", "docker"} {
		t.Run(driver, func(t *testing.T) {
			s := common(t)
			ctx := within(t, 2*time.Minute)
			name := "parts-db-" + strings.ReplaceAll(driver, "_", "-")
			must.NoError(t, s.Vault.DatabaseRole(ctx, name, time.Minute, time.Hour))
			creds, err := s.Vault.API.Logical().ReadWithContext(ctx, "database/creds/"+name)
			must.NoError(t, err)
			user := creds.Data["username"].(string)

			alloc := run(t, s, job{Name: name, Driver: driver, Args: []string{"db"}, Task: fmt.Sprintf(
				"env {\n PGHOST = \"127.0.0.1\"\n PGPORT = %d\n PGUSER = %q\n PGPASSWORD = %q\n }", s.Postgres.Port, user,
				creds.Data["password"])})
			connected, err := alloc.Log(ctx, name, "stdout", "connected as (.*)", 1)
			must.NoError(t, err)
			must.Eq(t, []string{user}, connected)
			users, err := s.Postgres.Users(ctx)
			must.NoError(t, err)
			must.SliceContains(t, users, user)

			must.NoError(t, alloc.Signal(ctx, name, "SIGHUP"))
			_, err = alloc.Log(ctx, name, "stdout", "connected as (.*)", 2)
			must.NoError(t, err)
			leases, err := s.Vault.Leases(ctx, name)
			must.NoError(t, err)
			must.Len(t, 1, leases)
			must.NoError(t, s.Vault.API.Sys().RevokeWithContext(ctx, creds.LeaseID))
			users, err = s.Postgres.Users(ctx)
			must.NoError(t, err)
			must.SliceNotContains(t, users, user)
			must.NoError(t, alloc.Signal(ctx, name, "SIGHUP"))
			_, err = alloc.Log(ctx, name, "stdout", "error: connect as "+user, 1)
			must.NoError(t, err)
			ended, err := alloc.Ended(ctx)
			must.NoError(t, err)
			must.Eq(t, "failed", ended.ClientStatus)
		})
	}
}

func TestPartsRunCommandsInTasks(t *testing.T) {
	for _, driver := range []string{"raw_exec", "exec", "docker"} {
		for _, tty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s tty=%v", driver, tty), func(t *testing.T) {
				s := common(t)
				ctx := within(t, 2*time.Minute)
				j := job{Name: "parts-commands", Driver: driver, Args: []string{"show", "/proc/self/comm"}}
				alloc := run(t, s, j)
				must.NoError(t, alloc.Running(ctx))
				stdout, _, code := execute(t, alloc, j, tty, "", "echo $0 $((6 * 7)); exit 3")
				must.Eq(t, 3, code)
				must.StrContains(t, stdout, "/bin/sh 42")
				must.NoError(t, alloc.Restart(ctx, "parts-commands"))
				// Not by its log: Nomad's own docker now and then loses what a task prints after a restart.
				_, err := alloc.Wait(ctx, "restarted task", func(a *nomad.Allocation) bool {
					task := a.TaskStates["parts-commands"]
					return task.Restarts == 1 && task.State == "running"
				})
				must.NoError(t, err)
			})
		}
	}
}

func TestPartsSurviveTheEndOfTheClient(t *testing.T) {
	s := own(t, stack.Options{Plugins: []stack.Plugin{}})
	for _, end := range []struct {
		name string
		how  func() error
	}{{"in good order", s.Nomad.Stop}, {"by kill -9", s.Nomad.Kill}} {
		t.Run(end.name, func(t *testing.T) {
			ctx := within(t, 2*time.Minute)
			alloc := run(t, s, job{Name: "parts-survive", Driver: "exec", Type: "batch", Args: []string{"show"}})
			must.NoError(t, alloc.Running(ctx))
			must.NoError(t, end.how())
			must.NoError(t, s.Nomad.Start(ctx))
			must.NoError(t, alloc.Signal(ctx, "parts-survive", "SIGTERM"))
			ended, err := alloc.Ended(ctx)
			must.NoError(t, err)
			must.Eq(t, "complete", ended.ClientStatus)
			out, err := alloc.Logs(ctx, "parts-survive", "stdout")
			must.NoError(t, err)
			must.Eq(t, "started show\nsignal terminated\n", out)
		})
	}
}

func TestPartsSurviveTheEndOfVault(t *testing.T) {
	s := own(t, stack.Options{Plugins: []stack.Plugin{}})
	ctx := within(t, 2*time.Minute)
	must.NoError(t, s.Vault.Pause())
	hung, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err := s.Vault.Tokens(hung)
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.NoError(t, s.Vault.Resume())
	must.NoError(t, s.Vault.Put(ctx, "kv/data/a", map[string]any{"data": map[string]any{"b": "c"}}))
	must.NoError(t, s.Vault.Kill())
	must.Error(t, s.Vault.Put(ctx, "kv/data/a", nil))
	must.NoError(t, s.Vault.Start(ctx))
	secret, err := s.Vault.API.Logical().ReadWithContext(ctx, "kv/data/a")
	must.NoError(t, err)
	must.Nil(t, secret, must.Sprint("dev mode keeps nothing"))
}

// abandoned, in the environment, makes TestPartsLeaveNothingBehind play the process that is killed.
const abandoned = "NOMAD_DRIVER_VAULT_ABANDONED"

func TestPartsLeaveNothingBehind(t *testing.T) {
	if os.Getenv(abandoned) != "" {
		abandon(t)
	}
	needMachine(t)
	self, err := os.Executable()
	must.NoError(t, err)
	child := exec.CommandContext(within(t, 2*time.Minute), self, "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), abandoned+"=yes")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, child.Start())
	dir, err := bufio.NewReader(out).ReadString('\n')
	must.NoError(t, err)
	dir = strings.TrimSpace(dir)
	must.SliceNotEmpty(t, traces(dir))
	must.NoError(t, child.Process.Kill())
	_ = child.Wait()
	eventually(t, time.Minute, func() error {
		if left := traces(dir); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	})
}

// abandon starts a stack and jobs, tells its parent the stack's folder, and waits for the end that the parent has in
// store for it.
func abandon(t *testing.T) {
	s := own(t, stack.Options{Postgres: true, Plugins: []stack.Plugin{}})
	for _, driver := range []string{"raw_exec", "exec", "docker"} {
		alloc := run(t, s, job{Name: "abandoned-" + strings.ReplaceAll(driver, "_", "-"), Driver: driver,
			Args: []string{"show"}})
		must.NoError(t, alloc.Running(within(t, 2*time.Minute)))
	}
	fmt.Println(s.Dir)
	<-t.Context().Done()
}

// traces are the processes, mounts and files of the stack in dir.
func traces(dir string) []string {
	var found []string
	if _, err := os.Stat(dir); err == nil {
		found = append(found, dir)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
		found = append(found, "mounts")
	}
	for _, file := range []string{"environ", "cmdline", "mountinfo"} {
		procs, _ := filepath.Glob("/proc/[0-9]*/" + file)
		for _, proc := range procs {
			if b, err := os.ReadFile(proc); err == nil && strings.Contains(string(b), dir) {
				found = append(found, proc)
			}
		}
	}
	return found
}
