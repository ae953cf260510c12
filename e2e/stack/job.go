package stack

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// A Job is a job that Run has registered.
type Job struct {
	ID string

	nomad *Nomad
}

// RunFile is Run with the jobspec of a file.
func (n *Nomad) RunFile(ctx context.Context, name string, vars map[string]string) (*Job, error) {
	spec, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read jobspec: %w", err)
	}
	return n.Run(ctx, string(spec), vars)
}

// Run registers the job that the jobspec (HCL, with values for its variables) describes, and returns when all of it is
// placed. It is an error when the scheduler finds no place for a part of it; the message says why not.
func (n *Nomad) Run(ctx context.Context, spec string, vars map[string]string) (*Job, error) {
	var values strings.Builder
	for name, value := range vars {
		fmt.Fprintf(&values, "%s = %q\n", name, value)
	}
	parsed, err := n.API.Jobs().ParseHCLOpts(&nomad.JobsParseRequest{JobHCL: spec, Variables: values.String(),
		Canonicalize: true})
	if err != nil {
		return nil, fmt.Errorf("parse jobspec: %w", err)
	}
	return n.RunJob(ctx, parsed)
}

// RunJob is Run for a job that is parsed already.
func (n *Nomad) RunJob(ctx context.Context, job *nomad.Job) (*Job, error) {
	resp, _, err := n.API.Jobs().Register(job, writing(ctx))
	if err != nil {
		return nil, fmt.Errorf("register job %s: %w", *job.ID, err)
	}
	j := &Job{ID: *job.ID, nomad: n}
	return j, j.placed(ctx, resp.EvalID)
}

// Dispatch starts a parameterized job with its meta, and returns the job that this makes, when it is placed.
func (j *Job) Dispatch(ctx context.Context, meta map[string]string) (*Job, error) {
	resp, _, err := j.nomad.API.Jobs().Dispatch(j.ID, meta, nil, "", writing(ctx))
	if err != nil {
		return nil, fmt.Errorf("dispatch job %s: %w", j.ID, err)
	}
	made := &Job{ID: resp.DispatchedJobID, nomad: j.nomad}
	return made, made.placed(ctx, resp.EvalID)
}

// placed returns when the evaluation has ended.
func (j *Job) placed(ctx context.Context, evalID string) error {
	if evalID == "" { // A periodic or parameterized job is only registered.
		return nil
	}
	return poll(ctx, "evaluation of job "+j.ID, func(q *nomad.QueryOptions) (bool, *nomad.QueryMeta, error) {
		eval, meta, err := j.nomad.API.Evaluations().Info(evalID, q)
		if err != nil {
			return false, meta, err
		}
		for group, failed := range eval.FailedTGAllocs {
			return false, meta, fmt.Errorf("no place for group %s: filtered by %v, exhausted %v", group,
				failed.ConstraintFiltered, failed.DimensionExhausted)
		}
		return eval.Status != nomad.EvalStatusPending, meta, nil
	})
}

// Allocs returns the job's allocations, the newest first.
func (j *Job) Allocs(ctx context.Context) ([]*Alloc, error) {
	stubs, _, err := j.nomad.API.Jobs().Allocations(j.ID, true, reading(ctx))
	if err != nil {
		return nil, fmt.Errorf("list allocations of job %s: %w", j.ID, err)
	}
	slices.SortFunc(stubs, func(a, b *nomad.AllocationListStub) int { return int(b.CreateIndex) - int(a.CreateIndex) })
	allocs := make([]*Alloc, len(stubs))
	for i, stub := range stubs {
		allocs[i] = &Alloc{ID: stub.ID, nomad: j.nomad}
	}
	return allocs, nil
}

// Alloc returns the job's newest allocation.
func (j *Job) Alloc(ctx context.Context) (*Alloc, error) {
	allocs, err := j.Allocs(ctx)
	if err != nil {
		return nil, err
	}
	if len(allocs) == 0 {
		return nil, fmt.Errorf("job %s has no allocation", j.ID)
	}
	return allocs[0], nil
}

