package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// machine has the processes, which go on without the plugin that started them.
type machine struct {
	mu    sync.Mutex
	procs map[int]*taskProcess
	pids  int
}

type taskProcess struct {
	pid     int
	alloc   string
	env     map[string]string
	args    []string       // of the config
	auth    map[string]any // block of the config
	signals []string
	ended   chan struct{}
	result  *drivers.ExitResult // once ended is closed
}

// exit ends a process that has not ended yet.
func (m *machine) exit(pid int, result *drivers.ExitResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.procs[pid]; p != nil {
		delete(m.procs, pid)
		p.result = result
		close(p.ended)
	}
}

// running returns the processes, the latest one last.
func (m *machine) running() []*taskProcess {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*taskProcess
	for _, pid := range slices.Sorted(maps.Keys(m.procs)) {
		all = append(all, m.procs[pid])
	}
	return all
}

// wrapped is a Nomad driver for tests, with the ways of exec: one process for each task, an environment in its
// handle, and one goroutine for each WaitTask. One plugin process has one.
type wrapped struct {
	drivers.DriverPlugin // nil: nothing else is called
	ctx                  context.Context
	m                    *machine

	mu        sync.Mutex
	tasks     map[string]*taskProcess
	calls     []string
	fails     map[string]error         // by method
	takes     map[string]time.Duration // by method
	out       map[string]bool          // methods that panic
	logs      *drivers.TaskConfig      // with the log pipes of the last process
	deaf      bool                     // its processes do not stop before they are killed, at the timeout of a stop
	isolation fsisolation.Mode
	lost      error // what WaitTask tells in place of how a process ended; its status knows that
	exec      func(cmd []string) (*drivers.ExecTaskResult, error)
	user      []int // the number of the user whom its images name, and those of its groups
}

func newWrapped(ctx context.Context, m *machine) *wrapped {
	return &wrapped{ctx: ctx, m: m, tasks: map[string]*taskProcess{}, fails: map[string]error{},
		takes: map[string]time.Duration{}, out: map[string]bool{}, isolation: fsisolation.Image}
}

// StartTaskAs is what docker has for files.
func (w *wrapped) StartTaskAs(cfg *drivers.TaskConfig, runsAs func(uid int, gids []int)) (
	*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if w.user != nil {
		runsAs(w.user[0], w.user[1:])
	}
	return w.StartTask(cfg)
}

// call records a call, lets it take its time and returns the error it is to fail with.
func (w *wrapped) call(method, about string) error {
	w.mu.Lock()
	w.calls = append(w.calls, strings.TrimSpace(method+" "+about))
	takes, err, out := w.takes[method], w.fails[method], w.out[method]
	w.mu.Unlock()
	if out {
		panic(vaulttest.Planted)
	}
	if takes > 0 {
		time.Sleep(takes)
	}
	if w.ctx.Err() != nil {
		return w.ctx.Err() // a process that was killed does nothing more
	}
	return err
}

// did returns the calls since it was last asked, but for those that change nothing.
func (w *wrapped) did() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.calls
	w.calls = nil
	return slices.DeleteFunc(calls, func(c string) bool { return c == "wait" })
}

func (w *wrapped) failing(method string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails[method] = err
}

func (w *wrapped) panics(method string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out[method] = true
}

func (w *wrapped) slow(method string, by time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.takes[method] = by
}

func (w *wrapped) logsTo(cfg *drivers.TaskConfig) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs = cfg
}

func (w *wrapped) process(id string) *taskProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tasks[id]
}

// wrappedState is in the handle. TaskConfig is where Nomad's exec has the environment.
type wrappedState struct {
	TaskConfig *drivers.TaskConfig
	PID        int
}

func (w *wrapped) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if err := w.call("start", ""); err != nil {
		return nil, nil, err
	}
	w.logsTo(cfg)
	if w.process(cfg.ID) != nil {
		return nil, nil, errors.New("wrapped: already started")
	}
	var config struct {
		Command string         `codec:"command"`
		Args    []string       `codec:"args"`
		Auth    map[string]any `codec:"auth"`
	}
	if err := cfg.DecodeDriverConfig(&config); err != nil || config.Command != "app" {
		return nil, nil, fmt.Errorf("wrapped: command %q, %w", config.Command, err)
	}
	w.m.mu.Lock()
	w.m.pids++
	p := &taskProcess{pid: w.m.pids, alloc: cfg.AllocID, env: maps.Clone(cfg.Env), args: config.Args, auth: config.Auth,
		ended: make(chan struct{})}
	w.m.procs[p.pid] = p
	w.m.mu.Unlock()
	w.mu.Lock()
	w.tasks[cfg.ID] = p
	w.mu.Unlock()
	handle := drivers.NewTaskHandle(1)
	handle.Config = cfg
	return handle, &drivers.DriverNetwork{IP: "10.0.0.7"}, handle.SetDriverState(wrappedState{cfg, p.pid})
}

func (w *wrapped) Capabilities() (*drivers.Capabilities, error) {
	return &drivers.Capabilities{FSIsolation: w.isolation}, nil
}

