package driver

import (
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
