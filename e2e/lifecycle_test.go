package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
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
	"golang.org/x/sys/unix"

	"nomad-driver-vault/e2e/stack"
)

// How long what a task got lives: over rotations, restarts and crashes as long as the task, and not much longer.

// revokes is what a policy grants beside credentials, for the driver to end them when their successors are in use.
const revokes = `path "sys/leases/revoke" { capabilities = ["update"] }`

// withDatabase adds to a job a template with credentials of a database role and a Vault role, both of the job's name.
// Their leases live for ttl and cannot be extended.
func withDatabase(t *testing.T, s *stack.Stack, j job, ttl time.Duration, policy, more string) job {
	t.Helper()
	must.NoError(t, s.Vault.DatabaseRole(t.Context(), j.Name, ttl, ttl))
	must.NoError(t, s.Vault.Role(t.Context(), j.Name,
		fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] } %s`, j.Name, policy), nil))
	j.Task += fmt.Sprintf("env {\n PGHOST = \"127.0.0.1\"\n PGPORT = %d\n }\n", s.Postgres.Port)
	j.Config += fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) + file("secrets/db.env", credentials(j), more)
	return j
}

// credentials is a template of what libpq reads.
func credentials(j job) string {
	return fmt.Sprintf("{{ with secret \"database/creds/%s\" }}PGUSER={{ .Data.username }}\nPGPASSWORD={{ "+
		".Data.password }}\n{{ end }}", j.Name)
}

const connected = `(?m)^connected as (.+)$`

// users waits until the application has connected n times, and returns as whom.
func users(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, n int) []string {
	t.Helper()
	names, err := alloc.Log(ctx, j.Name, "stdout", connected, n)
	must.NoError(t, err)
	return names
}

// gone returns an error while PostgreSQL knows one of the users.
func gone(ctx context.Context, s *stack.Stack, names ...string) error {
	known, err := s.Postgres.Users(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(known, name) {
			return fmt.Errorf("user %s is still there", name)
		}
	}
	return nil
}

// unrevoked returns an error while Vault has a token or a database credential of the job.
func unrevoked(t *testing.T, ctx context.Context, s *stack.Stack, jobID string) error {
	t.Helper()
	leases, err := s.Vault.Leases(ctx, jobID)
	if err != nil {
		return err
	}
	if tokens := tokensOf(t, s, jobID); len(tokens)+len(leases) > 0 {
		return fmt.Errorf("tokens %v and leases %v are left", tokens, leases)
	}
	return nil
}

func TestDatabaseCredentialsAreRotatedWithoutAFailedConnection(t *testing.T) {
	const rotations = 2
	for mode, more := range map[string]string{"restart": "env = true\n " + onRestart, "signal": onSignal} {
		t.Run(mode, func(t *testing.T) {
			each(t, "db-"+mode, func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				j = withDatabase(t, s, j, 20*time.Second, revokes, more)
				j.Args = []string{"busy"} // It connects all the time, and ends at the first connection that fails.
				if mode == "signal" {
					j.Args = append(j.Args, "/secrets/db.env")
				}
				alloc := run(t, s, j)
				names := users(t, ctx, alloc, j, 1+rotations)
				must.Len(t, 1+rotations, slices.Compact(slices.Sorted(slices.Values(names))), must.Sprint("each time another user"))
				log, err := alloc.Logs(ctx, j.Name, "stdout")
				must.NoError(t, err)
				must.StrNotContains(t, log, "error")
				must.Eq(t, map[string]int{"restart": 1 + rotations, "signal": 1}[mode], strings.Count(log, "started busy"))
				must.SliceLen(t, rotations, changed(t, ctx, alloc, j, rotations), must.Sprint("one event for each rotation"))
				unnoticed(t, ctx, alloc, j)
				eventually(t, 20*time.Second, func() error { return gone(ctx, s, names[:rotations]...) })
				must.Error(t, gone(ctx, s, names[rotations]), must.Sprint("the present user stays"))
			})
		})
	}
}

func TestReplacedCredentialsAreRevokedWhereThePolicyGrantsItAndEndByThemselvesElsewhere(t *testing.T) {
	for name, policy := range map[string]string{"granted": revokes, "not-granted": ""} {
		t.Run(name, func(t *testing.T) {
			each(t, "revoke-"+name, func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				w := watched(s, j)
				j = withDatabase(t, s, j, 20*time.Second, policy, "env = true\n "+onRestart)
				j.Args = []string{"db"}
				alloc := run(t, s, j)
				old := users(t, ctx, alloc, j, 2)[0]
				eventually(t, 20*time.Second, func() error {
					if granted, refused := w.granted(t, "sys/leases/revoke"), w.refused(t, "sys/leases/revoke"); granted+refused == 0 {
						return errors.New("revocation was not tried")
					}
					return nil
				})
				eventually(t, 20*time.Second, func() error { return gone(ctx, s, old) })
				must.Eq(t, policy != "", w.granted(t, "sys/leases/revoke") == 1)
				must.Eq(t, policy == "", w.refused(t, "sys/leases/revoke") == 1)
			})
		})
	}
}

func TestStopTakesEverythingBack(t *testing.T) {
	each(t, "stop", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		j = withDatabase(t, s, j, time.Hour, "", onSignal)
		j.Args = []string{"db", "/secrets/db.env"}
		j.Config = strings.Replace(j.Config, "role =", "file = true\n role =", 1)
		alloc := run(t, s, j)
		user := users(t, ctx, alloc, j, 1)[0]
		must.Error(t, gone(ctx, s, user))
		living := tokensOf(t, s, j.Name)
		must.SliceLen(t, 1, living)

		ended := stop(t, ctx, s, alloc, j)
		eventually(t, time.Until(ended.Add(slack)), func() error { return unrevoked(t, ctx, s, j.Name) })
		must.NoError(t, gone(ctx, s, user))
		_, err := s.Vault.API.Auth().Token().LookupAccessorWithContext(ctx, living[0])
		must.ErrorContains(t, err, "invalid accessor")
		for _, name := range []string{"secrets/db.env", "secrets/vault_token"} {
			must.FileNotExists(t, alloc.Path(j.Name, name))
		}
	})
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	each(t, "fail", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		w := watched(s, j)
		j = withDatabase(t, s, j, time.Hour, "", onSignal)
		j.Args = []string{"db", "/secrets/db.env"}
		j.Config += file("secrets/bad", credentials(j)+`{{ index (slice "a") 7 }}`, onSignal)
		alloc := run(t, s, j)
		ended, err := alloc.Ended(ctx)
		must.NoError(t, err)
		must.Eq(t, "failed", ended.ClientStatus)
		must.One(t, w.granted(t, "auth/jwt-nomad/login"))
		must.One(t, w.granted(t, "database/creds/"+j.Name), must.Sprint("there was something to leave"))
		eventually(t, slack, func() error { return unrevoked(t, ctx, s, j.Name) })
		must.FileNotExists(t, alloc.Path(j.Name, "secrets/db.env"))
		must.SliceEmpty(t, processes(alloc))
	})
}

func TestCrashLoopUsesOneSetOfCredentials(t *testing.T) {
	each(t, "crash", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		w := watched(s, j)
		j = withDatabase(t, s, j, time.Hour, "", onSignal)
		j.Args = []string{"exit", "1"}
		j.Task += "restart {\n attempts = 3\n delay = \"1s\"\n interval = \"10m\"\n mode = \"fail\"\n }"
		alloc := run(t, s, j)
		ended, err := alloc.Ended(ctx)
		must.NoError(t, err)
		must.Eq(t, "failed", ended.ClientStatus)
		must.Eq(t, 3, ended.TaskStates[j.Name].Restarts)
		must.One(t, w.granted(t, "auth/jwt-nomad/login"))
		must.One(t, w.granted(t, "database/creds/"+j.Name))
	})
}

func TestAllocRestartKeepsTokenAndCredentials(t *testing.T) {
	each(t, "again", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		w := watched(s, j)
		j = withDatabase(t, s, j, time.Hour, "", onSignal)
		j.Args = []string{"db", "/secrets/db.env"}
		alloc := run(t, s, j)
		users(t, ctx, alloc, j, 1)
		before := tokensOf(t, s, j.Name)
		must.NoError(t, alloc.Restart(ctx, j.Name))
		names := users(t, ctx, alloc, j, 2)
		must.Eq(t, names[0], names[1])
		must.SliceLen(t, 1, before)
		must.Eq(t, before, tokensOf(t, s, j.Name))
		must.One(t, w.granted(t, "auth/jwt-nomad/login"))
		must.One(t, w.granted(t, "database/creds/"+j.Name))
	})
}

func TestNoSecretIsInTheAgentsDataOrLog(t *testing.T) {
	each(t, "secrecy", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		alloc, secrets := confided(t, ctx, s, &j)
		second := rand.Text()
		secrets["second secret"] = second
		put(t, s, j, map[string]any{"password": second})
		users(t, ctx, alloc, j, 2)
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", application(t, alloc)))
		must.NoError(t, err)
		must.StrContains(t, string(environ), "PASSWORD="+second)
		must.SliceEmpty(t, searchProcesses(t, alloc, j, secrets))
		must.SliceEmpty(t, searchNomad(t, ctx, s, alloc, j, secrets))
		stop(t, ctx, s, alloc, j)
		must.SliceEmpty(t, search(t, s, secrets))
		must.SliceNotEmpty(t, search(t, s, map[string]string{"allocation's ID": alloc.ID}))
	})
}

// confided runs the job, the application of which connects to the database, with credentials in a file, a secret and
// the token in the environment: all that Nomad is given on the way to a process. It returns what must be nowhere else.
func confided(t *testing.T, ctx context.Context, s *stack.Stack, j *job) (*stack.Alloc, map[string]string) {
	t.Helper()
	first := rand.Text()
	put(t, s, *j, map[string]any{"password": first})
	policy := fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] }`, j.Name)
	*j = withDatabase(t, s, *j, time.Hour, policy, onSignal)
	j.Config = strings.Replace(j.Config, "role =", "env = true\n file = true\n role =", 1) +
		file("secrets/app.env", "PASSWORD="+inJob(*j, "password"), "env = true\n "+onRestart)
	j.Args = []string{"db", "/secrets/db.env"}
	alloc := run(t, s, *j)
	users(t, ctx, alloc, *j, 1)
	return alloc, map[string]string{"first secret": first,
		"token":             find(t, alloc, *j, "secrets/vault_token", `.+`),
		"JWT":               find(t, alloc, *j, "secrets/nomad_vault.jwt", `.+`),
		"database password": find(t, alloc, *j, "secrets/db.env", `PGPASSWORD=(.+)`),
	}
}

