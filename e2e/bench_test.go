package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// The figures of BENCHMARKS.md: each is a difference or a ratio of two things measured in turn in the same run, because
// the machines that run this are shared and their speed drifts. make bench.

// fullUsr gives Nomad's own exec driver a full /usr.
const fullUsr = `
client {
  chroot_env {
    "/usr"   = "/usr"
    "/lib"   = "/lib"
    "/lib64" = "/lib64"
  }
}
`

const benchPolicy = `
path "kv/data/bench"        { capabilities = ["read"] }
path "database/creds/bench" { capabilities = ["read"] }
path "sys/leases/revoke"    { capabilities = ["update"] }
`

const benchTemplate = `template {
  data        = "{{ with secret \"kv/data/bench\" }}{{ .Data.data.value }}{{ end }} {{ with secret \"database/creds/bench\" }}{{ .Data.username }}{{ end }}"
  destination = "secrets/bench"
}
`

func benchStack(b *testing.B) *stack.Stack {
	s := own(b, stack.Options{Postgres: true, AsInExamples: true, NomadsOwn: true, Agent: fullUsr})
	ctx := within(b, time.Minute)
	must.NoError(b, s.Vault.Put(ctx, "kv/data/bench", map[string]any{"data": map[string]any{"value": "1"}}))
	must.NoError(b, s.Vault.DatabaseRole(ctx, "bench", time.Hour, 24*time.Hour))
	must.NoError(b, s.Vault.Role(ctx, "bench", benchPolicy, nil))
	return s
}

