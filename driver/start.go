package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/identity"
	"nomad-driver-vault/driver/logpipe"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/internal/logtext"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// handleState is what we add to the wrapped driver's own state of the task, which Nomad stores for RecoverTask: no
// secrets. All of it is one map, in which either driver finds what is its own: a task that the built-in driver has
// started is taken over by a plugin of its name, and a task of ours by the built-in driver once the plugin is taken
// away.
type handleState struct {
	// JobConfig is the job's config block, with the wrapped driver's part: Nomad loses the bytes of it when the agent
	// restarts. A handle of the built-in driver has none.
	JobConfig map[string]any
}

// foreign stands for the config block of a task that the built-in driver has started: nobody tells us what is in it,
// but none of our options is. The one here cannot be empty.
var foreign = map[string]any{"kill_timeout": "5s"}

// StartTask starts a task, in these steps: decode and permit what the job's author wrote, take over what the run
// before has left, log in, render the first generation, write its files, launch the wrapped task, record it, and run.
// Whatever fails undoes what came before, in reverse. An error that waiting may cure is recoverable: Nomad starts the
// task again by the job's restart policy. What the wrapped driver says is passed on unchanged.
func (d *Driver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.Serve()
	log := d.log(cfg)
	t, err := d.newTask(cfg, log)
	if err == nil {
		defer close(t.begun)
		err = t.admit()
	}
	if err != nil {
		d.refuse(cfg, log, err)
		return nil, nil, err
	}
	var handle *drivers.TaskHandle
	var network *drivers.DriverNetwork
	err = t.guard("the start", func() (err error) {
		handle, network, err = t.start()
		return err
	})
	if t.replaced() {
		err = errReplaced
	}
	if err != nil {
		t.warn(notStarted, err)
		_ = t.guard("undoing the start", func() error { // the log has it
			t.undo()
			return nil
		})
		d.forget(t)
		return nil, nil, err
	}
	go t.run()
	go func() { _ = t.guard("waiting for the agent", t.reapUnacknowledged) }()
	return handle, network, nil
}

// start takes the steps that have to be undone when one of them fails.
func (t *task) start() (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if t.recovered && t.pipes.Stalled("the plugin died while it started the task; starting anew", logpipe.ReaderTimeout) {
		return t.unstarted()
	}
	t.recovered = false
	if err := t.firstGeneration(); err != nil {
		return nil, nil, classify(err)
	}
	if closed := t.doors.openAll(t.record); len(closed) > 0 {
		return nil, nil, closed[0]
	}
	t.doors.use(t.current)
	network, err := t.launch()
	if err != nil {
		return nil, nil, err
	}
	handle, err := t.handle()
	if err != nil {
		return nil, nil, err
	}
	t.commitDelivered(0)
	return handle, network, nil
}

// firstGeneration logs in, renders and writes, for which it has the operator's start_timeout.
func (t *task) firstGeneration() error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.ctx, t.op.StartTimeout)
	defer cancel()
	t.starting.Store(true)
	defer t.starting.Store(false)
	if err := t.credentials.Login(ctx, t.renderer.Sessions()); err != nil {
		return err
	}
	first, err := t.renderer.Render(ctx, nil, true)
	if err == nil {
		err = t.bounded(first)
	}
	if err != nil {
		return err
	}
	t.failpoint("rendered")
	if err := t.write(first); err != nil {
		return err
	}
	t.failpoint("written")
	t.current = first
	if len(first.Sums) > 0 || len(t.conf.Blocks()) > 0 || first.Auth != nil {
		summary := first.Describe() + first.Auth.Describe() + t.credentials.Describe()
		t.say("secrets ready after %s: %s", time.Since(began).Round(time.Millisecond), summary)
		t.event("Secrets ready: %s", summary)
	}
	return nil
}

// replaced reports whether another start of the task has taken the place of this run.
func (t *task) replaced() bool { return t.ctx.Err() != nil && t.d.ctx.Err() == nil }

