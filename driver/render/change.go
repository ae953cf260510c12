package render

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/config"
)

// ChangeOver is how long the old credentials stay valid after a process was told of new ones by a signal or a script.
const ChangeOver = 30 * time.Second

// Change is what a newer generation asks of a task: one action, however many secrets changed.
type Change struct {
	Restart bool
	scripts []*config.ChangeScript
	signals []string
	Splay   time.Duration // the longest of those that asked
	Silent  bool          // something changed of which the process is not told
	Doors   bool          // a door has another credential: the process has nothing to be told of it
	what    []string      // what changed, for the log: destinations, and secrets by their names
}

// Join adds another change to this one. The action is the strongest that either asks for.
func (c Change) Join(o Change) Change {
	c.Restart = c.Restart || o.Restart
	for _, s := range o.scripts {
		if !slices.Contains(c.scripts, s) {
			c.scripts = append(c.scripts, s)
		}
	}
	for _, s := range o.signals {
		if !slices.Contains(c.signals, s) {
			c.signals = append(c.signals, s)
		}
	}
	for _, w := range o.what {
		if !slices.Contains(c.what, w) {
			c.what = append(c.what, w)
		}
	}
	c.Splay, c.Silent, c.Doors = max(c.Splay, o.Splay), c.Silent || o.Silent, c.Doors || o.Doors
	return c
}

// Acts reports whether the process is restarted, signalled, or a script is run.
func (c Change) Acts() bool { return c.Restart || len(c.scripts) > 0 || len(c.signals) > 0 }

// shares reports whether c asks for an action that o asks for too.
func (c Change) shares(o Change) bool {
	script := func(s *config.ChangeScript) bool { return slices.Contains(o.scripts, s) }
	signal := func(s string) bool { return slices.Contains(o.signals, s) }
	return slices.ContainsFunc(c.scripts, script) || slices.ContainsFunc(c.signals, signal)
}

// Grace returns how long what the change has replaced stays valid once the action is done: not at all after a
// restart. It is negative, for until its TTL ends, when the process is not told of something.
func (c Change) Grace() time.Duration {
	switch {
	case c.Restart:
		return 0
	case c.Silent:
		return -1
	case c.Acts():
		return ChangeOver
	default:
		return 0
	}
}

// Delay draws how long to wait before acting, so that the tasks of a job do not all act together.
func (c Change) Delay() time.Duration {
	if c.Splay <= 0 {
		return 0
	}
	return rand.N(c.Splay)
}

// String returns what changed.
func (c Change) String() string { return strings.Join(c.what, ", ") }

// Action is one thing that is done to a running process: a script is run, or else a signal is sent.
type Action struct {
	Script *config.ChangeScript
	Signal string
}

// Actions returns what the change does unless it restarts the process, in the order in which it is done.
func (c Change) Actions() (all []Action) {
	for _, s := range c.scripts {
		all = append(all, Action{Script: s})
	}
	for _, s := range c.signals {
		all = append(all, Action{Signal: s})
	}
	return all
}

// Change returns one that asks for this action only.
func (a Action) Change() Change {
	if a.Script != nil {
		return Change{scripts: []*config.ChangeScript{a.Script}}
	}
	return Change{signals: []string{a.Signal}}
}

// String returns what is to be done.
func (a Action) String() string {
	if a.Script != nil {
		return fmt.Sprintf("change_script %q", a.Script.Command)
	}
	return "send " + a.Signal
}

// Done returns that it was done.
func (a Action) Done() string {
	if a.Script != nil {
		return "ran " + a.Script.Command
	}
	return "sent " + a.Signal
}

// tokenChange is what a new token asks for.
func tokenChange(v *config.Vault) Change {
	c := Change{what: []string{"vault token"}}
	switch v.ChangeMode {
	case "restart":
		c.Restart = true
	case "signal":
		c.signals = []string{v.ChangeSignal}
	default:
		c.Silent = true
	}
	return c
}
