package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// standInProgram is in the place of every program. It prints what the task was started with and all of its files but
// the JWTs, and stays until it is told to end, which has another exit code for each signal.
const standInProgram = `trap 'exit 3' INT
trap 'exit 4' QUIT
trap 'exit 5' TERM
printf 'arg %s\n' "$@"
env | sed 's/^/env /'
for f in $(find "$NOMAD_SECRETS_DIR" "$NOMAD_TASK_DIR" "$NOMAD_ALLOC_DIR" -type f | grep -v -e '/logs/' -e '/alloc/container/' -e '\.jwt$' -e '/nomad_token$'); do
  echo "file $f $(stat -c '%a %u:%g' "$f")"
  sed "s|^|in $f: |" "$f"
  echo
done
echo looked
[ "$0" = stay ] || exit 0
sleep 600 &
wait`

// standIn puts the stand-in in the place of a job's programs, and the test's image in the place of its images, which
// stay as arguments. It makes the job small, not to be tried again, and without ports that another may have. It reports
// whether a task has a driver of ours.
func (c *corpus) standIn(job *nomad.Job) (ours bool) {
	for _, group := range job.TaskGroups {
		none, no := 0, false
		mode := nomad.RestartPolicyModeFail
		group.RestartPolicy = &nomad.RestartPolicy{Attempts: &none, Mode: &mode}
		if *job.Type != nomad.JobTypeSystem {
			group.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: &none, Unlimited: &no}
		}
		for _, network := range group.Networks {
			for _, port := range network.ReservedPorts {
				port.Value = 0
			}
			network.DynamicPorts, network.ReservedPorts = append(network.DynamicPorts, network.ReservedPorts...), nil
		}
		for _, task := range group.Tasks {
			cpu, memory := 20, 32
			task.Resources = &nomad.Resources{CPU: &cpu, MemoryMB: &memory}
			task.RestartPolicy = nil
			for _, artifact := range task.Artifacts {
				from := strings.Replace(*artifact.GetterSource, "https://example.com", c.served, 1)
				artifact.GetterSource = &from
			}
			standInTask(task)
			ours = ours || strings.HasPrefix(task.Driver, "vault-")
		}
	}
	return ours
}

func standInTask(task *nomad.Task) {
	if task.Driver == "java" {
		task.Driver = "raw_exec"
		task.Config["command"] = task.Config["jar_path"]
		delete(task.Config, "jar_path")
	}
	stays := "stay"
	if l := task.Lifecycle; l != nil && l.Hook == nomad.TaskLifecycleHookPrestart && !l.Sidecar {
		stays = "leave"
	}
	program := []any{"-c", standInProgram, stays}
	if strings.HasSuffix(task.Driver, "docker") {
		own, _ := task.Config["entrypoint"].([]any)
		program = slices.Concat([]any{"sh"}, program, []any{task.Config["image"]}, own)
		task.Config["image"], task.Config["entrypoint"] = stack.Image, program
		return
	}
	args, _ := task.Config["args"].([]any)
	task.Config["args"] = slices.Concat(program, []any{task.Config["command"]}, args)
	task.Config["command"] = "/bin/sh"
}

// serveFiles serves what artifacts fetch.
func serveFiles(t *testing.T) string {
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(corpusDir, "files"))))
	t.Cleanup(server.Close)
	return server.URL
}

// serveConsul answers what templates ask Consul, and what an agent asks it first.
func serveConsul(t *testing.T) string {
	answers := map[string]string{
		"/v1/agent/self":         `{"Config": {"Datacenter": "dc1", "Version": "1.21.0"}}`,
		"/v1/kv/several/config":  `[{"Key": "several/config", "Value": "c2V2ZXJhbA=="}]`,
		"/v1/health/service/api": `[{"Node": {"Address": "10.0.0.9"}, "Service": {"Service": "api", "Port": 8080}}]`,
	}
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, found := answers[r.URL.Path]
		if !found {
			http.NotFound(w, r)
			return
		}
		if r.URL.Query().Get("index") > "0" { // nothing changes
			select {
			case <-r.Context().Done():
			case <-done:
			}
		}
		w.Header().Set("X-Consul-Index", "1")
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(done) })
	return strings.TrimPrefix(server.URL, "http://")
}

// A fate is what became of a job.
type fate struct {
	ours    bool                // whether a task has a driver of ours
	refused string              // what Nomad's servers say of it, or with what the first task failed that did not start
	seen    map[string][]string // by the names of tasks, what they saw, and how they ended
}