// Stop stops and purges the job, and returns when the last of its tasks has ended.
func (j *Job) Stop(ctx context.Context) error {
	if _, _, err := j.nomad.API.Jobs().Deregister(j.ID, true, writing(ctx)); err != nil {
		return fmt.Errorf("stop job %s: %w", j.ID, err)
	}
	return poll(ctx, "end of job "+j.ID, func(q *nomad.QueryOptions) (bool, *nomad.QueryMeta, error) {
		allocs, meta, err := j.nomad.API.Jobs().Allocations(j.ID, true, q)
		return err == nil && !slices.ContainsFunc(allocs,
			func(a *nomad.AllocationListStub) bool { return !ended(a.ClientStatus) }), meta, err
	})
}

// stopJobs stops every job. An agent that does not answer has none to stop.
func (n *Nomad) stopJobs(ctx context.Context) error {
	jobs, _, err := n.API.Jobs().List(reading(ctx))
	if err != nil {
		return nil
	}
	var errs []error
	for _, stub := range jobs {
		errs = append(errs, (&Job{ID: stub.ID, nomad: n}).Stop(ctx))
	}
	return errors.Join(errs...)
}

// An Alloc is one allocation of a job.
type Alloc struct {
	ID string

	nomad *Nomad
}

// Wait returns the allocation as soon as done says so of it; it looks at every change. The error of a ctx that ends
// first names what was waited for and what the allocation looks like instead.
func (a *Alloc) Wait(ctx context.Context, what string, done func(*nomad.Allocation) bool) (*nomad.Allocation, error) {
	var last *nomad.Allocation
	err := poll(ctx, what, func(q *nomad.QueryOptions) (bool, *nomad.QueryMeta, error) {
		alloc, meta, err := a.nomad.API.Allocations().Info(a.ID, q)
		if err != nil {
			return false, meta, err
		}
		last = alloc
		return done(alloc), meta, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, describe(last))
	}
	return last, nil
}

// Running waits until every task runs; it is an error when the allocation ends instead.
func (a *Alloc) Running(ctx context.Context) error {
	alloc, err := a.Wait(ctx, "running tasks", func(alloc *nomad.Allocation) bool {
		return ended(alloc.ClientStatus) || len(alloc.TaskStates) == len(alloc.GetTaskGroup().Tasks) && !slices.ContainsFunc(
			states(alloc), func(s *nomad.TaskState) bool { return s.State != "running" })
	})
	if err == nil && ended(alloc.ClientStatus) {
		err = fmt.Errorf("allocation has ended instead of running\n%s", describe(alloc))
	}
	return err
}

// Ended waits until the allocation has ended, well or not (its ClientStatus says), and returns it.
func (a *Alloc) Ended(ctx context.Context) (*nomad.Allocation, error) {
	return a.Wait(ctx, "end of allocation", func(alloc *nomad.Allocation) bool { return ended(alloc.ClientStatus) })
}

// Event waits until the task has an event whose message contains text, and returns the message. Nomad keeps the last
// ten.
func (a *Alloc) Event(ctx context.Context, task, text string) (string, error) {
	var message string
	_, err := a.Wait(ctx, fmt.Sprintf("event %q of task %s", text, task), func(alloc *nomad.Allocation) bool {
		s := alloc.TaskStates[task]
		if s == nil {
			return false
		}
		i := slices.IndexFunc(s.Events, func(e *nomad.TaskEvent) bool { return strings.Contains(e.DisplayMessage, text) })
		if i >= 0 {
			message = s.Events[i].DisplayMessage
		}
		return i >= 0
	})
	return message, err
}

