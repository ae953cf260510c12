package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/drivers/docker"
	"github.com/hashicorp/nomad/drivers/exec"
	"github.com/hashicorp/nomad/drivers/rawexec"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-vault/driver/config"
)

// inner is one of Nomad's drivers and what we change of it. The changes to its defaults are for a plugin that runs
// beside the built-in driver: published under the wrapped driver's own name, that driver's defaults stay.
type inner struct {
	new func(context.Context, hclog.Logger) drivers.DriverPlugin

	// beside edits a copy of the wrapped driver's own options.
	beside func(attrs map[string]*hclspec.Spec)

	// options are ours, for this driver only.
	options func(beside bool) map[string]*hclspec.Spec

	// task are ours in a task's config block, for this driver only.
	task func() map[string]*hclspec.Spec

	// deniedUsers is the default of denied_users, as HCL. The client's own rule knows the names of Nomad's drivers
	// only (client/allocrunner/taskrunner/validate_hook.go), so that it does not reach a driver of ours.
	deniedUsers string

	// user is who a task runs as that names none; empty where the driver or the image decides.
	user string
}

var inners = map[string]inner{
	"exec": {
		new: func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin {
			return newExecRoot(logger, exec.NewExecDriver(ctx, logger).(processDriver))
		},
		options:     execOptions,
		deniedUsers: `["root"]`,
		user:        "nobody",
	},
	"docker": {
		new: func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin {
			return dockerDriver{docker.NewDockerDriver(ctx, logger).(containerDriver), new(sync.Map), logger}
		},
		beside:  keepForeignContainers,
		options: dockerOptions,
		task:    config.ImageAuthSpec,
	},
	"raw_exec": {
		new: func(ctx context.Context, logger hclog.Logger) drivers.DriverPlugin {
			return rawExecDriver{rawexec.NewRawExecDriver(ctx, logger).(processDriver)}
		},
		beside: enableRawExec,
		user:   strconv.Itoa(os.Geteuid()), // the agent's, whom the plugin inherits
	},
}

// Drivers returns the names of the drivers that can be wrapped, sorted.
func Drivers() []string { return slices.Sorted(maps.Keys(inners)) }

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

// rawExecDriver is Nomad's raw_exec. The agent cannot know that it supports no mounts, the field is lost on the way to an
// external plugin (plugins/drivers/server.go), so a volume_mount would be silently ignored.
type rawExecDriver struct{ processDriver }

// StartTask refuses a task that asks for mounts and starts any other.
func (d rawExecDriver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if len(cfg.Mounts) > 0 {
		return nil, nil, fmt.Errorf("volume_mount %q: raw_exec tasks see the host's own files and cannot mount volumes; "+
			"remove the block or use vault-exec or vault-docker", cfg.Mounts[0].TaskPath)
	}
	if err := guard(cfg); err != nil {
		return nil, nil, err
	}
	if err := checkHostCommand(cfg); err != nil {
		return nil, nil, err
	}
	return d.processDriver.StartTask(cfg)
}

// enableRawExec turns raw_exec on: who installs this plugin and configures it wants it, while Nomad has its own off
// because it is always there.
func enableRawExec(attrs map[string]*hclspec.Spec) {
	attrs["enabled"] = withDefault(attrs["enabled"], "true")
}

func dockerOptions(bool) map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{"auth_registries": hclspec.NewDefault(
		hclspec.NewAttr("auth_registries", "list(string)", false), hclspec.NewLiteral("[]"))}
}

// dockerDriver is Nomad's docker with the one field back that is lost on the way to an external plugin
// (plugins/drivers/utils.go) and that extra_labels can ask for.
type dockerDriver struct {
	containerDriver
	stopped *sync.Map // IDs of the tasks that were told to end
	logger  hclog.Logger
}

