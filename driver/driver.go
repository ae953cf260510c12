// Package driver is the life of one task: start, run, change, stop, recover. It wraps another Nomad driver, which runs
// the task's processes, and is the only place where identity, Vault, Nomad's own data and templates meet.
//
// A task has one goroutine that acts on it (task.run); the methods of Driver hand requests to it. What a task gets
// comes in generations (package render): all of its files and environment from one reading of its secrets.
package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/state"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/drivers/shared/eventer"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// Driver implements the task RPCs of a Nomad driver plugin around a wrapped one. Package plugin adds what the agent
// asks of the plugin as such.
type Driver struct {
	*clusters

	ctx     context.Context // of the plugin: its end is not the end of any task
	logger  hclog.Logger
	name    string
	inner   drivers.DriverPlugin
	events  *eventer.Eventer
	outbox  chan *drivers.TaskEvent // ours, on their way to events
	idled   chan struct{}           // closed when ctx has ended and nothing is asked of Vault any more
	once    sync.Once               // of Serve
	pumping sync.Mutex              // guards pumped
	pumped  bool

	parking *parking // what waits for the next run of its task

	mu    sync.Mutex       // guards what follows
	tasks map[string]*task // by taskKey: the only run, until it is destroyed
	store *state.Store     // nil until Serve, and where sessions cannot be kept
	doors doorkeeper       // nil as long as store is

	keeping chan struct{} // closed once store is set
}

// New wraps inner under the published name. It acts on nothing before the first task. When ctx ends it leaves
// everything as it is: the tasks go on, and the next plugin process takes them over.
func New(ctx context.Context, logger hclog.Logger, name string, inner drivers.DriverPlugin) *Driver {
	d := &Driver{ctx: ctx, logger: logger, name: name, inner: inner, events: eventer.NewEventer(ctx, logger),
		outbox:   make(chan *drivers.TaskEvent, 64),
		clusters: newClusters(logger, name), tasks: map[string]*task{}, idled: make(chan struct{}),
		keeping: make(chan struct{})}
	d.parking = &parking{ctx: ctx, logger: logger, inner: inner, store: d.kept, env: d.env,
		parked: map[string]*parkedRun{}, revoking: map[*parkedRun]string{}}
	context.AfterFunc(ctx, func() {
		d.closeClients()
		if s := d.kept(); s != nil {
			s.Close() // before the process ends, whoever else does it
		}
		close(d.idled)
	})
	return d
}

// endWithin is how long the process of a plugin may take to end: the agent kills it after two seconds (go-plugin
// v1.7.0, client.go, Kill).
const endWithin = 1500 * time.Millisecond

// End waits, once ctx has ended, until no request to Vault is under way, but not for long. A process that ends
// earlier cuts requests off, and Vault forgets what it was making for them.
func (d *Driver) End() {
	select {
	case <-d.idled:
	case <-time.After(endWithin):
	}
}

// Serve opens the state directory, looks after the clusters' own tokens, and takes over what an earlier plugin
// process left: what no task of this agent claims in time is revoked. It is not part of Configure because Nomad also
// configures plugin processes that only validate and must change nothing.
func (d *Driver) Serve() {
	d.once.Do(func() {
		d.clusters.serve()
		d.openState()
		go d.tendState()
	})
}

// kept returns the state directory, nil where there is none.
func (d *Driver) kept() *state.Store {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.store
}

// doorkeeper returns what opens doors, nil where nothing could be kept of them.
func (d *Driver) doorkeeper() doorkeeper {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.doors
}

