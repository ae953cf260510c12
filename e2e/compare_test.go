package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// Tasks without our blocks, run by Nomad's own drivers and by ours beside them on the same agent: what Nomad, the
// process and Docker say of the two must be the same, but for the rows of a table in docs/migration.md.

// A pairing is a task that is run by both. Without a command of its own it looks around, stays, and looks again when it
// gets SIGHUP.
type pairing struct {
	name   string
	config string // HCL for config {}
	task   string // HCL for the task
	group  string // HCL for the group
}

// has reports whether the config sets one of the options, which are alternatives of a regular expression.
func (p pairing) has(options string) bool {
	return regexp.MustCompile(`(?m)^\s*(` + options + `)\s*=`).MatchString(p.config)
}

// looks reports whether the task runs the application, which stays.
func (p pairing) looks() bool { return !p.has("command|entrypoint|image") }

// configFor adds to the config what the driver needs and the pairing leaves open.
func (p pairing) configFor(driver string) string {
	config, j := p.config, job{Driver: driver}
	if !p.has("command|entrypoint") {
		config += fmt.Sprintf("\ncommand = %q", j.App())
		if !p.has("args") {
			config += "\nargs = [\"look\"]"
		}
	}
	if j.Docker() && !p.has("image") {
		config += fmt.Sprintf("\nimage = %q", stack.Image)
	}
	return config
}

// TestTasksBesideNomadsOwn runs the first three of each driver, which CI has the time for. make compare runs all.
func TestTasksBesideNomadsOwn(t *testing.T) {
	t.Parallel()
	s := common(t)
	for driver, all := range pairings {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			for _, d := range compare(t, s, driver, all[:3]) {
				if !slices.ContainsFunc(allowed(t, driver), func(row *regexp.Regexp) bool { return row.MatchString(d.what) }) {
					t.Errorf("%s of %s: %q natively, %q here", d.what, d.pairing, d.natively, d.here)
				}
			}
		})
	}
}

// BenchmarkBesideNomadsOwn prints all differences of all pairings, and fails for those that docs/migration.md does not
// name, and for those that it names and that are no more. make compare.
func BenchmarkBesideNomadsOwn(b *testing.B) {
	s := own(b, stack.Options{})
	for _, driver := range slices.Sorted(maps.Keys(pairings)) {
		rows := allowed(b, driver)
		seen := map[*regexp.Regexp]bool{}
		for _, d := range compare(b, s, driver, pairings[driver]) {
			row := slices.IndexFunc(rows, func(row *regexp.Regexp) bool { return row.MatchString(d.what) })
			if row < 0 {
				b.Errorf("not in docs/migration.md: %s, %s of %s: %q natively, %q here", driver, d.what, d.pairing, d.natively,
					d.here)
				continue
			}
			seen[rows[row]] = true
			b.Logf("%s, %s of %s: %q natively, %q here", driver, d.what, d.pairing, d.natively, d.here)
		}
		for _, row := range rows {
			if !seen[row] {
				b.Errorf("docs/migration.md allows a difference of %s that there is not: %s", driver, row)
			}
		}
		b.Logf("%s: %d pairs of tasks compared", driver, len(pairings[driver]))
	}
}