// Logs returns what the task has written to "stdout" or "stderr" until now.
func (a *Alloc) Logs(ctx context.Context, task, stream string) (string, error) {
	var out strings.Builder
	err := a.logs(ctx, false, task, stream, func(data []byte) bool { out.Write(data); return false })
	return out.String(), err
}

// Log follows what the task writes to "stdout" or "stderr", from its first line on, until pattern has matched n times.
// It returns the matches: of each the text of the first group, or all of it where the pattern has no group.
func (a *Alloc) Log(ctx context.Context, task, stream, pattern string, n int) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	// The agent has no log of a task that has not started.
	_, err = a.Wait(ctx, "start of task "+task, func(alloc *nomad.Allocation) bool {
		s := alloc.TaskStates[task]
		return s != nil && !s.StartedAt.IsZero() || ended(alloc.ClientStatus)
	})
	if err != nil {
		return nil, err
	}
	var all []byte
	var found [][][]byte
	var failed error
	err = Eventually(ctx, func() error {
		failed = a.logs(ctx, true, task, stream, func(data []byte) bool {
			all = append(all, data...)
			found = re.FindAllSubmatch(all[:bytes.LastIndexByte(all, '\n')+1], n)
			return len(found) == n
		})
		// A busy client knows it later than the server.
		if failed != nil && strings.Contains(failed.Error(), "not started yet") {
			return failed
		}
		return nil
	})
	if err = cmp.Or(err, failed); err != nil {
		return nil, fmt.Errorf("wait for %d of %q in %s of task %s: %w; it is:\n%s", n, pattern, stream, task, err, all)
	}
	matches := make([]string, len(found))
	for i, m := range found {
		matches[i] = string(m[min(1, len(m)-1)])
	}
	return matches, nil
}

