// Package status is what a plugin process says of itself while it runs, and the server that says it to root. Its types
// have no place for a secret: they hold names, paths, accessors, times and messages.
package status

import "time"

// Socket is the name of the socket in the plugin's state directory.
const Socket = "status.sock"

// Document is what a plugin process knows at one moment. Times are in UTC, in whole seconds; those that are left out
// mean never, or not at all.
type Document struct {
	Plugin   Plugin    `json:"plugin"`
	Clusters []Cluster `json:"clusters"`
	Doors    *Doors    `json:"doors,omitempty"` // nil where no task can have one
	Tasks    []Task    `json:"tasks"`
	Parked   []Parked  `json:"parked"`
}

// Plugin is the process.
type Plugin struct {
	Name    string    `json:"name"`  // that jobs use
	Wraps   string    `json:"wraps"` // the driver that it wraps
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Now     time.Time `json:"now"` // when the document was made
}

// Cluster is one Vault of the plugin's configuration, as the sessions there see it.
type Cluster struct {
	Name      string    `json:"name"`
	Address   string    `json:"address"`
	Reachable bool      `json:"reachable"` // no session says otherwise
	Down      time.Time `json:"down_since,omitzero"`
	Sessions  int       `json:"sessions"`
	Queue     int       `json:"queue"`               // what is due and not done yet
	Late      int       `json:"late_seconds"`        // for how long the oldest of that has been due
	TokenRole string    `json:"token_role,omitzero"` // ready, or why the cluster makes no tokens
}

// Add counts what sessions have to do with the cluster.
func (c *Cluster) Add(sessions []Session) {
	for _, s := range sessions {
		if s.Cluster != c.Name {
			continue
		}
		c.Sessions, c.Queue, c.Late = c.Sessions+1, c.Queue+s.Queue, max(c.Late, s.Late)
		if !s.Down.IsZero() && (c.Reachable || s.Down.Before(c.Down)) {
			c.Reachable, c.Down = false, s.Down
		}
	}
}

// Doors is the process that serves the doors of all tasks.
type Doors struct {
	PID       int       `json:"pid,omitzero"` // zero: none runs
	Since     time.Time `json:"since,omitzero"`
	Memory    int64     `json:"memory_bytes,omitzero"`
	Open      int       `json:"open"`
	Unclaimed []string  `json:"unclaimed,omitempty"` // those of an earlier plugin that no task has claimed yet
	Trouble   string    `json:"trouble,omitzero"`
}

// Door is one door of a task. What it has counted are totals since the plugin began, or the task if that is later.
type Door struct {
	Name       string    `json:"door"`
	Kind       string    `json:"kind"`                // api, vault or postgres
	Upstream   string    `json:"upstream"`            // the origin, the vault block's cluster, or host and database
	Generation uint64    `json:"generation,omitzero"` // of the credential, as the record has it; zero: there is none
	Since      time.Time `json:"generation_since,omitzero"`

	Connections int64 `json:"connections"` // open now
	InFlight    int64 `json:"in_flight"`   // calls, or sessions with a database
	Calls       int64 `json:"calls"`
	Refused     int64 `json:"refused"` // by the door
	Failed      int64 `json:"failed"`  // by the upstream: it was not reached, or broke off
	Sent        int64 `json:"sent_bytes"`
	Received    int64 `json:"received_bytes"`
}

// Task is one run of a task.
type Task struct {
	Alloc     string `json:"alloc_id"`
	Namespace string `json:"namespace,omitzero"`
	Job       string `json:"job,omitzero"`
	Group     string `json:"group,omitzero"`
	Name      string `json:"task"`
	State     string `json:"state"` // starting, running or ended

	Generation int       `json:"generation"` // how many this run of the task has used; zero: it has asked for nothing
	Since      time.Time `json:"generation_since,omitzero"`
	Pending    string    `json:"pending,omitzero"` // what has changed that the process was not told of yet
	Last       Line      `json:"last,omitzero"`    // what the task's log was told last
	Warned     Line      `json:"warned,omitzero"`  // the last warning there, which may be over
	Trouble    []string  `json:"trouble,omitempty"`
	Sessions   []Session `json:"sessions"`
	Doors      []Door    `json:"doors,omitempty"`
}

// Line is one line of a task's log.
type Line struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// Parked is what a run of a task has left: for the next run until that time, and then to be revoked.
type Parked struct {
	Alloc    string    `json:"alloc_id"`
	Name     string    `json:"task"`
	Held     bool      `json:"held,omitzero"`  // until no task of the allocation runs
	Until    time.Time `json:"until,omitzero"` // zero: it is held, or being revoked
	Trouble  string    `json:"trouble,omitzero"`
	Sessions []Session `json:"sessions"` // none where an earlier process has parked it
}

// Session is one token and what was read with it.
type Session struct {
	Name      string   `json:"vault"` // the task's vault block
	Cluster   string   `json:"cluster"`
	Role      string   `json:"role,omitzero"`
	Namespace string   `json:"namespace,omitzero"`
	Accessor  string   `json:"accessor,omitzero"`
	Policies  []string `json:"policies,omitempty"`
	External  bool     `json:"external,omitzero"` // the token is Nomad's, which renews and revokes it
	Upkeep             // of the token

	Down    time.Time `json:"down_since,omitzero"` // since when an outage lasts
	Queue   int       `json:"queue"`               // what is due and not done yet
	Late    int       `json:"late_seconds"`        // for how long the oldest of that has been due
	Spent   int       `json:"spent"`               // replaced leases and tokens that are not revoked yet
	Secrets []Secret  `json:"secrets"`
}

// Secret is one answer of Vault.
type Secret struct {
	Path   string `json:"path"`
	Kind   string `json:"kind"` // leased, expiring, rotating, polled, fixed
	Upkeep        // of the lease, or of the answer
}

// Upkeep is how a token or a secret is kept current.
type Upkeep struct {
	Ends    time.Time `json:"ends,omitzero"`
	Action  string    `json:"next_action,omitzero"` // renew, replace, read or compare
	Next    time.Time `json:"next,omitzero"`        // when
	Asking  time.Time `json:"asking_since,omitzero"`
	Trouble string    `json:"trouble,omitzero"` // what the last attempt failed with
}

// Time returns t as the document has it. The zero time stays zero.
func Time(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Second)
}