// searchProcesses looks for secrets in the arguments and the environments of all processes of this host: agents,
// plugins, their helpers. The task's own has them in its environment.
func searchProcesses(t *testing.T, alloc *stack.Alloc, j job, secrets map[string]string) (found []string) {
	t.Helper()
	must.SliceNotEmpty(t, applications(alloc))
	helpers := map[string]bool{} // of the task or of others of its driver
	procs, err := filepath.Glob("/proc/[0-9]*")
	must.NoError(t, err)
	for _, proc := range procs {
		own := slices.ContainsFunc(applications(alloc), func(p process) bool {
			return filepath.Base(proc) == fmt.Sprint(p.pid)
		})
		for _, name := range []string{"cmdline", "environ"} {
			content, _ := os.ReadFile(filepath.Join(proc, name)) // It may have ended.
			if argv := strings.Split(string(content), "\x00"); name == "cmdline" && len(argv) > 1 {
				helpers[argv[1]] = true
			}
			for what, secret := range secrets {
				if bytes.Contains(content, []byte(secret)) && !(own && name == "environ") {
					found = append(found, what+" in "+proc+"/"+name)
				}
			}
		}
	}
	helper := map[bool]string{false: "executor", true: "docker_logger"}[j.Docker()]
	must.True(t, helpers["logmon"] && helpers[helper], must.Sprintf("no %s among %v", helper, helpers))
	return found
}