// errReplaced is for a start whose answer nobody waits for any more.
var errReplaced = errors.New("the agent has asked for another start of the task")

// notStarted is what the task's log has of a start that failed.
const notStarted = "not started: %v"

// refuse reports why a task is not started of which nothing exists yet.
func (d *Driver) refuse(cfg *drivers.TaskConfig, log *logpipe.Pipes, err error) {
	_ = log.OpenWait() // both, or the log collector would wait for the other; where there is none, the agent has the error
	text := logtext.Line(fmt.Sprintf(notStarted, err))
	log.Say(text)
	log.Close()
	d.logger.Warn(text, "alloc_id", cfg.AllocID, "task", cfg.Name)
}

func (d *Driver) log(cfg *drivers.TaskConfig) *logpipe.Pipes {
	return logpipe.New("["+d.name+"] ", cfg.AllocDir, cfg.StdoutPath, cfg.StderrPath)
}

// checkName refuses a task whose directory would not be its own: Nomad accepts names that lead to another task's
// directory or to that of all allocations.
func checkName(cfg *drivers.TaskConfig) error {
	if cfg.Name == "" || cfg.Name == "." || cfg.Name == ".." || strings.ContainsAny(cfg.Name, `/\`) {
		return fmt.Errorf("task name %q would lead to a directory that is not the task's: name the task otherwise", cfg.Name)
	}
	return nil
}

// environment is of a wrapped driver whose tasks have variables that the agent has left out: templates see them too.
type environment interface {
	Env(given map[string]string) map[string]string
}

// newTask decodes what the job's author wrote. It asks nobody and takes nothing.
func (d *Driver) newTask(cfg *drivers.TaskConfig, log *logpipe.Pipes) (*task, error) {
	if err := checkName(cfg); err != nil {
		return nil, err
	}
	if inner, ok := d.inner.(environment); ok {
		cfg = cfg.Copy()
		cfg.Env = inner.Env(cfg.Env)
	}
	t := &task{d: d, cfg: cfg, op: d.configured(), pipes: log, retry: sched.Backoff{First: time.Second, Most: time.Minute},
		begun: make(chan struct{}), acknowledged: make(chan struct{}),
		stops: make(chan stopRequest), signals: make(chan signalRequest), aborts: make(chan error, 1),
		done: make(chan struct{}), overdue: map[*config.ChangeScript]<-chan error{}}
	if err := cfg.DecodeDriverConfig(&t.conf); err != nil {
		return nil, fmt.Errorf("decode config block: %w", err)
	}
	if err := t.conf.Validate(t.op); err != nil {
		return nil, err
	}
	key := taskKey(cfg)
	t.credentials = credentials.New(d.env(), cfg, t.conf, t.notice, t.loggedIn)
	guard := func(what string, f func() error) error { return d.guard(key, what, f) }
	var err error
	if t.renderer, err = render.New(cfg, &t.conf, t.op, t.credentials, guard); err != nil {
		return nil, err
	}
	t.recorder = recorder{store: d.kept, logger: d.logger, credentials: t.credentials,
		record: state.Record{Key: key, TaskID: cfg.ID, AllocDir: cfg.AllocDir, Files: t.renderer.Paths(),
			DoorSecrets: newDoorSecrets(&t.conf)}}
	t.renderer.DoorSecrets = t.record.DoorSecrets
	t.ctx, t.cancel = context.WithCancel(d.ctx)
	t.doors = newDoors(doorsOf{t.ctx, cfg, &t.conf, t.op, d.doorkeeper()})
	return t, nil
}

// fromHandle returns the task that a handle is of.
func (d *Driver) fromHandle(handle *drivers.TaskHandle) (*task, error) {
	var kept handleState
	if err := handle.GetDriverState(&kept); err != nil {
		return nil, fmt.Errorf("decode task handle: %w", err)
	}
	if kept.JobConfig == nil {
		kept.JobConfig = foreign
	}
	cfg := handle.Config.Copy()
	if err := cfg.EncodeConcreteDriverConfig(kept.JobConfig); err != nil {
		return nil, fmt.Errorf("encode config block: %w", err)
	}
	return d.newTask(cfg, d.log(cfg))
}

// loggedIn saves a new session, which a crash must not lose.
func (t *task) loggedIn() {
	t.save()
	t.failpoint("logged-in")
}

// admit permits the task, registers it as the only run of its task, and claims what the run before has left. An
// earlier run is ended even if this one is not permitted, since the agent does not know of it any more. After an
// error there is no run. The log pipes are opened before another run closes them: the log collector stops for good
// when nobody holds a write end.
func (t *task) admit() error {
	t.record.Unacknowledged = true
	err := t.check()
	if unended := t.replace(); err == nil { // whatever check says: the agent does not know of another run any more
		err = unended
	}
	if err == nil {
		err = t.claim()
	}
	if err != nil {
		t.cancel()
		t.d.forget(t)
	}
	return err
}

// replace ends any other run of the task. The agent destroys a run before it starts the next, so it does not know of
// this one: it died before it had the answer to that start, or had stored it
// (client/allocrunner/taskrunner/task_runner.go, runDriver). Nomad's docker driver would take its container for the
// one it is asked to start, with the environment of another generation.
func (t *task) replace() error {
	for other := t.d.enter(t); other != nil; other = t.d.enter(t) {
		if other.cfg.ID == t.cfg.ID {
			return fmt.Errorf("task with ID %q already started", t.cfg.ID)
		}
		select {
		case <-other.begun:
		default: // it leaves what it has, and nothing else
			other.cancel()
			select {
			case <-other.begun:
				continue
			case <-t.d.ctx.Done():
				return errPluginEnds
			}
		}
		other.acknowledge()
		other.say("ended: %v", errReplaced)
		patience := min(other.conf.KillAfter, t.op.StartTimeout) // Nomad cannot interrupt a start
		if err := t.d.destroy(other, patience, other.conf.KillSignal); err != nil {
			return structs.NewRecoverableError(fmt.Errorf("end what an earlier start has left: %w", err), true)
		}
	}
	return nil
}

// check is for what must be right before a start, and need not be any more when a running task is recovered.
func (t *task) check() error {
	if err := t.conf.Permit(t.op, t.cfg.Namespace); err != nil {
		return err
	}
	if err := t.op.PermitUser(t.cfg.User); err != nil {
		return err
	}
	if err := t.doors.check(t.d.inner); err != nil {
		return err
	}
	if err := t.renderer.Prepare(); err != nil {
		return err
	}
	if err := t.pipes.OpenWait(); err != nil {
		return structs.NewRecoverableError(err, true) // the next start has a new log collector
	}
	return nil
}

// claim takes over what the run before has left, once its processes are surely gone. After an error that is parked
// again.
func (t *task) claim() error {
	old := t.d.parking.claim(t.record.Key)
	if old == nil {
		return nil
	}
	if err := t.d.parking.sweep(old); err != nil {
		t.d.parking.park(old, t.op.Linger)
		return structs.NewRecoverableError(err, true)
	}
	t.recovered = old.record.TaskID == t.cfg.ID
	t.adopt(old)
	return nil
}

// unstarted returns a task that has ended already, in place of one whose output nobody would read. The agent starts
// it anew by the job's restart policy, with a new log collector. An error would be final, since the agent has asked
// for this start before (client/allocrunner/taskrunner/task_runner.go, runDriver).
func (t *task) unstarted() (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	exit := make(chan *drivers.ExitResult, 1)
	exit <- &drivers.ExitResult{ExitCode: -1, Err: logpipe.ErrStalled}
	t.exit = exit
	handle, err := t.handle()
	return handle, nil, err
}

// adopt takes over the sessions of the run before. Those that the job does not ask for any more are revoked.
func (t *task) adopt(old *parkedRun) {
	others := &parkedRun{record: state.Record{Key: t.record.Key}, credentials: t.credentials.Adopt(old.credentials)}
	if others.credentials.Any() {
		t.d.parking.setAside(others)
		t.d.parking.revokeInBackground(others)
	}
	t.save()
}

// write writes the files of a generation, and removes those of an earlier run that the generation does not have.
func (t *task) write(g *render.Generation) error {
	root, err := os.OpenRoot(t.cfg.AllocDir)
	if err != nil {
		return fmt.Errorf("open allocation directory: %w", err)
	}
	defer root.Close()
	files := g.Files
	if t.record.Held != nil {
		files = slices.DeleteFunc(slices.Clone(files), func(f template.File) bool { return !shared(f.Path) })
	}
	if _, err = template.Write(root, t.cfg.Name, files); err != nil {
		return err
	}
	return template.Remove(root, t.cfg.Name, g.Absent)
}

// launch starts the wrapped task with the current generation, and records its handle.
func (t *task) launch() (*drivers.DriverNetwork, error) {
	cfg, err := t.wrappedConfig()
	if err != nil {
		return nil, err
	}
	cfg.Env = t.current.TaskEnv(t.cfg)
	if err := errors.Join(t.current.Options.Give(cfg), t.current.Auth.Give(cfg)); err != nil {
		return nil, err
	}
	t.remember(func(r *state.Record) { r.Launching = true })
	t.failpoint("launching")
	inner, network, err := t.startWrapped(cfg)
	t.failpoint("launched")
	if err != nil {
		t.remember(func(r *state.Record) { r.Launching = false })
		return nil, t.current.Options.Conceal(err)
	}
	t.remember(func(r *state.Record) {
		r.Launching, r.InnerVersion, r.Inner = false, inner.Version, inner.DriverState
		use(r, t.current) // with which it was started: nobody has to tell it after a crash
	})
	t.failpoint("known")
	return network, t.watch()
}

// A concealer is a wrapped driver that logs what it does. Until reveal is called its log does not have the values.
type concealer interface {
	Conceal(values map[string]string) (reveal func())
}

// startWrapped starts the wrapped task. Nomad's drivers log the options of the tasks that they start.
func (t *task) startWrapped(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if c, logs := t.d.inner.(concealer); logs {
		defer c.Conceal(t.current.Options.Values())()
	}
	if len(t.current.Files) == 0 {
		return t.d.inner.StartTask(cfg)
	}
	return startAs(t.d.inner, cfg, t.own)
}

// own gives the files of the task's user to that one, and says which files the process cannot read.
func (t *task) own(uid int, gids []int) error {
	g := t.renderer.Own(t.current, uid, gids[0])
	root, err := os.OpenRoot(t.cfg.AllocDir)
	if err != nil {
		return fmt.Errorf("open allocation directory: %w", err)
	}
	defer root.Close()
	if err := template.Own(root, g.Files); err != nil {
		return err
	}
	t.current = g
	t.remember(func(r *state.Record) { r.Owner = []int{uid, gids[0]} })
	if text := unreadable(g.Files, uid, gids); text != "" {
		t.warn("%s", text)
		t.event("%s", text)
	}
	return nil
}

// wrappedConfig returns the configuration for the wrapped driver. That opens the log pipes as root, so it gets paths
// that the task cannot redirect.
func (t *task) wrappedConfig() (cfg *drivers.TaskConfig, err error) {
	cfg = t.cfg.Copy()
	if err := t.doors.hidePrivate(cfg); err != nil {
		return nil, err
	}
	cfg.StdoutPath, cfg.StderrPath, err = t.pipes.Paths()
	return cfg, err
}

// destroyProcess ends what the task may have left running. Where that fails it says so, and the next start of the
// task tries again before all else.
func (t *task) destroyProcess() (err error) {
	err = t.guard("ending the process", func() error { return ignoreUnknown(t.d.inner.DestroyTask(t.cfg.ID, true)) })
	if err != nil {
		t.remember(func(r *state.Record) { r.Launching = true })
		t.speak(hclog.Error, fmt.Sprintf("a process may be left running, until the task's next start or for %s: %v",
			claimedWithin, err))
	}
	return err
}

// watch lets exit have the result of the process that runs now.
func (t *task) watch() error {
	ended, err := t.d.inner.WaitTask(t.ctx, t.cfg.ID)
	if err != nil {
		return err
	}
	exit := make(chan *drivers.ExitResult, 1)
	go func() { exit <- t.howEnded(<-ended) }()
	t.exit = exit
	return nil
}

// howEnded returns how the task's process ended: what WaitTask told, unless only InspectTask knows it. Nomad's exec and
// raw_exec each ask the executor twice, for the task's status and for WaitTask. StopTask ends the executor as soon as
// the former has its answer, and the latter gets an error in place of the exit code if it comes second.
func (t *task) howEnded(told *drivers.ExitResult) *drivers.ExitResult {
	if told != nil && told.Err == nil {
		return told
	}
	status, err := t.d.inner.InspectTask(t.cfg.ID)
	if err == nil && status.State == drivers.TaskStateExited && status.ExitResult != nil {
		return status.ExitResult.Copy()
	}
	if told == nil { // the channel was closed without a result
		return &drivers.ExitResult{ExitCode: -1, Err: errors.New("the wrapped driver does not know how the task ended")}
	}
	return told
}

// handle returns what Nomad stores of the task. It has no secrets.
func (t *task) handle() (*drivers.TaskHandle, error) {
	var config map[string]any
	if err := t.cfg.DecodeDriverConfig(&config); err != nil {
		return nil, fmt.Errorf("decode config block: %w", err)
	}
	state, err := withoutEnv(t.record.Inner)
	if err != nil {
		return nil, err
	}
	state["JobConfig"] = config
	handle := drivers.NewTaskHandle(t.record.InnerVersion)
	handle.Config = t.cfg
	handle.State = drivers.TaskStateRunning
	return handle, handle.SetDriverState(state)
}

// withoutEnv returns the wrapped driver's state without the environment that exec and raw_exec keep in it, and recovery
// does not need: what Nomad stores is on disk.
func withoutEnv(inner []byte) (map[string]any, error) {
	state := map[string]any{}
	if inner == nil {
		return state, nil
	}
	handle := drivers.TaskHandle{DriverState: inner}
	if err := handle.GetDriverState(&state); err != nil {
		return nil, fmt.Errorf("decode state of the wrapped driver: %w", err)
	}
	if config, ok := state["TaskConfig"].(map[string]any); ok {
		delete(config, "Env")
	}
	return state, nil
}

// undo rolls back a start that failed: it leaves no process, file, token or lease. Where Vault does not answer,
// revoking goes on in the background. When the plugin ends, the next plugin process finds what there is; when the
// start is replaced, or the process cannot be ended, the next start does.
func (t *task) undo() {
	if t.d.ctx.Err() != nil {
		return
	}
	replaced := t.replaced()
	unended := t.destroyProcess()
	t.doors.closeAll()
	t.cancel()
	t.pipes.Close()
	l := t.parkedRun()
	if replaced || unended != nil {
		t.d.parking.park(l, t.op.Linger)
		return
	}
	t.d.parking.takeOver(l)
	t.d.parking.removeFiles(l)
	ctx, cancel := context.WithTimeout(t.d.ctx, undoWithin)
	defer cancel()
	if !t.d.parking.tryRevoke(ctx, l) {
		t.d.parking.revokeInBackground(l)
	}
}

// classify makes an error recoverable if waiting may cure it: what Vault denies or does not have is mended in Vault,
// and the job's restart block says how often to look. The recoverable error must be the outermost: the agent asserts
// its type and does not unwrap (plugins/drivers/server.go).
func classify(err error) error {
	waits := []error{vault.ErrUnavailable, vault.ErrDenied, vault.ErrNotFound, taskapi.ErrUnavailable,
		template.ErrAbsent, identity.ErrAbsent, identity.ErrMalformed, identity.ErrExpired, context.DeadlineExceeded}
	for _, class := range waits {
		if errors.Is(err, class) {
			return structs.NewRecoverableError(err, true)
		}
	}
	return err
}