// BenchmarkAddedStart: what one KV secret and one database user add to the start of a task, beyond the time that Vault
// takes to answer the same three requests (login, KV, credentials) when asked directly.
func BenchmarkAddedStart(b *testing.B) {
	s := benchStack(b)
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		b.Run(driver, func(b *testing.B) {
			var added, asked, ready []time.Duration
			bare := func(name string) time.Duration {
				return startTime(b, s, job{Name: name, Driver: driver, Args: []string{"show"}}, nil)
			}
			full := func(name string) time.Duration {
				j := job{Name: name, Driver: driver, Args: []string{"show"}, Config: "vault {\n role = \"bench\"\n }\n" +
					benchTemplate}
				return startTime(b, s, j, func(alloc *stack.Alloc) {
					asked = append(asked, askDirectly(b, s, alloc.Path(name, "secrets/nomad_vault.jwt")))
					ready = append(ready, saidReady(b, alloc, j))
				})
			}
			for i := 0; b.Loop(); i++ { // A, B, B, A: what drifts, or is warmer the second time, counts for both.
				name := fmt.Sprintf("bench-%s-%d-", driver, i)
				first := bare(name + "a")
				with := full(name+"b") + full(name+"c")
				added = append(added, (with-first-bare(name+"d"))/2)
			}
			b.ReportMetric(ms(median(added)-median(asked)), "added-beyond-vault-ms")
			b.ReportMetric(ms(median(asked)), "vault-ms")
			b.ReportMetric(ms(median(ready)), "ready-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// saidReady is how long the driver says that the secrets took, Vault's answers included.
func saidReady(b *testing.B, alloc *stack.Alloc, j job) time.Duration {
	lines, err := alloc.Log(within(b, time.Minute), j.Name, "stderr", `secrets ready after (\S+):`, 1)
	must.NoError(b, err)
	took, err := time.ParseDuration(lines[0])
	must.NoError(b, err)
	return took
}

// BenchmarkPlacement: the time from placement to running, Nomad's own exec with its vault and template blocks and a
// full /usr in its chroot, against vault-exec.
func BenchmarkPlacement(b *testing.B) {
	s := benchStack(b)
	var theirs, ours []time.Duration
	for i := 0; b.Loop(); i++ {
		theirs = append(theirs, startTime(b, s, job{Name: fmt.Sprintf("placement-nomad-%d", i), Driver: "exec",
			Args: []string{"show"},
			Task: "vault {\n role = \"bench\"\n }\n" + benchTemplate}, nil))
		ours = append(ours, startTime(b, s, job{Name: fmt.Sprintf("placement-ours-%d", i), Driver: "vault-exec",
			Args:   []string{"show"},
			Config: "vault {\n role = \"bench\"\n }\n" + benchTemplate}, nil))
	}
	b.ReportMetric(ms(median(theirs)), "nomad-ms")
	b.ReportMetric(ms(median(ours)), "ours-ms")
	b.ReportMetric(float64(median(theirs))/float64(median(ours)), "times-faster")
	b.ReportMetric(0, "ns/op")
}

// clock says when it starts and when it is told to stop.
const clock = `date +%s%N; trap 'date +%s%N; exit 0' INT TERM; while :; do sleep 0.01; done`

// BenchmarkRestart: what an in-driver restart adds to the time between a process's last act and its successor's first,
// over a shell that starts the same program again at once.
func BenchmarkRestart(b *testing.B) {
	s := benchStack(b)
	ctx := within(b, 10*time.Minute)
	spec := strings.Replace(job{Name: "restart", Driver: "vault-exec", Config: "vault {\n role = \"bench\"\n }\n" + `template {
  data          = "{{ with secret \"kv/data/bench\" }}{{ .Data.data.value }}{{ end }}"
  destination   = "secrets/bench"
  poll_interval = "5s"
  splay         = "0s"
}`}.spec(), `command = "`+stack.AppPath+`"`, `command = "/bin/sh"`, 1)
	spec = strings.Replace(spec, "args    = []", "args = [\"-c\", <<EOT\n"+clock+"\nEOT\n]", 1)
	_, alloc := register(b, s, spec)
	must.NoError(b, alloc.Running(ctx))
	var gaps, bare []time.Duration
	for i := 0; b.Loop(); i++ {
		must.NoError(b, s.Vault.Put(ctx, "kv/data/bench",
			map[string]any{"data": map[string]any{"value": fmt.Sprint(time.Now().UnixNano())}}))
		lines, err := alloc.Log(ctx, "restart", "stdout", `(\d+)`, 3+2*i)
		must.NoError(b, err)
		gaps = append(gaps, between(b, lines[1+2*i], lines[2+2*i]))
		bare = append(bare, bareRestart(b))
	}
	b.ReportMetric(ms(median(gaps)), "gap-ms")
	b.ReportMetric(ms(median(bare)), "bare-ms")
	b.ReportMetric(ms(median(gaps)-median(bare)), "added-ms")
	b.ReportMetric(0, "ns/op")
}

// bareRestart is the gap of the same program when a shell starts it again.
func bareRestart(b *testing.B) time.Duration {
	out, err := exec.Command("sh", "-c", "date +%s%N; sh -c 'date +%s%N'").Output()
	must.NoError(b, err)
	lines := strings.Fields(string(out))
	return between(b, lines[0], lines[1])
}

func between(b *testing.B, from, to string) time.Duration {
	a, err := strconv.ParseInt(from, 10, 64)
	must.NoError(b, err)
	z, err := strconv.ParseInt(to, 10, 64)
	must.NoError(b, err)
	return time.Duration(z - a)
}

// startTime runs a job and returns the time from its task's first event to its start, by the client's own clock. look,
// if any, is called while the task runs; then the job is stopped.
func startTime(b *testing.B, s *stack.Stack, j job, look func(*stack.Alloc)) time.Duration {
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	registered, err := s.Nomad.Run(ctx, j.spec(), nil)
	must.NoError(b, err)
	alloc, err := registered.Alloc(ctx)
	must.NoError(b, err)
	must.NoError(b, alloc.Running(ctx))
	info, err := alloc.Wait(ctx, "the event of the start",
		func(a *nomad.Allocation) bool { return a.TaskStates[j.Name] != nil })
	must.NoError(b, err)
	if look != nil {
		look(alloc)
	}
	must.NoError(b, registered.Stop(ctx))
	var received, started int64
	for _, e := range info.TaskStates[j.Name].Events {
		switch e.Type {
		case nomad.TaskReceived:
			received = e.Time
		case nomad.TaskStarted:
			started = e.Time
		}
	}
	return time.Duration(started - received)
}

// askDirectly makes the requests of a start, and nothing else, with the task's own identity.
func askDirectly(b *testing.B, s *stack.Stack, identity string) time.Duration {
	jwt, err := os.ReadFile(identity)
	must.NoError(b, err)
	c, err := s.Vault.API.Clone()
	must.NoError(b, err)
	ctx := within(b, time.Minute)
	began := time.Now()
	login, err := c.Logical().WriteWithContext(ctx, "auth/jwt-nomad/login",
		map[string]any{"jwt": strings.TrimSpace(string(jwt)), "role": "bench"})
	must.NoError(b, err)
	c.SetToken(login.Auth.ClientToken)
	for _, path := range []string{"kv/data/bench", "database/creds/bench"} {
		_, err = c.Logical().ReadWithContext(ctx, path)
		must.NoError(b, err)
	}
	took := time.Since(began)
	must.NoError(b, c.Auth().Token().RevokeSelfWithContext(ctx, ""))
	return took
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
