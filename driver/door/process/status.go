package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/door"
)

// A Status is what the plugin knows of its doors at one moment. It has no credential.
type Status struct {
	PID       int // of the process; zero: none runs
	Age       time.Duration
	Memory    int64                 // bytes that the process has in memory
	Unclaimed []string              // IDs of doors of an earlier plugin that no task has opened again, sorted
	Doors     map[string]DoorStatus // by ID
	Silent    bool                  // the process runs and does not say what it has counted
}

// A DoorStatus is one door. What it has counted in total never goes back while the plugin lives, also when the process
// dies: the counts of a new one are added to the last ones that were asked of the one before.
type DoorStatus struct {
	door.Counters
	Generation uint64 // of the credential; zero: none
	Refuses    string // why the door refuses all calls; empty: it has a credential that it may use
}

// Status asks the process what it has counted. When ctx ends before it answers, the last answers stand.
func (d *Doors) Status(ctx context.Context) Status {
	d.mu.Lock()
	r := d.running
	status := Status{Doors: make(map[string]DoorStatus, len(d.doors))}
	asked := make(map[*Door]func(context.Context) (message, error), len(d.doors))
	for _, o := range d.doors {
		if !o.claimed {
			status.Unclaimed = append(status.Unclaimed, o.spec.ID)
		}
		asked[o] = nil
		if r != nil {
			asked[o] = r.link.request(message{Count: &o.serial})
		}
	}
	d.mu.Unlock()
	slices.Sort(status.Unclaimed)
	if r != nil {
		status.PID, status.Age, status.Memory = r.pid, age(r.pid), memory(r.pid)
	}
	for o, answer := range asked {
		one, err := o.status(ctx, r, answer)
		status.Doors[o.spec.ID] = one
		status.Silent = status.Silent || errors.Is(err, context.DeadlineExceeded)
	}
	return status
}

// status returns the door with the answer of process r, of which there is none if answer is nil.
func (o *Door) status(ctx context.Context, r *running, answer func(context.Context) (message, error)) (
	s DoorStatus, err error) {
	var counted message
	if answer != nil {
		counted, err = answer(ctx)
	}
	o.doors.mu.Lock()
	defer o.doors.mu.Unlock()
	if counted.Counters != nil {
		s.Counters = o.counts.of(r, *counted.Counters)
	} else {
		s.Counters = o.counts.total()
	}
	c := o.credential
	if c != nil {
		s.Generation = c.Generation
	}
	switch stale := o.spec.Stale; {
	case c == nil:
		s.Refuses = "it has no credential"
	case stale > 0 && time.Since(c.ReadAt) > stale:
		s.Refuses = fmt.Sprintf("its credential could not be made anew for %s, and stale = %q",
			time.Since(c.ReadAt).Truncate(time.Second), stale)
	}
	return s, err
}

// A tally adds up what the processes have counted that served a door one after the other.
type tally struct {
	by     *running // the last one
	last   door.Counters
	before door.Counters // of the processes before it
}

// of returns the totals with what process r has counted, and what it has open.
func (t *tally) of(r *running, now door.Counters) door.Counters {
	if t.by != r {
		t.by, t.before, t.last = r, t.total(), door.Counters{}
	}
	t.last = greater(t.last, now) // two may ask at once
	sum := t.total()
	sum.Connections, sum.InFlight = max(now.Connections, 0), max(now.InFlight, 0)
	return sum
}

// total is what is known without asking.
func (t *tally) total() door.Counters {
	a, b := t.before, t.last
	return door.Counters{Calls: a.Calls + b.Calls, Refused: a.Refused + b.Refused, Failed: a.Failed + b.Failed,
		Sent: a.Sent + b.Sent, Received: a.Received + b.Received}
}

func greater(a, b door.Counters) door.Counters {
	return door.Counters{Calls: max(a.Calls, b.Calls), Refused: max(a.Refused, b.Refused),
		Failed: max(a.Failed, b.Failed), Sent: max(a.Sent, b.Sent), Received: max(a.Received, b.Received)}
}

// ticks are those of a second in which the kernel tells when a process began: 100 on each architecture that Go knows.
const ticks = 100

// age returns for how long a process has run, zero if it is not known.
func age(pid int) time.Duration {
	began, err := startTime(pid)
	if err != nil {
		return 0
	}
	after, err := strconv.ParseInt(began, 10, 64)
	var now unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return max(time.Duration(now.Nano())-time.Duration(after)*(time.Second/ticks), 0)
}

// memory returns how much a process has in memory, zero if it is not known.
func memory(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
