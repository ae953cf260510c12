// Package status shows what the plugins of this host do: it asks each for the document of package driver/status.
package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/operator"
)

const about = `Shows what each plugin process of this host does: its clusters, and for each task the tokens and secrets, until when
they are good, what happens to them next, and what is wrong. ALLOC, the beginning of an allocation's ID, shows all of
one allocation. No secret is shown. Only root may ask. Nothing is asked of Vault or Nomad.

The exit code is 0 if all is well, 1 if something needs a person, 2 for a wrong command line.`

const (
	// runDir has the state directories, unless the plugins' configuration says otherwise.
	runDir = "/run/nomad-driver-vault"
	// answersWithin is how long a plugin may take.
	answersWithin = 5 * time.Second
	// watchEvery is how often -watch asks again.
	watchEvery = 2 * time.Second
)

type options struct {
	json, watch, dump bool
	dirs              []string
	alloc             string
}

// Command returns the subcommand.
func Command() operator.Command {
	return operator.Command{Name: "status", Summary: "show what the plugins of this host do", About: about,
		Operands: "[ALLOC]", Flags: flags}
}

func flags(flags *flag.FlagSet) operator.Run {
	o := new(options)
	flags.BoolVar(&o.json, "json", false, "print JSON")
	flags.BoolVar(&o.watch, "watch", false, "show it again every two seconds, until Ctrl-C")
	flags.BoolVar(&o.dump, "dump", false, "print what each goroutine of the plugins does, for a bug report")
	flags.Func("state-dir", "`folder` that a plugin has as state_dir; may be repeated (default all below "+runDir+")",
		operator.Repeated(&o.dirs))
	return func(ctx context.Context, operands []string, t operator.Terminal) error {
		if err := o.complete(operands); err != nil {
			return err
		}
		return o.run(ctx, t)
	}
}

// complete takes the operand and checks what goes with what.
func (o *options) complete(operands []string) error {
	if len(operands) > 1 {
		return operator.Usagef("argument %q is not understood: flags stand before ALLOC", operands[1])
	}
	o.alloc = strings.Join(operands, "")
	if o.dump && (o.json || o.watch || o.alloc != "") {
		return operator.Usagef("-dump goes with -state-dir only")
	}
	return nil
}

func (o *options) run(ctx context.Context, t operator.Terminal) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	for {
		out, err := o.look(ctx)
		if o.watch && !o.json {
			out = append([]byte("\x1b[H\x1b[2J"), out...) // home, and nothing below it
		}
		if _, failed := t.Out.Write(out); failed != nil {
			return failed
		}
		if !o.watch {
			return err
		}
		select {
		case <-time.After(watchEvery):
		case <-ctx.Done():
			return err
		}
	}
}

// plugin is what one plugin process has answered.
type plugin struct {
	StateDir string `json:"state_dir"`
	Error    string `json:"error,omitempty"`
	*status.Document

	dump []byte
}

// look asks every plugin and returns what to print. The error is operator.ErrReported if that shows something that
// needs a person.
func (o options) look(ctx context.Context) ([]byte, error) {
	all, err := o.ask(ctx)
	if err != nil {
		return nil, err
	}
	if o.alloc != "" && !only(all, o.alloc) {
		return nil, fmt.Errorf("no plugin has an allocation whose ID begins with %q", o.alloc)
	}
	var out bytes.Buffer
	switch {
	case o.dump:
		for _, p := range all {
			fmt.Fprintf(&out, "=== %s %s\n%s\n", p.StateDir, p.Error, p.dump)
		}
	case o.json:
		encoder := json.NewEncoder(&out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(map[string]any{"plugins": all})
	default:
		for _, p := range all {
			p.print(&out, o.alloc != "")
		}
	}
	if err == nil && slices.ContainsFunc(all, (*plugin).needsAPerson) {
		err = operator.ErrReported
	}
	return out.Bytes(), err
}

// ask asks every plugin at once.
func (o options) ask(ctx context.Context) (all []*plugin, err error) {
	dirs := o.dirs
	if dirs == nil {
		if dirs, err = served(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	var asking sync.WaitGroup
	for _, dir := range dirs {
		p := &plugin{StateDir: dir}
		all = append(all, p)
		asking.Go(func() {
			if err := p.ask(ctx, o.dump); err != nil {
				p.Error = explain(err)
			}
		})
	}
	asking.Wait()
	return all, nil
}

// served returns the state directories that have a socket.
func served() (dirs []string, err error) {
	entries, err := os.ReadDir(runDir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: run it as root", err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for _, entry := range entries {
		dir := filepath.Join(runDir, entry.Name())
		if _, err := os.Lstat(filepath.Join(dir, status.Socket)); err == nil {
			dirs = append(dirs, dir)
		}
	}
	if dirs == nil {
		return nil, fmt.Errorf("no plugin serves below %s: is the agent running? If it has another state_dir, name that "+
			"with -state-dir", runDir)
	}
	return dirs, nil
}

func (p *plugin) ask(ctx context.Context, dump bool) (err error) {
	if dump {
		p.dump, err = status.Get(ctx, p.StateDir, "/debug/pprof/goroutine?debug=2")
		return err
	}
	answer, err := status.Get(ctx, p.StateDir, "/v1/status")
	if err != nil {
		return err
	}
	var doc status.Document
	if err := json.Unmarshal(answer, &doc); err != nil {
		return fmt.Errorf("decode its answer: %w", err)
	}
	p.Document = &doc
	return nil
}

// explain says what an error means and what to do.
func explain(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("it does not answer within %s", answersWithin)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the plugin has died and no other has taken its place: look at the agent's log"
	case errors.Is(err, fs.ErrNotExist):
		return "no plugin serves there: is the agent running, and is this its state_dir?"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied: run it as root"
	}
	return err.Error()
}

// only takes away all but the allocations whose ID begins with prefix, and reports whether there is one.
func only(all []*plugin, prefix string) (found bool) {
	for _, p := range all {
		if p.Document == nil {
			continue
		}
		p.Tasks = slices.DeleteFunc(p.Tasks, func(t status.Task) bool { return !strings.HasPrefix(t.Alloc, prefix) })
		p.Parked = slices.DeleteFunc(p.Parked, func(l status.Parked) bool { return !strings.HasPrefix(l.Alloc, prefix) })
		found = found || len(p.Tasks)+len(p.Parked) > 0
	}
	return found
}

// needsAPerson reports whether something is wrong that does not mend itself.
func (p *plugin) needsAPerson() bool {
	if p.Document == nil {
		return p.Error != ""
	}
	return p.Doors != nil && p.Doors.Trouble != "" ||
		slices.ContainsFunc(p.Clusters, func(c status.Cluster) bool { return wrongWith(c) != "" }) ||
		slices.ContainsFunc(p.Tasks, func(t status.Task) bool { return len(t.Trouble) > 0 }) ||
		slices.ContainsFunc(p.Parked, func(l status.Parked) bool { return l.Trouble != "" })
}

// wrongWith returns why a cluster needs a person, empty if it does not.
func wrongWith(c status.Cluster) string {
	switch {
	case !c.Reachable:
		return "does not answer"
	case c.TokenRole != "" && c.TokenRole != "ready":
		return c.TokenRole
	}
	return ""
}
