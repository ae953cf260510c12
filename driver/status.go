package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/status"
)

// What root can see of the plugin while it runs. Nothing here waits for Vault, for the agent or for a task: the
// goroutine of a task puts what it owns into task.shown, and every lock is one that nobody holds while he waits. The
// process that serves doors is waited for, but not for long.

// doorsAnswerWithin is how long that process may take to say what it has counted.
const doorsAnswerWithin = time.Second

// ServeStatus serves the status document in the state directory, as soon as that is there, until the plugin ends.
func (d *Driver) ServeStatus(p status.Plugin) {
	select {
	case <-d.keeping:
	case <-d.ctx.Done():
		return
	}
	at, err := d.kept().Listen(status.Socket)
	if err != nil {
		d.logger.Warn("nomad-driver-vault status does not see this plugin", "error", err)
		return
	}
	status.Serve(d.ctx, at, func() status.Document {
		doc := d.Status()
		p.Now = status.Time(time.Now())
		doc.Plugin = p
		return doc
	})
}

// Status returns what the plugin does at this moment, but for what the process is.
func (d *Driver) Status() status.Document {
	doc := status.Document{Tasks: []status.Task{}, Parked: d.parking.status()}
	d.mu.Lock()
	tasks := slices.Collect(maps.Values(d.tasks))
	d.mu.Unlock()
	var served process.Status
	doc.Doors, served = d.doorsStatus()
	for _, t := range tasks {
		doc.Tasks = append(doc.Tasks, t.status(served))
	}
	slices.SortFunc(doc.Tasks, func(a, b status.Task) int {
		return strings.Compare(state.Key(a.Alloc, a.Name), state.Key(b.Alloc, b.Name))
	})
	doc.Clusters = d.clusters.status()
	for i := range doc.Clusters {
		for _, t := range doc.Tasks {
			doc.Clusters[i].Add(t.Sessions)
		}
		for _, p := range doc.Parked {
			doc.Clusters[i].Add(p.Sessions)
		}
	}
	return doc
}

// doorsStatus returns what the process that serves doors is, nil where no task can have one, and what each door does.
func (d *Driver) doorsStatus() (*status.Doors, process.Status) {
	keeper := d.doorkeeper()
	if keeper == nil {
		return nil, process.Status{}
	}
	ctx, cancel := context.WithTimeout(d.ctx, doorsAnswerWithin)
	s := keeper.Status(ctx)
	cancel()
	out := &status.Doors{PID: s.PID, Memory: s.Memory, Open: len(s.Doors), Unclaimed: s.Unclaimed}
	switch {
	case s.PID == 0 && out.Open > 0:
		out.Trouble = "no process serves the doors: calls wait until one starts, and the agent's log says why none does"
	case s.Silent:
		out.Trouble = fmt.Sprintf("the process that serves doors does not answer within %s: kill %d, and another is started",
			doorsAnswerWithin, s.PID)
	}
	if s.PID != 0 {
		out.Since = status.Time(time.Now().Add(-s.Age))
	}
	return out, s
}

// status returns the task's doors by their names, and what is wrong with them.
func (d *doors) status(task string, served process.Status) (all []status.Door, trouble []string) {
	for _, name := range slices.Sorted(maps.Keys(d.conf.Doors)) {
		block := d.conf.Doors[name]
		one := status.Door{Name: name}
		one.Kind, one.Upstream = block.Upstream(d.conf.Vault(block.Common().Vault).Cluster)
		now, open := served.Doors[block.ID(task)]
		switch {
		case !open && d.ctx.Err() == nil: // it is not the end of the task
			trouble = append(trouble, fmt.Sprintf("door %q is not open: the task's log says why", name))
		case now.Refuses != "":
			trouble = append(trouble, fmt.Sprintf("door %q refuses all calls: %s", name, now.Refuses))
		}
		if one.Generation = now.Generation; one.Generation != 0 {
			one.Since = status.Time(time.Unix(0, int64(one.Generation))) // see doors.use
		}
		one.Connections, one.InFlight, one.Calls = now.Connections, now.InFlight, now.Calls
		one.Refused, one.Failed, one.Sent, one.Received = now.Refused, now.Failed, now.Sent, now.Received
		all = append(all, one)
	}
	return all, trouble
}

// status returns the clusters of the configuration, by name.
func (c *clusters) status() []status.Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []status.Cluster{}
	for _, name := range slices.Sorted(maps.Keys(c.clients)) {
		client := c.clients[name]
		all = append(all, status.Cluster{Name: name, Address: client.Config().Address, Reachable: true,
			TokenRole: client.Status()})
	}
	return all
}

func (t *task) status(served process.Status) status.Task {
	out := status.Task{Alloc: t.cfg.AllocID, Namespace: t.cfg.Namespace, Job: t.cfg.JobName, Group: t.cfg.TaskGroupName,
		Name: t.cfg.Name, State: "running", Sessions: t.credentials.Status(), Trouble: t.credentials.Problems()}
	if line := t.said.Load(); line != nil {
		out.Last = *line
	}
	if line := t.warned.Load(); line != nil {
		out.Warned = *line
	}
	select {
	case <-t.done:
		out.State = "ended"
		return out
	case <-t.begun:
	default:
		out.State = "starting"
		if why := t.waiting.Load(); why != nil {
			out.Trouble = append(out.Trouble, *why)
		}
		return out
	}
	if s := t.shown.Load(); s != nil {
		out.Generation, out.Since, out.Pending = s.generation, status.Time(s.since), s.pending
		out.Trouble = append(out.Trouble, s.wrong...)
	}
	doors, trouble := t.doors.status(taskKey(t.cfg), served)
	out.Doors, out.Trouble = doors, append(out.Trouble, trouble...)
	return out
}

// status returns what waits for the next run of its task, and what is being revoked.
func (p *parking) status() []status.Parked {
	var left []func() status.Parked
	p.mu.Lock()
	for _, l := range p.parked {
		left = append(left, l.status(l.until, ""))
	}
	for l, trouble := range p.revoking {
		left = append(left, l.status(time.Time{}, trouble))
	}
	p.mu.Unlock()
	all := []status.Parked{}
	for _, describe := range left {
		all = append(all, describe())
	}
	slices.SortFunc(all, func(a, b status.Parked) int {
		return strings.Compare(state.Key(a.Alloc, a.Name), state.Key(b.Alloc, b.Name))
	})
	return all
}

// status returns a function that describes l, for when parking's mu is not held any more. Call with it held.
func (l *parkedRun) status(until time.Time, trouble string) func() status.Parked {
	alloc, name, _ := strings.Cut(l.record.Key, "/")
	one := status.Parked{Alloc: alloc, Name: name, Held: l.record.Held != nil, Until: status.Time(until),
		Trouble: trouble, Sessions: []status.Session{}}
	set := l.shown
	return func() status.Parked {
		if set != nil {
			one.Sessions = set.Status()
		}
		return one
	}
}
