package driver

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"nomad-driver-vault/driver/template"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// An imageRunner is a wrapped driver that knows who a task runs as when it has the task's image. StartTaskAs is
// StartTask, and calls runsAs before the process starts: with the number of the user and those of its groups, of which
// the first is its own.
type imageRunner interface {
	StartTaskAs(cfg *drivers.TaskConfig, runsAs func(uid int, gids []int)) (
		*drivers.TaskHandle, *drivers.DriverNetwork, error)
}

// startAs starts the wrapped task. Before its process runs, own is called with who that will be, if the wrapped driver
// can tell. An error of own is one of the start.
func startAs(inner drivers.DriverPlugin, cfg *drivers.TaskConfig, own func(uid int, gids []int) error) (
	*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	runner, ok := inner.(imageRunner)
	if !ok {
		return inner.StartTask(cfg)
	}
	var unowned error
	handle, network, err := runner.StartTaskAs(cfg, func(uid int, gids []int) { unowned = own(uid, gids) })
	if err == nil && unowned != nil {
		err = errors.Join(unowned, inner.DestroyTask(cfg.ID, true))
	}
	return handle, network, err
}

// unreadable says which files the container's user cannot read, whose owner and mode the job sets, or leaves as Nomad
// has them. It is empty when there is none.
func unreadable(all []template.File, uid int, gids []int) string {
	var files []string
	for _, f := range all {
		if !f.Readable(uid, gids) {
			files = append(files, cmp.Or(f.Name, f.Path))
		}
	}
	if len(files) == 0 {
		return ""
	}
	return fmt.Sprintf("the container's user %d cannot read %s: set uid = %d there, or other perms", uid,
		strings.Join(files, ", "), uid)
}