// searchNomad looks for secrets in what Nomad tells of the allocation with its events, of the job and of the node with
// its attributes.
func searchNomad(t *testing.T, ctx context.Context, s *stack.Stack, alloc *stack.Alloc, j job,
	secrets map[string]string) (found []string) {
	t.Helper()
	query := (&nomad.QueryOptions{}).WithContext(ctx)
	info, _, err := s.Nomad.API.Allocations().Info(alloc.ID, query)
	must.NoError(t, err)
	node, _, err := s.Nomad.API.Nodes().Info(info.NodeID, query)
	must.NoError(t, err)
	registered, _, err := s.Nomad.API.Jobs().Info(j.Name, query)
	must.NoError(t, err)
	must.MapNotEmpty(t, node.Attributes)
	must.SliceNotEmpty(t, info.TaskStates[j.Name].Events)
	for what, told := range map[string]any{"allocation": info, "node": node, "job": registered} {
		text, err := json.Marshal(told)
		must.NoError(t, err)
		for name, secret := range secrets {
			if bytes.Contains(text, []byte(secret)) {
				found = append(found, name+" in "+what)
			}
		}
	}
	return found
}

// TestNoSecretIsInTheDumpOfAPluginThatCrashes: the Go runtime tells of all that the plugin is doing, and the agent logs
// it.
func TestNoSecretIsInTheDumpOfAPluginThatCrashes(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Postgres: true, Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec"),
		stack.Wrap("docker", "vault-docker")}})
	ctx := within(t, 2*time.Minute)
	for driver, how := range map[string]syscall.Signal{"exec": syscall.SIGQUIT, "docker": syscall.SIGABRT} {
		j := job{Name: "dump-" + driver, Driver: "vault-" + driver}
		alloc, secrets := confided(t, ctx, s, &j)
		for _, pid := range plugins(s, j.Driver) {
			must.NoError(t, syscall.Kill(pid, how))
		}
		eventually(t, time.Minute, func() error {
			// What serves the tasks is there in it, and what comes last: the registers.
			if text := dump(t, s, how); !strings.Contains(text, "driver.(*task).run") || !strings.Contains(text, "rflags") {
				return fmt.Errorf("the agent's log has no whole dump: %.1000s", text)
			}
			return nil
		})
		eventually(t, time.Minute, func() error { // The next plugin process takes over, and has nothing else to tell.
			said, err := alloc.Logs(ctx, j.Name, "stderr")
			if err == nil && !strings.Contains(said, "taken over after the end of the plugin before") {
				err = fmt.Errorf("not taken over: %s", said)
			}
			return err
		})
		must.SliceEmpty(t, searchProcesses(t, alloc, j, secrets))
		must.SliceEmpty(t, searchNomad(t, ctx, s, alloc, j, secrets))
		must.SliceEmpty(t, search(t, s, secrets))
	}
}