func (w *wrapped) RecoverTask(handle *drivers.TaskHandle) error {
	if err := w.call("recover", ""); err != nil {
		return err
	}
	w.logsTo(handle.Config)
	var state wrappedState
	if err := handle.GetDriverState(&state); err != nil {
		return err
	}
	for _, p := range w.m.running() {
		if p.pid == state.PID {
			w.mu.Lock()
			w.tasks[handle.Config.ID] = p
			w.mu.Unlock()
			return nil
		}
	}
	return fmt.Errorf("wrapped: no process %d", state.PID)
}

func (w *wrapped) WaitTask(ctx context.Context, id string) (<-chan *drivers.ExitResult, error) {
	if err := w.call("wait", ""); err != nil {
		return nil, err
	}
	p := w.process(id)
	if p == nil {
		return nil, drivers.ErrTaskNotFound
	}
	out := make(chan *drivers.ExitResult)
	go func() {
		defer close(out)
		select {
		case <-p.ended:
		case <-ctx.Done():
			return
		case <-w.ctx.Done():
			return
		}
		result := p.result
		if w.lost != nil {
			result = &drivers.ExitResult{ExitCode: -1, Err: w.lost}
		}
		select {
		case out <- result:
		case <-ctx.Done():
		case <-w.ctx.Done():
		}
	}()
	return out, nil
}

func (w *wrapped) StopTask(id string, timeout time.Duration, signal string) error {
	if err := w.call("stop", fmt.Sprint(timeout, " ", signal)); err != nil {
		return err
	}
	p := w.process(id)
	if p == nil {
		return drivers.ErrTaskNotFound
	}
	if w.deaf {
		select {
		case <-p.ended:
		case <-time.After(timeout):
		}
	}
	w.m.exit(p.pid, &drivers.ExitResult{ExitCode: 143, Signal: 15})
	return nil
}

func (w *wrapped) DestroyTask(id string, force bool) error {
	if err := w.call("destroy", ""); err != nil {
		return err
	}
	p := w.process(id)
	if p == nil {
		return drivers.ErrTaskNotFound
	}
	w.m.exit(p.pid, &drivers.ExitResult{ExitCode: 137, Signal: 9})
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tasks, id)
	return nil
}

// Sweep ends the processes of the allocation, which has one task.
func (w *wrapped) Sweep(cfg *drivers.TaskConfig) error {
	if err := w.call("sweep", cfg.AllocID+" "+cfg.Name); err != nil {
		return err
	}
	for _, p := range w.m.running() {
		if p.alloc == cfg.AllocID {
			w.m.exit(p.pid, &drivers.ExitResult{ExitCode: 137, Signal: 9})
		}
	}
	return nil
}

// Runs looks for a process of the allocation, which has one task.
func (w *wrapped) Runs(cfg *drivers.TaskConfig) bool {
	return slices.ContainsFunc(w.m.running(), func(p *taskProcess) bool { return p.alloc == cfg.AllocID })
}

// RunsAny looks for a process of the allocation.
func (w *wrapped) RunsAny(cfg *drivers.TaskConfig) bool { return w.Runs(cfg) }

func (w *wrapped) SignalTask(id, signal string) error {
	if err := w.call("signal", signal); err != nil {
		return err
	}
	p := w.process(id)
	if p == nil {
		return drivers.ErrTaskNotFound
	}
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.m.procs[p.pid] == nil {
		return errors.New("wrapped: the process has ended")
	}
	p.signals = append(p.signals, signal)
	return nil
}

func (w *wrapped) ExecTask(id string, cmd []string, timeout time.Duration) (*drivers.ExecTaskResult, error) {
	if err := w.call("exec", strings.Join(cmd, " ")); err != nil {
		return nil, err
	}
	if w.process(id) == nil {
		return nil, drivers.ErrTaskNotFound
	}
	if w.exec != nil {
		return w.exec(cmd)
	}
	return &drivers.ExecTaskResult{ExitResult: &drivers.ExitResult{}}, nil
}

func (w *wrapped) InspectTask(id string) (*drivers.TaskStatus, error) {
	p := w.process(id)
	if p == nil {
		return nil, drivers.ErrTaskNotFound
	}
	select {
	case <-p.ended:
		return &drivers.TaskStatus{ID: id, State: drivers.TaskStateExited, ExitResult: p.result}, nil
	default:
		return &drivers.TaskStatus{ID: id, State: drivers.TaskStateRunning}, nil
	}
}

// TaskStats tells the process's pid once a second, for as long as it runs.
func (w *wrapped) TaskStats(ctx context.Context, id string, interval time.Duration) (<-chan *drivers.TaskResourceUsage,
	error) {
	p := w.process(id)
	if p == nil {
		return nil, drivers.ErrTaskNotFound
	}
	out := make(chan *drivers.TaskResourceUsage)
	go func() {
		defer close(out)
		for {
			select {
			case out <- &drivers.TaskResourceUsage{Timestamp: int64(p.pid)}:
			case <-ctx.Done():
				return
			case <-p.ended:
				return
			}
			select {
			case <-time.After(interval):
			case <-ctx.Done():
				return
			case <-p.ended:
				return
			}
		}
	}()
	return out, nil
}

func (w *wrapped) TaskEvents(context.Context) (<-chan *drivers.TaskEvent, error) { return nil, nil }