// logs hands each piece of the log to take, until take says that it has enough or, unless it follows, the log ends.
func (a *Alloc) logs(ctx context.Context, follow bool, task, stream string, take func([]byte) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	frames, errs := a.nomad.API.AllocFS().Logs(a.info(), follow, task, stream, nomad.OriginStart, 0, ctx.Done(),
		reading(ctx))
	for {
		select {
		case frame, ok := <-frames:
			if !ok && !follow {
				return nil
			}
			if !ok {
				return errors.New("the log has ended")
			}
			if take(frame.Data) {
				return nil
			}
		case err := <-errs:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Exec runs a command in the task, as `nomad alloc exec` does, with a terminal of 24 lines and 80 columns if tty says
// so, and returns what it wrote and its exit code.
func (a *Alloc) Exec(ctx context.Context, task string, tty bool, stdin string, command ...string) (stdout,
	stderr string, code int, err error) {
	var out, errs bytes.Buffer
	var input io.Reader = strings.NewReader(stdin)
	var sizes chan nomad.TerminalSize
	if tty { // The end of its input hangs a terminal up, and the command with it: this input ends after the command.
		open, done := io.Pipe()
		defer done.Close()
		input = io.MultiReader(input, open)
		sizes = make(chan nomad.TerminalSize, 1)
		sizes <- nomad.TerminalSize{Height: 24, Width: 80}
	}
	code, err = a.nomad.API.Allocations().Exec(ctx, a.info(), task, tty, command, input, &out, &errs, sizes, reading(ctx))
	if err != nil {
		return "", "", 0, fmt.Errorf("execute %s in task %s: %w", command[0], task, err)
	}
	return out.String(), errs.String(), code, nil
}

// Signal sends the task a signal, by its name.
func (a *Alloc) Signal(ctx context.Context, task, signal string) error {
	return a.nomad.API.Allocations().Signal(a.info(), reading(ctx), task, signal)
}

// Restart restarts the task as `nomad alloc restart` does.
func (a *Alloc) Restart(ctx context.Context, task string) error {
	return a.nomad.API.Allocations().Restart(a.info(), task, reading(ctx))
}

// Path is where a file of a task is on the host, for example secrets/db.env.
func (a *Alloc) Path(task, name string) string {
	return filepath.Join(a.nomad.stack.path(allocDir), a.ID, task, name)
}

// Remove removes the allocation's directory, as the client does when it collects garbage.
func (a *Alloc) Remove() error {
	dir := a.Path("", "")
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Container returns what `docker inspect` says of the container of a task, as JSON.
func (a *Alloc) Container(ctx context.Context, task string) ([]byte, error) {
	return docker(ctx, "GET", "/containers/"+task+"-"+a.ID+"/json", nil)
}

// RemoveContainer removes the container of a docker task, running as it is.
func (a *Alloc) RemoveContainer(ctx context.Context, task string) error {
	_, err := docker(ctx, "DELETE", "/containers/"+task+"-"+a.ID+"?force=true", nil)
	return err
}

// Pause stops all that runs in the container of a task, in which nothing can be run then.
func (a *Alloc) Pause(ctx context.Context, task string) error {
	_, err := docker(ctx, "POST", "/containers/"+task+"-"+a.ID+"/pause", nil)
	return err
}

// Unpause lets it go on.
func (a *Alloc) Unpause(ctx context.Context, task string) error {
	_, err := docker(ctx, "POST", "/containers/"+task+"-"+a.ID+"/unpause", nil)
	return err
}

// Report tells a person what became of the allocation: its tasks, their events and output, and what the agent's log
// says of it.
func (a *Alloc) Report(ctx context.Context) string {
	alloc, _, err := a.nomad.API.Allocations().Info(a.ID, reading(ctx))
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	b.WriteString(describe(alloc))
	for task := range alloc.TaskStates {
		for _, stream := range []string{"stdout", "stderr"} {
			out, err := a.Logs(ctx, task, stream)
			if err != nil {
				out = err.Error()
			}
			fmt.Fprintf(&b, "%s of %s:\n%s\n", stream, task, out)
		}
	}
	fmt.Fprintf(&b, "the agent's log:\n%s", a.nomad.Tail(40, func(line string) bool {
		return strings.Contains(line, a.ID) && !strings.Contains(line, "http: request complete") &&
			!strings.Contains(line, "task_hook.logmon")
	}))
	return b.String()
}

// info is what the API's client wants of an allocation. Without a node in it, it asks the agent itself, which is the
// node.
func (a *Alloc) info() *nomad.Allocation { return &nomad.Allocation{ID: a.ID} }

func describe(alloc *nomad.Allocation) string {
	if alloc == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "allocation %s of job %s is %s\n", alloc.ID, alloc.JobID, alloc.ClientStatus)
	for name, s := range alloc.TaskStates {
		fmt.Fprintf(&b, "  task %s is %s\n", name, s.State)
		for _, e := range s.Events {
			fmt.Fprintf(&b, "    %s: %s\n", e.Type, e.DisplayMessage)
		}
	}
	return b.String()
}

func states(alloc *nomad.Allocation) []*nomad.TaskState {
	var all []*nomad.TaskState
	for _, s := range alloc.TaskStates {
		all = append(all, s)
	}
	return all
}

func ended(clientStatus string) bool {
	return slices.Contains([]string{nomad.AllocClientStatusComplete, nomad.AllocClientStatusFailed,
		nomad.AllocClientStatusLost}, clientStatus)
}

// poll calls look with blocking queries until it says that it is done. A ctx that ends first makes an error that names
// what was waited for.
func poll(ctx context.Context, what string, look func(*nomad.QueryOptions) (bool, *nomad.QueryMeta, error)) error {
	q := reading(ctx)
	for {
		done, meta, err := look(q)
		if err == nil && done {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		q.WaitIndex = meta.LastIndex
	}
}

func reading(ctx context.Context) *nomad.QueryOptions {
	return (&nomad.QueryOptions{}).WithContext(ctx)
}

func writing(ctx context.Context) *nomad.WriteOptions {
	return (&nomad.WriteOptions{}).WithContext(ctx)
}