// StartTask starts the task with the ID of its parent job, which a dispatched or periodic job has, and with its own mounts: see stage.
func (d dockerDriver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if err := guard(cfg); err != nil {
		return nil, nil, err
	}
	s, err := newStage(cfg)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err := s.strike(cfg); err != nil {
			d.logger.Warn("cannot remove the mounts of a start", "task", cfg.Name, "error", err)
		}
	}()
	task := cfg.Copy()
	task.ParentJobID = cfg.Env["NOMAD_JOB_PARENT_ID"]
	if err := s.mountAll(task); err != nil {
		return nil, nil, err
	}
	handle, network, err := d.containerDriver.StartTask(task)
	if handle != nil {
		handle.Config = cfg
	}
	return handle, network, err
}

// StopTask stops the task, whose container has nobody else to end it then.
func (d dockerDriver) StopTask(id string, timeout time.Duration, signal string) error {
	d.stopped.Store(id, true)
	return d.containerDriver.StopTask(id, timeout, signal)
}

// DestroyTask removes the task, and what is known of it.
func (d dockerDriver) DestroyTask(id string, force bool) error {
	d.stopped.Delete(id)
	return d.containerDriver.DestroyTask(id, force)
}

// WaitTask explains the end of a container that somebody else removed: most often a second docker driver on the same
// engine, which takes our containers for lost ones of its own.
func (d dockerDriver) WaitTask(ctx context.Context, id string) (<-chan *drivers.ExitResult, error) {
	ended, err := d.containerDriver.WaitTask(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make(chan *drivers.ExitResult, 1)
	go func() {
		defer close(out)
		for result := range ended {
			if _, stopped := d.stopped.Load(id); !stopped && result.ExitCode == killed && d.removed(ctx, id) {
				result.Err = errors.New(removed)
			}
			out <- result
		}
	}()
	return out, nil
}

// removed reports whether the container has gone, or goes within a second: Docker kills it first.
func (d dockerDriver) removed(ctx context.Context, id string) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		if _, err := d.InspectTask(id); err != nil {
			return strings.Contains(err.Error(), "No such container")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// killed is the exit code of a container that was ended by SIGKILL.
const killed = 137

const removed = "the container was removed from outside; if Nomad's own docker driver serves the same engine, set in the " +
	`agent's plugin "docker" { config { } }: gc { dangling_containers { enabled = false } }`

// keepForeignContainers turns the removal of dangling containers off wherever the operator has not set it: a docker
// driver takes the containers of every other docker driver on the same engine for its own lost ones and removes them
// after five minutes (drivers/docker/reconcile_dangling.go). Three places hold the default, one for each level of blocks
// that can be left out.
func keepForeignContainers(attrs map[string]*hclspec.Spec) {
	gc := attrs["gc"].GetDefault()
	collect := blockAttrs(gc)
	dangling := collect["dangling_containers"].GetDefault()
	remove := blockAttrs(dangling)

	remove["enabled"] = withDefault(remove["enabled"], "false")
	collect["dangling_containers"] = hclspec.NewDefault(
		hclspec.NewBlock("dangling_containers", false, hclspec.NewObject(remove)), disabled(dangling))
	attrs["gc"] = hclspec.NewDefault(hclspec.NewBlock("gc", false, hclspec.NewObject(collect)), disabled(gc))
}

// blockAttrs returns a copy of the options of a block that has a default.
func blockAttrs(block *hclspec.Default) map[string]*hclspec.Spec {
	return maps.Clone(block.Primary.GetBlockValue().Nested.GetObject().Attributes)
}

// disabled returns the default of a block with its only "enabled" set to false.
func disabled(block *hclspec.Default) *hclspec.Spec {
	return hclspec.NewLiteral(strings.Replace(block.Default.GetLiteral().Value, "enabled = true", "enabled = false", 1))
}

// withDefault returns a copy of an option with another default, an HCL expression.
func withDefault(option *hclspec.Spec, value string) *hclspec.Spec {
	return hclspec.NewDefault(option.GetDefault().Primary, hclspec.NewLiteral(value))
}