// outcome compares a fate with that of the same job here.
func (f *fate) outcome(t *testing.T, here *fate) string {
	t.Helper()
	switch {
	case f.refused != "" && here.refused != "":
		return fmt.Sprintf("refused: %s (natively: %s)", here.refused, f.refused)
	case here.refused != "":
		return "refused: " + here.refused
	case f.refused != "":
		return fmt.Sprintf("runs (refused natively: %s)", f.refused)
	case !here.ours:
		return "not converted"
	}
	missing := f.missing(here)
	more := slices.DeleteFunc(here.missing(f), added.MatchString)
	if len(missing)+len(more) > 0 {
		t.Errorf("seen natively only: %.500q\nseen here only: %.500q", missing, more)
	}
	return "equal"
}

// added is what the driver and an edit add to the environment.
var added = regexp.MustCompile(`: env (VAULT_ADDR|NODE_CLASS)=`)

// missing returns the lines that another fate has not, behind the names of tasks.
func (f *fate) missing(from *fate) (lines []string) {
	for task, seen := range f.seen {
		for _, line := range seen {
			if !slices.Contains(from.seen[task], line) {
				lines = append(lines, task+": "+line)
			}
		}
	}
	return lines
}

// run runs jobs beside each other, those with services first, and returns what became of them when all have been
// stopped.
func (c *corpus) run(t *testing.T, files map[string]string) map[string]*fate {
	t.Helper()
	began := time.Now()
	ctx := within(t, 2*time.Minute)
	jobs := map[string]*nomad.Job{}
	for name, file := range files {
		jobs[name] = readJob(t, file)
	}
	fates, running := map[string]*fate{}, map[string]*stack.Job{}
	begin := func(name string) {
		fates[name] = &fate{seen: map[string][]string{}}
		running[name] = c.start(t, ctx, jobs[name], fates[name])
	}
	for name, job := range jobs {
		if hasService(job) { // which others ask for
			begin(name)
			c.look(t, ctx, running[name], fates[name])
		}
	}
	for name := range jobs {
		if fates[name] == nil {
			begin(name)
		}
	}
	for name := range jobs {
		c.look(t, ctx, running[name], fates[name])
	}
	for name, job := range jobs {
		c.stop(t, ctx, *job.ID, false)
		if running[name] != nil {
			c.stop(t, ctx, running[name].ID, false)
		}
	}
	for name, job := range jobs {
		c.exits(t, ctx, running[name], fates[name])
		c.stop(t, ctx, *job.ID, true)
	}
	t.Logf("%d jobs ran in %v", len(jobs), time.Since(began))
	return fates
}

func hasService(job *nomad.Job) bool {
	return slices.ContainsFunc(job.TaskGroups, func(g *nomad.TaskGroup) bool {
		return len(g.Services) > 0 || slices.ContainsFunc(g.Tasks, func(t *nomad.Task) bool { return len(t.Services) > 0 })
	})
}

// start registers the job, and returns it, or the one that is dispatched of it, or nil if Nomad refuses it.
func (c *corpus) start(t *testing.T, ctx context.Context, job *nomad.Job, f *fate) *stack.Job {
	t.Helper()
	f.ours = c.standIn(job)
	registered, err := c.Nomad.RunJob(ctx, job)
	if err == nil && job.IsParameterized() {
		meta := map[string]string{}
		for _, key := range job.ParameterizedJob.MetaRequired {
			meta[key] = "a " + key
		}
		registered, err = registered.Dispatch(ctx, meta)
	}
	if err != nil {
		f.refused = oneLine(err.Error())
		return nil
	}
	return registered
}

// allocs are those of a job, none of nil.
func (c *corpus) allocs(t *testing.T, ctx context.Context, job *stack.Job) []*stack.Alloc {
	t.Helper()
	if job == nil {
		return nil
	}
	all, err := job.Allocs(ctx)
	must.NoError(t, err)
	return all
}

func (c *corpus) stop(t *testing.T, ctx context.Context, id string, purge bool) {
	t.Helper()
	_, _, err := c.Nomad.API.Jobs().Deregister(id, purge, (&nomad.WriteOptions{}).WithContext(ctx))
	if err != nil {
		must.ErrorContains(t, err, "not found") // it was refused
	}
}