// WaitTask returns a channel that gets the result when the task has ended for good: restarts that this driver makes are
// not an end.
func (d *Driver) WaitTask(ctx context.Context, id string) (<-chan *drivers.ExitResult, error) {
	t, ok := d.task(id)
	if !ok {
		return nil, drivers.ErrTaskNotFound
	}
	ch := make(chan *drivers.ExitResult)
	go func() {
		defer close(ch)
		select {
		case <-t.done:
			select {
			case ch <- t.result.Copy():
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}()
	return ch, nil
}

// StopTask stops the task and returns when its process has ended. An unknown task has been stopped already: an error
// would make the agent try again for minutes.
func (d *Driver) StopTask(id string, timeout time.Duration, signal string) error {
	t, ok := d.task(id)
	if !ok {
		return nil
	}
	return t.stop(timeout, signal)
}

// DestroyTask forgets a task that has ended, and with force one that still runs. One that is not known here can be
// known to the wrapped driver all the same, after a RecoverTask that failed half way.
func (d *Driver) DestroyTask(id string, force bool) error {
	t, ok := d.task(id)
	if !ok {
		return ignoreUnknown(d.inner.DestroyTask(id, force))
	}
	select {
	case <-t.done:
	default:
		if !force {
			return fmt.Errorf("destroy task %s: it is running", id)
		}
	}
	return d.destroy(t, 0, "")
}

// destroy forgets a run, which is stopped before if it has not ended.
func (d *Driver) destroy(t *task, timeout time.Duration, signal string) error {
	if err := t.stop(timeout, signal); err != nil {
		return err
	}
	defer d.forget(t) // last, so that the next run cannot meet what is removed here
	return ignoreUnknown(d.inner.DestroyTask(t.cfg.ID, true))
}

func ignoreUnknown(err error) error {
	if errors.Is(err, drivers.ErrTaskNotFound) {
		return nil
	}
	return err
}

// InspectTask returns the wrapped driver's view of the task while it runs, and how it ended afterwards. Between the two
// processes of a restart that this driver makes the task runs.
func (d *Driver) InspectTask(id string) (*drivers.TaskStatus, error) {
	t, ok := d.task(id)
	if !ok {
		return nil, drivers.ErrTaskNotFound
	}
	status, err := d.inner.InspectTask(id)
	if errors.Is(err, drivers.ErrTaskNotFound) {
		status, err = &drivers.TaskStatus{ID: id, Name: t.cfg.Name, State: drivers.TaskStateRunning}, nil
	}
	if err != nil {
		return nil, err
	}
	select {
	case <-t.done:
		status.State, status.ExitResult = drivers.TaskStateExited, t.result.Copy()
	default:
	}
	return status, nil
}

// TaskStats streams the wrapped driver's statistics, over restarts that this driver makes too.
func (d *Driver) TaskStats(ctx context.Context, id string, interval time.Duration) (
	<-chan *drivers.TaskResourceUsage, error) {
	t, ok := d.task(id)
	if !ok {
		return nil, drivers.ErrTaskNotFound
	}
	first, err := d.inner.TaskStats(ctx, id, interval)
	if err := ignoreUnknown(err); err != nil {
		return nil, err
	}
	out := make(chan *drivers.TaskResourceUsage)
	go t.stats(ctx, first, out, interval)
	return out, nil
}

// TaskEvents streams our events and the wrapped driver's.
func (d *Driver) TaskEvents(ctx context.Context) (<-chan *drivers.TaskEvent, error) {
	d.pumping.Lock()
	defer d.pumping.Unlock()
	if !d.pumped {
		inner, err := d.inner.TaskEvents(d.ctx)
		if err != nil {
			return nil, err // and the next call tries again
		}
		go d.pump(inner)
		d.pumped = true
	}
	return d.events.TaskEvents(ctx)
}

// SignalTask sends a signal to the task's process. Between the two processes of a restart that this driver makes it
// waits for the new one.
func (d *Driver) SignalTask(id, signal string) error {
	t, ok := d.task(id)
	if !ok {
		return drivers.ErrTaskNotFound
	}
	return t.signal(signal)
}

// ExecTask runs a command in the task.
func (d *Driver) ExecTask(id string, cmd []string, timeout time.Duration) (*drivers.ExecTaskResult, error) {
	return d.inner.ExecTask(id, cmd, timeout)
}

// env is what the credentials of a task need of the plugin.
func (d *Driver) env() credentials.Env {
	permit := func(block config.Vault, namespace string) error { return d.configured().PermitVault(block, namespace) }
	return credentials.Env{Client: d.client, ClientOf: d.clientOf, Permit: permit, Plugin: d.configured().Name,
		Done: d.ctx.Done(), Logger: d.logger}
}

// guard calls f, and returns a panicError in place of a panic.
func (d *Driver) guard(task, what string, f func() error) error {
	return guard(d.logger, task, what, f)
}

// taskKey identifies a task across its runs, each of which has an ID of its own.
func taskKey(cfg *drivers.TaskConfig) string { return state.Key(cfg.AllocID, cfg.Name) }

// task returns the run with that ID, of which the agent knows now. One that is starting is waited for.
func (d *Driver) task(id string) (*task, bool) {
	t := d.find(id)
	if t == nil {
		return nil, false
	}
	select {
	case <-t.begun:
	case <-d.ctx.Done():
	}
	if d.find(id) != t { // the start failed
		return nil, false
	}
	t.acknowledge()
	return t, true
}

func (d *Driver) find(id string) *task {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tasks {
		if t.cfg.ID == id {
			return t
		}
	}
	return nil
}

// enter makes t the run of its task, unless there is another one, which it returns.
func (d *Driver) enter(t *task) (other *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other = d.tasks[t.record.Key]; other == nil {
		d.tasks[t.record.Key] = t
	}
	return other
}

// forget is for a run that nobody can ask about any more.
func (d *Driver) forget(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tasks[t.record.Key] == t {
		delete(d.tasks, t.record.Key)
	}
}
