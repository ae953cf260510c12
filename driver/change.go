package driver

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"nomad-driver-vault/driver/config"
	"slices"
	"strings"
	"time"
)

// changeOver is how long the old credentials live on after a process was told of new ones by signal or script.
const changeOver = 30 * time.Second

// change is what a newer generation asks of a task: one action, however many secrets changed.
type change struct {
	restart bool
	scripts []*config.ChangeScript
	signals []string
	splay   time.Duration // the longest of those that asked
	silent  bool          // something changed of which the process is not told
	what    []string      // what changed, for the log: destinations, and secrets by their names
}

// join adds another change to this one. The action is the strongest that anyone asked for.
func (c change) join(o change) change {
	c.restart = c.restart || o.restart
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
	c.splay, c.silent = max(c.splay, o.splay), c.silent || o.silent
	return c
}

// acts reports whether the task is told anything at all.
func (c change) acts() bool { return c.restart || len(c.scripts) > 0 || len(c.signals) > 0 }

// shares reports whether c asks for an action that o asks for too.
func (c change) shares(o change) bool {
	script := func(s *config.ChangeScript) bool { return slices.Contains(o.scripts, s) }
	signal := func(s string) bool { return slices.Contains(o.signals, s) }
	return slices.ContainsFunc(c.scripts, script) || slices.ContainsFunc(c.signals, signal)
}

// grace is how long what the change has replaced is still used once the action is done: not at all after a restart, and
// for ever by a process that was not told, which is a negative time.
func (c change) grace() time.Duration {
	switch {
	case c.restart:
		return 0
	case c.silent:
		return -1
	case c.acts():
		return changeOver
	default:
		return 0
	}
}

// delay draws how long to wait before acting, so that the tasks of a job do not all act together.
func (c change) delay() time.Duration {
	if c.splay <= 0 {
		return 0
	}
	return rand.N(c.splay)
}

func (c change) String() string { return strings.Join(c.what, ", ") }

// action is one thing by which a running process is told: a script, or else a signal.
type action struct {
	script *config.ChangeScript
	signal string
}

// actions are what the change does unless it restarts the process, in the order in which it is done.
func (c change) actions() (all []action) {
	for _, s := range c.scripts {
		all = append(all, action{script: s})
	}
	for _, s := range c.signals {
		all = append(all, action{signal: s})
	}
	return all
}

// change is one that asks for this action only.
func (a action) change() change {
	if a.script != nil {
		return change{scripts: []*config.ChangeScript{a.script}}
	}
	return change{signals: []string{a.signal}}
}

func (a action) String() string {
	if a.script != nil {
		return fmt.Sprintf("change_script %q", a.script.Command)
	}
	return "send " + a.signal
}

// done says of the action that it was done.
func (a action) done() string {
	if a.script != nil {
		return "ran " + a.script.Command
	}
	return "sent " + a.signal
}

// change is what a block with new bytes asks.
func (b *block) change() change {
	c := change{what: []string{b.what}}
	switch b.ChangeMode {
	case "restart":
		c.restart = true
	case "script":
		c.scripts = []*config.ChangeScript{b.ChangeScript}
	case "signal":
		c.signals = []string{b.ChangeSignal}
	default:
		c.silent = true
		return c
	}
	c.splay = b.SplayMax
	return c
}

// tokenChange is what a new token asks for.
func tokenChange(v *config.Vault) change {
	c := change{what: []string{"vault token"}}
	switch v.ChangeMode {
	case "restart":
		c.restart = true
	case "signal":
		c.signals = []string{v.ChangeSignal}
	default:
		c.silent = true
	}
	return c
}

// deliveredExcept returns the checksums of what the process has been told of: those in delivered, updated for every block
// and token of g whose action is not in undone.
func (g *generation) deliveredExcept(undone change, delivered map[string]string) map[string]string {
	known := map[string]string{}
	maps.Copy(known, delivered)
	for _, b := range g.blocks {
		if c := b.change(); c.acts() && !c.shares(undone) {
			for _, p := range b.outputs {
				known[p.key] = g.sums[p.key]
			}
		}
	}
	for i := range g.conf.Vaults {
		v := &g.conf.Vaults[i]
		if c := tokenChange(v); c.acts() && !c.shares(undone) {
			known[tokenSum(v.Name)] = g.sums[tokenSum(v.Name)]
		}
	}
	return known
}
