package driver

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// changeOver is how long the old credentials live on after a process was told of new ones by signal or script.
const changeOver = 30 * time.Second

// change is what a newer generation asks of a task: one action, however many secrets changed.
type change struct {
	restart bool
	scripts []*ChangeScriptConfig
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
	script := func(s *ChangeScriptConfig) bool { return slices.Contains(o.scripts, s) }
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
	script *ChangeScriptConfig
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
		return change{scripts: []*ChangeScriptConfig{a.script}}
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
func (b *product) change() change {
	c := change{what: []string{b.what}}
	switch b.ChangeMode {
	case "restart":
		c.restart = true
	case "script":
		c.scripts = []*ChangeScriptConfig{b.ChangeScript}
	case "signal":
		c.signals = []string{b.ChangeSignal}
	default:
		c.silent = true
		return c
	}
	c.splay = b.splay
	return c
}

// change is what a new token asks.
func (v *VaultConfig) change() change {
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

// knownBut is what a process knows that knew told, once it was told of g by all actions but those undone.
func (g *generation) knownBut(undone change, told map[string]checksum, conf *TaskConfig) map[string]checksum {
	known := map[string]checksum{}
	maps.Copy(known, told)
	for _, b := range conf.blocks {
		if c := b.change(); c.acts() && !c.shares(undone) {
			for _, p := range b.parts {
				known[p.key] = g.sums[p.key]
			}
		}
	}
	for i := range conf.Vaults {
		v := &conf.Vaults[i]
		if c := v.change(); c.acts() && !c.shares(undone) {
			known[tokenSum(v.Name)] = g.sums[tokenSum(v.Name)]
		}
	}
	return known
}