// dump is the log of the agent from the first dump for that signal on.
func dump(t *testing.T, s *stack.Stack, how syscall.Signal) string {
	t.Helper()
	log, err := os.ReadFile(s.Nomad.LogFile)
	must.NoError(t, err)
	at := strings.Index(string(log), map[syscall.Signal]string{syscall.SIGQUIT: "SIGQUIT: quit",
		syscall.SIGABRT: "SIGABRT: abort"}[how])
	if at < 0 {
		return ""
	}
	return string(log[at:])
}

// find returns what a pattern matches in a file of the task: its first group, or all of it.
func find(t *testing.T, alloc *stack.Alloc, j job, name, pattern string) string {
	t.Helper()
	content, err := os.ReadFile(alloc.Path(j.Name, name))
	must.NoError(t, err)
	match := regexp.MustCompile(pattern).FindSubmatch(content)
	must.SliceNotEmpty(t, match)
	return string(match[len(match)-1])
}

// search looks for secrets in all that the stack's servers keep on disk and log, and says what it has found where.
func search(t *testing.T, s *stack.Stack, secrets map[string]string) (found []string) {
	t.Helper()
	must.NoError(t, eachFile(s.Dir, func(name string, content []byte) {
		for what, secret := range secrets {
			// Nomad itself keeps the identities that it has signed.
			nomads := what == "JWT" && name == filepath.Join(s.Dir, "client/client/state.db")
			if bytes.Contains(content, []byte(secret)) && !nomads && !inMemory(name) {
				found = append(found, what+" in "+name)
			}
		}
	}))
	return found
}

// inMemory reports whether a file is on a tmpfs.
func inMemory(name string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(name, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}