// allowedRow is a row of the table: the driver, and a pattern of what differs.
var allowedRow = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| `([^`]+)` \\|")

func allowed(t testing.TB, driver string) (rows []*regexp.Regexp) {
	t.Helper()
	page, err := os.ReadFile("../docs/migration.md")
	must.NoError(t, err)
	_, table, found := strings.Cut(string(page), "## Side by side")
	must.True(t, found)
	for _, row := range allowedRow.FindAllStringSubmatch(table, -1) {
		if row[1] == driver {
			rows = append(rows, regexp.MustCompile("^("+strings.ReplaceAll(row[2], `\|`, "|")+")$"))
		}
	}
	return rows
}

// A difference is one thing that the two drivers do not have in common.
type difference struct{ pairing, what, natively, here string }

// compare runs the tasks, one group each, in a job for Nomad's own driver and in one for ours, and returns what
// differs.
func compare(t testing.TB, s *stack.Stack, driver string, all []pairing) (differences []difference) {
	t.Helper()
	ctx := within(t, 10*time.Minute)
	natively := startSide(t, ctx, s, driver, all)
	here := startSide(t, ctx, s, "vault-"+driver, all)
	native, ours := natively.facts(t, ctx, s), here.facts(t, ctx, s)
	for _, p := range all {
		n, h := native[p.name], ours[p.name]
		if n["status"] != h["status"] { // The facts of a process that was there on one side only say nothing more.
			differences = append(differences, difference{p.name, "status", story(n), story(h)})
			continue
		}
		both := maps.Clone(n)
		maps.Copy(both, h)
		must.MapNotEmpty(t, both)
		for _, what := range slices.Sorted(maps.Keys(both)) {
			if n[what] != h[what] && !lost(n) && !lost(h) {
				differences = append(differences, difference{p.name, what, n[what], h[what]})
			}
		}
	}
	return differences
}

// lost says whether the executor of Nomad's (1.11.3) ended before it had told how the task did, as it does now and then
// under raw_exec, natively as well.
func lost(found map[string]string) bool {
	return strings.Contains(found["event Terminated 1"], "executor: error waiting on process")
}

// story is what became of a task: its end, and Nomad's events.
func story(found map[string]string) string {
	all := []string{found["status"]}
	for _, what := range slices.Sorted(maps.Keys(found)) {
		if strings.HasPrefix(what, "event ") {
			all = append(all, found[what])
		}
	}
	return strings.Join(all, "; ")
}

// A side is the job of one of the two drivers.
type side struct {
	driver string
	job    *stack.Job
	all    []pairing
}

var sideTemplate = template.Must(template.New("side").Parse(`
job "{{.Job}}" {
  {{- range .All}}
  group "{{.Name}}" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    volume "app" {
      type      = "host"
      source    = "app"
      read_only = true
    }
    {{.Group}}
    task "{{.Name}}" {
      driver = "{{$.Driver}}"
      resources {
        cpu    = 20
        memory = 48
      }
      {{- if not $.Raw}}
      volume_mount {
        volume      = "app"
        destination = "/opt/app"
        read_only   = true
      }
      {{- end}}
      config {
        {{.Config}}
      }
      {{.Task}}
    }
  }
  {{- end}}
}
`))

func startSide(t testing.TB, ctx context.Context, s *stack.Stack, driver string, all []pairing) *side {
	t.Helper()
	type group struct{ Name, Config, Task, Group string }
	var groups []group
	for _, p := range all {
		groups = append(groups, group{p.name, p.configFor(driver), p.task, p.group})
	}
	var spec strings.Builder
	must.NoError(t, sideTemplate.Execute(&spec, map[string]any{"Job": "side-" + driver, "Driver": driver, "All": groups,
		"Raw": job{Driver: driver}.RawExec()}))
	registered, err := s.Nomad.Run(ctx, spec.String(), nil)
	must.NoError(t, err, must.Sprint(spec.String()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must.NoError(t, registered.Stop(ctx))
	})
	return &side{driver: driver, job: registered, all: all}
}

// facts waits for each task's look or its end, sends those that run SIGHUP, stops the job, and returns all that was
// found.
func (s *side) facts(t testing.TB, ctx context.Context, on *stack.Stack) map[string]map[string]string {
	t.Helper()
	allocs, err := s.job.Allocs(ctx)
	must.NoError(t, err)
	must.Len(t, len(s.all), allocs)
	found := map[string]map[string]string{}
	for _, alloc := range allocs {
		name, running := s.settled(t, ctx, alloc)
		found[name] = map[string]string{}
		if running {
			must.NoError(t, alloc.Signal(ctx, name, "SIGHUP"))
			_, err := alloc.Log(ctx, name, "stdout", `(?m)^looked\r?$`, 2)
			must.NoError(t, err, must.Sprintf("%s of %s", name, s.driver))
		}
		if container, err := alloc.Container(ctx, name); err == nil && running {
			flattened(t, container, found[name])
		}
	}
	must.NoError(t, s.stop(ctx, on))
	for _, alloc := range allocs {
		ended, err := alloc.Ended(ctx)
		must.NoError(t, err)
		name := ended.TaskGroup
		for _, stream := range []string{"stdout", "stderr"} {
			text, err := alloc.Logs(ctx, name, stream)
			if err != nil {
				text = "no log"
			}
			logged(stream, text, found[name])
		}
		reported(ended, found[name])
		if (job{Driver: s.driver}).RawExec() { // What the host mounts is no matter of this task.
			maps.DeleteFunc(found[name], func(what, _ string) bool { return strings.HasPrefix(what, "mount /") })
		}
		normal := map[string]string{}
		for what, value := range found[name] {
			normal[s.normal(on, alloc.ID, what)] = s.normal(on, alloc.ID, value)
		}
		found[name] = normal
	}
	return found
}

// settled returns the name of the allocation's task, and whether it runs and has looked around.
func (s *side) settled(t testing.TB, ctx context.Context, alloc *stack.Alloc) (name string, running bool) {
	t.Helper()
	now, err := alloc.Wait(ctx, "a task that runs or has ended", func(a *nomad.Allocation) bool {
		state := a.TaskStates[a.TaskGroup]
		return state != nil && state.State != "pending"
	})
	must.NoError(t, err)
	name = now.TaskGroup
	if now.TaskStates[name].State == "dead" || !s.pairing(name).looks() {
		_, err := alloc.Ended(ctx)
		must.NoError(t, err)
		return name, false
	}
	_, err = alloc.Log(ctx, name, "stdout", `(?m)^looked\r?$`, 1)
	must.NoError(t, err, must.Sprintf("%s of %s", name, s.driver))
	return name, true
}

func (s *side) pairing(name string) pairing {
	return s.all[slices.IndexFunc(s.all, func(p pairing) bool { return p.name == name })]
}

// stop stops the job without purging it, so that what became of its allocations can still be read.
func (s *side) stop(ctx context.Context, on *stack.Stack) error {
	_, _, err := on.Nomad.API.Jobs().Deregister(s.job.ID, false, (&nomad.WriteOptions{}).WithContext(ctx))
	return err
}

var factLine = regexp.MustCompile(`^fact ([^\t]+)\t(".*")$`)

// logged adds the facts of a task's last look, and what it has printed beside them.
func logged(stream, text string, found map[string]string) {
	var rest []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if fact := factLine.FindStringSubmatch(line); fact != nil {
			what := fact[1]
			if name, env := strings.CutPrefix(what, "env "); env && ofAgent(name) {
				what = "agent's env " + name
			}
			found[what], _ = strconv.Unquote(fact[2]) // Printed with %q by the application.
			continue
		}
		rest = append(rest, line)
	}
	found[stream] = strings.Join(rest, "\n")
}

// ofAgent says whether a variable comes from the environment that the agent was started in.
func ofAgent(name string) bool {
	_, inherited := os.LookupEnv(name)
	return inherited && name != "PATH" || name == "TMPDIR" || strings.HasPrefix(name, "NOMAD_DRIVER_VAULT_")
}

// reported adds what Nomad says of the task.
func reported(alloc *nomad.Allocation, found map[string]string) {
	state := alloc.TaskStates[alloc.TaskGroup]
	found["status"] = fmt.Sprint(alloc.ClientStatus, ", failed: ", state.Failed, ", restarts: ", state.Restarts)
	count := map[string]int{}
	for _, e := range state.Events {
		// The one comes with a task's end or after it, the other with a start or, where that fails at once, too late.
		if e.Type == "Alloc Unhealthy" || e.DisplayMessage == "Downloading image" {
			continue
		}
		count[e.Type]++
		found[fmt.Sprintf("event %s %d", e.Type, count[e.Type])] = e.DisplayMessage
		if e.Type == nomad.TaskTerminated {
			found["exit"] = fmt.Sprint("code ", e.ExitCode, ", signal ", e.Signal, ", OOM ", e.Details["oom_killed"])
		}
	}
}

// flattened adds what `docker inspect` says, a line for each leaf.
func flattened(t testing.TB, container []byte, found map[string]string) {
	t.Helper()
	var all any
	must.NoError(t, json.Unmarshal(container, &all))
	flatten("inspect", all, found)
}

// itsOwn are the parts of `docker inspect` in which two containers always differ.
var itsOwn = regexp.MustCompile(`^inspect\.(Id|Created|Name|State\.(Pid|StartedAt)|ResolvConfPath|HostnamePath|HostsPath|LogPath|` +
	`GraphDriver\..*|NetworkSettings\..*|Config\.Hostname)$`)

func flatten(name string, value any, found map[string]string) {
	switch v := value.(type) {
	case map[string]any:
		for key, value := range v {
			flatten(name+"."+key, value, found)
		}
	case []any:
		var all []string
		for _, value := range v {
			all = append(all, fmt.Sprint(value))
		}
		slices.Sort(all)
		found[name] = strings.Join(all, "\n")
	default:
		if !itsOwn.MatchString(name) {
			found[name] = fmt.Sprint(v)
		}
	}
}

// what names a run, and is another in each.
var random = regexp.MustCompile(`172\.\d+\.\d+\.\d+|[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(after|in) [0-9.]+m?s|\b[0-9a-f]{12}\b`)

// remote is how an error of a driver begins that is not compiled into the agent.
var remote = regexp.MustCompile(`^rpc error: code = \w+ desc = `)

// normal is text without what names this side's run.
func (s *side) normal(on *stack.Stack, allocID, text string) string {
	text = remote.ReplaceAllString(text, "")
	text = strings.NewReplacer(on.Dir, "STACK", allocID, "ALLOC", allocID[:8], "ALLOC", "side-"+s.driver, "JOB",
		"/state/"+s.driver, "/state/"+s.driver, s.driver,
		strings.TrimPrefix(s.driver, "vault-")).Replace(text)
	return random.ReplaceAllString(text, "RANDOM")
}
