// Package e2e proves, on real parts, what README.md and docs/ promise: one test for each promise.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
	"nomad-driver-vault/internal/need"
)

func TestMain(m *testing.M) {
	// Tests wait for leases more than for a processor. A -parallel on the command line still counts: it is parsed by Run.
	_ = flag.Set("test.parallel", "8")
	go machine.watch()
	removeResolver, err := makeResolver()
	code := 1
	if err == nil {
		code = m.Run()
	}
	if err := errors.Join(err, shared.close(), removeResolver()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// shared is the stack that all tests use that do not stop or change a part of it.
var shared sharedStack

type sharedStack struct {
	once  sync.Once
	stack *stack.Stack
	err   error
}

func (s *sharedStack) close() error {
	if s.stack == nil {
		return nil
	}
	return s.stack.Close()
}

// common returns the shared stack, with PostgreSQL and the test application in it.
func common(t *testing.T) *stack.Stack {
	t.Helper()
	needMachine(t)
	shared.once.Do(func() {
		shared.stack, shared.err = stack.Start(within(t, 3*time.Minute), stack.Options{Postgres: true, App: true})
		if shared.err == nil {
			shared.err = audit(t.Context(), shared.stack)
		}
	})
	must.NoError(t, shared.err)
	return shared.stack
}

// own starts a stack for one test, which may stop and change every part of it.
func own(t testing.TB, o stack.Options) *stack.Stack {
	t.Helper()
	needMachine(t)
	o.App = true
	s, err := stack.Start(within(t, 3*time.Minute), o)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	return s
}

// needMachine skips the test on a machine that lacks what it takes.
func needMachine(t testing.TB) {
	t.Helper()
	if missing := stack.Missing(); len(missing) > 0 {
		need.Skip(t, strings.Join(missing, ", ")+": e2e/setup test, as root, installs it on Debian")
	}
}

// slack is what our own tests beside each other may add to what a test times.
const slack = 10 * time.Second

// within is the test's context, with a limit of its own, for a machine that has nothing else to do.
func within(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), stretched(limit))
	t.Cleanup(cancel)
	return ctx
}

// A job is a job of one group and one task, both named like the job, that runs the test application.
type job struct {
	Name   string
	Driver string
	Args   []string // of the application
	Type   string   // "service" where empty
	Hidden bool     // whether the task's identity is where no process of it can read it
	Again  bool     // whether Nomad starts again what fails, as it does by default
	Config string   // HCL for config {}: vault and template blocks
	Task   string   // HCL for the task
	Group  string   // HCL for the group, or for the job's other groups
}

// spec is the jobspec (HCL). The job is never tried again where it fails, so that what a test sees is the first
// failure, unless Again says so; HCL of Group and Task may add a block, not change one that is here. A docker task
// shares the host's network, as an exec task does.
func (j job) spec() string {
	var b strings.Builder
	if err := jobTemplate.Execute(&b, j); err != nil {
		panic(err) // Not for a job that compiles: the template has no method that returns an error.
	}
	return b.String()
}

func (j job) App() string {
	if j.RawExec() {
		return stack.HostAppPath
	}
	return stack.AppPath
}

func (j job) RawExec() bool { return strings.HasSuffix(j.Driver, "raw_exec") }
func (j job) Docker() bool  { return strings.HasSuffix(j.Driver, "docker") }

var jobTemplate = template.Must(template.New("job").Parse(`
job "{{.Name}}" {
  type = "{{or .Type "service"}}"
  group "{{.Name}}" {
    {{- if not .Again}}
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    {{- end}}
    volume "app" {
      type      = "host"
      source    = "app"
      read_only = true
    }
    {{.Group}}
    task "{{.Name}}" {
      driver = "{{.Driver}}"
      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
        {{- if .Hidden}}
        filepath = "private/vault.jwt"
        {{- end}}
      }
      resources {
        cpu    = 50
        memory = 64
      }
      {{- if not .RawExec}}
      volume_mount {
        volume      = "app"
        destination = "/opt/app"
        read_only   = true
      }
      {{- end}}
      config {
        {{- if .Docker}}
        image        = "` + stack.Image + `"
        network_mode = "host"
        {{- end}}
        command = "{{.App}}"
        args    = [{{range .Args}}{{printf "%q" .}}, {{end}}]
        {{.Config}}
      }
      {{.Task}}
    }
  }
}
`))

// run runs the job, and returns its allocation once it is placed. The job is stopped at the end of the test; a test
// that has failed by then shows what became of it.
func run(t testing.TB, s *stack.Stack, j job) *stack.Alloc {
	t.Helper()
	_, alloc := register(t, s, j.spec())
	return alloc
}

// register is run for a jobspec, and returns the job as well.
func register(t testing.TB, s *stack.Stack, spec string) (*stack.Job, *stack.Alloc) {
	t.Helper()
	return registerWith(t, s, spec, nil)
}

// registerWith is register for a jobspec with variables.
func registerWith(t testing.TB, s *stack.Stack, spec string, vars map[string]string) (*stack.Job, *stack.Alloc) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	registered, err := s.Nomad.Run(ctx, spec, vars)
	must.NoError(t, err)
	alloc, err := registered.Alloc(ctx)
	must.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			t.Log(alloc.Report(ctx))
		}
		must.NoError(t, registered.Stop(ctx))
	})
	return registered, alloc
}

// execute runs a command of /bin/sh in the job's task, as `nomad alloc exec` does.
//
// Nomad's docker driver (1.11.3) looks whether the command runs instead of waiting for it: once in a while it takes a
// command that has not begun for one that has ended, or does not wait for the last of its output. Here it is asked
// again, and given the time.
func execute(t *testing.T, alloc *stack.Alloc, j job, tty bool, stdin, command string) (stdout, stderr string,
	code int) {
	t.Helper()
	if j.Docker() {
		command = "trap 'sleep 0.2' EXIT\n" + command
	}
	for range 5 {
		var err error
		stdout, stderr, code, err = alloc.Exec(within(t, 2*time.Minute), j.Name, tty, stdin, "/bin/sh", "-c", command)
		must.NoError(t, err)
		if !j.Docker() || code+len(stdout)+len(stderr) > 0 {
			break
		}
	}
	return stdout, stderr, code
}

// eventually returns when check returns nil; the test fails with its last error where limit, stretched, comes first.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	must.NoError(t, stack.Eventually(within(t, limit), check), must.Sprintf("within %v, stretched to %v", limit,
		stretched(limit)))
}