// look waits until the allocations' tasks have looked or failed, and adds what they have seen to the fate.
func (c *corpus) look(t *testing.T, ctx context.Context, job *stack.Job, f *fate) {
	t.Helper()
	for _, alloc := range c.allocs(t, ctx, job) {
		now, err := alloc.Wait(ctx, "tasks that run or have ended", func(a *nomad.Allocation) bool {
			return !slices.ContainsFunc(a.GetTaskGroup().Tasks, func(task *nomad.Task) bool {
				state := a.TaskStates[task.Name]
				return state == nil || state.State == "pending"
			})
		})
		must.NoError(t, err, must.Sprint(alloc.Report(t.Context())))
		for _, task := range now.GetTaskGroup().Tasks {
			what := taskIn(now, task.Name)
			state := now.TaskStates[task.Name]
			if state.StartedAt.IsZero() {
				f.refused = cmp.Or(f.refused, c.normal(alloc, task.Name, failed(state)))
				continue
			}
			_, err := alloc.Log(ctx, task.Name, "stdout", `(?m)^looked$`, 1)
			must.NoError(t, err, must.Sprint(what, alloc.Report(ctx)))
			text, err := alloc.Logs(ctx, task.Name, "stdout")
			must.NoError(t, err)
			f.seen[what] = c.lines(alloc, task.Name, text)
		}
	}
}

// failed is why a task did not start.
func failed(state *nomad.TaskState) string {
	said := ""
	for _, e := range state.Events {
		switch e.Type {
		case nomad.TaskDriverFailure, nomad.TaskFailedValidation, nomad.TaskSetupFailure, "Task hook failed":
			said = e.DisplayMessage
		case nomad.TaskKilling:
			if e.KillReason != "" {
				said = e.KillReason
			}
		}
	}
	return remote.ReplaceAllString(oneLine(said), "")
}

// oneLine is text without the layout of Nomad's lists of errors.
func oneLine(text string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(text, "\n\t* ", " ")), " ")
}

// exits adds how the job's tasks ended that ran.
func (c *corpus) exits(t *testing.T, ctx context.Context, job *stack.Job, f *fate) {
	t.Helper()
	for _, alloc := range c.allocs(t, ctx, job) {
		ended, err := alloc.Ended(ctx)
		must.NoError(t, err)
		for task, state := range ended.TaskStates {
			for _, e := range state.Events {
				if e.Type == nomad.TaskTerminated {
					what := taskIn(ended, task)
					f.seen[what] = append(f.seen[what], fmt.Sprintf("exit %d, signal %d", e.ExitCode, e.Signal))
				}
			}
		}
	}
}

// taskIn names a task: the ID of a dispatched job is another each time.
func taskIn(alloc *nomad.Allocation, task string) string {
	return alloc.TaskGroup + alloc.Name[strings.LastIndex(alloc.Name, "["):] + "." + task
}

// ofEach are variables of each process, and the mode of the token's file, which is 0600 and the task's here.
var ofEach = regexp.MustCompile(`^env (NOMAD_\w+|HOSTNAME|PWD|OLDPWD|SHLVL|HOME|PATH|_)=|^file .*/vault_token `)

// lines are what the last look has seen, sorted.
func (c *corpus) lines(alloc *stack.Alloc, task, text string) (lines []string) {
	text = strings.TrimSuffix(text, "looked\n")
	text = text[strings.LastIndex(text, "looked\n")+1:]
	own := func(line string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "env "), "=")
		return ofEach.MatchString(line) || strings.HasPrefix(line, "env ") && ofAgent(name)
	}
	lines = slices.DeleteFunc(strings.Split(text, "\n"), own)
	lines = strings.Split(c.normal(alloc, task, strings.Join(lines, "\n")), "\n")
	slices.Sort(lines)
	return slices.Compact(lines)
}

// made is what Vault and Nomad make anew.
var made = regexp.MustCompile(`(?s)hvs\.[\w-]+|v-jwt-[\w-]+|[A-Za-z0-9-]{20,}|` +
	`-----BEGIN ([A-Z ]+)-----.*?-----END [A-Z ]+-----|\b[23]\d{4}\b`)

// normal is text without what is another in each run.
func (c *corpus) normal(alloc *stack.Alloc, task, text string) string {
	text = strings.NewReplacer(strings.TrimSuffix(alloc.Path("alloc", ""), "/"), "/alloc",
		strings.TrimSuffix(alloc.Path(task, ""), "/"), "").Replace(text)
	return made.ReplaceAllString(remote.ReplaceAllString(text, ""), "…")
}
