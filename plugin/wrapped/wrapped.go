// Package wrapped has Nomad's own exec, docker and raw_exec drivers, each with the few changes that make it work
// outside of the agent and keep its tasks from what root does in their directories, and finds and ends the processes
// that they leave when a plugin dies.
package wrapped

import (
	"context"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/drivers/docker"
	"github.com/hashicorp/nomad/drivers/exec"
	"github.com/hashicorp/nomad/drivers/rawexec"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// Driver is one of Nomad's drivers and what we change of it. A plugin is "beside" Nomad's driver unless it is
// published under that driver's own name. Our defaults are for a plugin beside Nomad's driver; in its place, Nomad's
// defaults stay.
type Driver struct {
	// New returns the driver. Nothing that it starts outlives ctx.
	New func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin

	// ChangeDefaults edits a copy of the driver's own plugin options for a plugin beside it. It can be nil.
	ChangeDefaults func(options map[string]*hclspec.Spec)

	// Options returns the plugin options that we add for this driver only. It can be nil.
	Options func(beside bool) map[string]*hclspec.Spec

	// PullsImages says that a task has an image, for which the driver may log in to a registry.
	PullsImages bool

	// DeniedUsers is the default of denied_users beside Nomad's driver. The client's own rule knows the names of Nomad's
	// drivers only (client/allocrunner/taskrunner/validate_hook.go), so that it does not reach a driver of ours.
	DeniedUsers []string

	// User is who a task runs as that names no user; empty where the driver or the image decides.
	User string
}

var all = map[string]Driver{
	"exec": {
		New: func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin {
			c := newConcealer()
			return newExecDriver(logger, c, exec.NewExecDriver(ctx, c.log(logger)).(processDriver))
		},
		Options:     execOptions,
		DeniedUsers: []string{"root"},
		User:        "nobody",
	},
	"docker": {
		New: func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin {
			c := newConcealer()
			nomads := docker.NewDockerDriver(ctx, c.log(logger)).(containerDriver)
			d := &dockerDriver{containerDriver: nomads, concealer: c, logger: logger}
			c.line = func(msg string, args []any) { d.created(ctx, msg, args) }
			return d
		},
		ChangeDefaults: keepForeignContainers,
		PullsImages:    true,
	},
	"raw_exec": {
		New: func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin {
			c := newConcealer()
			return rawExecDriver{rawexec.NewRawExecDriver(ctx, c.log(logger)).(processDriver), c}
		},
		ChangeDefaults: enableRawExec,
		User:           strconv.Itoa(os.Geteuid()), // the agent's, which the plugin inherits
	},
}

// Names returns Nomad's names of the drivers, sorted.
func Names() []string { return slices.Sorted(maps.Keys(all)) }

// Find returns the driver of one of Names, and the zero Driver for any other name.
func Find(name string) Driver { return all[name] }

// processDriver and containerDriver are what Nomad's drivers implement beyond drivers.DriverPlugin, spelled out because
// embedding that interface alone would hide it.
type processDriver interface {
	drivers.DriverPlugin
	drivers.ExecTaskStreamingRawDriver
}

type containerDriver interface {
	drivers.DriverPlugin
	drivers.ExecTaskStreamingDriver
	drivers.DriverNetworkManager
}

// withDefault returns a copy of an option with another default, an HCL expression.
func withDefault(option *hclspec.Spec, value string) *hclspec.Spec {
	return hclspec.NewDefault(option.GetDefault().Primary, hclspec.NewLiteral(value))
}
