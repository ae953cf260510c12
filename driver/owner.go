package driver

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/template"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// A concealer is a wrapped driver that logs what it does. Until reveal is called its log does not have the values.
type concealer interface {
	Conceal(values map[string]string) (reveal func())
}

// An imageRunner is a wrapped driver that knows who a task runs as when it has the task's image. StartTaskAs is
// StartTask, and calls runsAs before the process starts: with the number of the user and those of its groups, of which
// the first is its own.
type imageRunner interface {
	StartTaskAs(cfg *drivers.TaskConfig, runsAs func(uid int, gids []int)) (
		*drivers.TaskHandle, *drivers.DriverNetwork, error)
}

// startWrapped starts the wrapped task. Nomad's drivers log the options of the tasks that they start.
func (t *task) startWrapped(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if c, logs := t.d.inner.(concealer); logs {
		defer c.Conceal(t.current.Options.Values())()
	}
	inner, ok := t.d.inner.(imageRunner)
	if !ok || len(t.current.Files) == 0 {
		return t.d.inner.StartTask(cfg)
	}
	var unowned error
	handle, network, err := inner.StartTaskAs(cfg, func(uid int, gids []int) { unowned = t.own(uid, gids) })
	if err == nil && unowned != nil {
		err = errors.Join(unowned, t.d.inner.DestroyTask(cfg.ID, true))
	}
	return handle, network, err
}

// own gives the files of the task's user to that one, and says which files the process cannot read.
func (t *task) own(uid int, gids []int) error {
	g := t.renderer.Own(t.current, uid, gids[0])
	root, err := os.OpenRoot(t.cfg.AllocDir)
	if err != nil {
		return fmt.Errorf("open allocation directory: %w", err)
	}
	defer root.Close()
	if err := template.Own(root, g.Files); err != nil {
		return err
	}
	t.current = g
	t.remember(func(r *state.Record) { r.Owner = []int{uid, gids[0]} })
	t.warnOfUnreadable(g, uid, gids)
	return nil
}

// warnOfUnreadable is about files whose owner and mode the job sets, or leaves as Nomad has them.
func (t *task) warnOfUnreadable(g *render.Generation, uid int, gids []int) {
	var files []string
	for _, f := range g.Files {
		if !f.Readable(uid, gids) {
			files = append(files, cmp.Or(f.Name, f.Path))
		}
	}
	if len(files) == 0 {
		return
	}
	text := fmt.Sprintf("the container's user %d cannot read %s: set uid = %d there, or other perms", uid,
		strings.Join(files, ", "), uid)
	t.warn("%s", text)
	t.event("%s", text)
}
