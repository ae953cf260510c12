package wrapped

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/client"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// dockerDriver is Nomad's docker. It puts back the one field that is lost on the way to an external plugin
// (plugins/drivers/utils.go) and that extra_labels can ask for, and has the whole output of nomad alloc exec.
type dockerDriver struct {
	containerDriver
	*concealer
	engine  *client.Client // what Nomad's driver asks too, set before the first start
	stopped sync.Map       // IDs of the tasks that were asked to stop
	asking  sync.Map       // the functions that StartTaskAs was given, by the names of containers
	logger  hclog.Logger
}

// engineConfig is where the engine is, of the plugin's config block.
type engineConfig struct {
	Endpoint string `codec:"endpoint"`
	TLS      struct {
		Cert string `codec:"cert"`
		Key  string `codec:"key"`
		CA   string `codec:"ca"`
	} `codec:"tls"`
}

// client returns a client of the engine. It asks nothing yet.
func (c engineConfig) client() (*client.Client, error) {
	options := []client.Opt{client.WithAPIVersionNegotiation()}
	switch {
	case c.Endpoint == "":
		options = append(options, client.FromEnv)
	case c.TLS.Cert+c.TLS.Key+c.TLS.CA != "":
		options = append(options, client.WithHost(c.Endpoint), client.WithTLSClientConfig(c.TLS.CA, c.TLS.Cert, c.TLS.Key))
	default:
		options = append(options, client.WithHost(c.Endpoint))
	}
	engine, err := client.NewClientWithOpts(options...)
	if err != nil {
		return nil, fmt.Errorf("make client of Docker's engine: %w", err)
	}
	return engine, nil
}

// SetConfig configures Nomad's docker, and finds the engine as it does (drivers/docker/driver.go, newDockerClient).
func (d *dockerDriver) SetConfig(c *base.Config) error {
	if err := d.containerDriver.SetConfig(c); err != nil {
		return err
	}
	var config engineConfig
	if err := base.MsgPackDecode(c.PluginConfig, &config); err != nil {
		return fmt.Errorf("decode plugin config: %w", err)
	}
	engine, err := config.client()
	d.engine = engine
	return err
}

// StartTask starts the task with the ID of its parent job, which a dispatched or periodic job has, and with mounts of
// its allocation that no link leads elsewhere: see allocMounts.
func (d *dockerDriver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if err := guard(cfg); err != nil {
		return nil, nil, err
	}
	mounts, err := newAllocMounts(cfg)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err := mounts.remove(cfg); err != nil {
			d.logger.Warn("cannot remove the mounts of a start", "task", cfg.Name, "error", err)
		}
	}()
	task := cfg.Copy()
	task.ParentJobID = cfg.Env["NOMAD_JOB_PARENT_ID"]
	if err := mounts.apply(task); err != nil {
		return nil, nil, err
	}
	handle, network, err := d.containerDriver.StartTask(task)
	if handle != nil {
		handle.Config = cfg
	}
	return handle, network, err
}

// StopTask stops the task, and notes that for WaitTask.
func (d *dockerDriver) StopTask(id string, timeout time.Duration, signal string) error {
	d.stopped.Store(id, true)
	return d.containerDriver.StopTask(id, timeout, signal)
}

// DestroyTask removes the task, and what is known of it.
func (d *dockerDriver) DestroyTask(id string, force bool) error {
	d.stopped.Delete(id)
	return d.containerDriver.DestroyTask(id, force)
}

// WaitTask explains the end of a container that somebody else removed: most often a second docker driver on the same
// engine, which takes our containers for lost ones of its own.
func (d *dockerDriver) WaitTask(ctx context.Context, id string) (<-chan *drivers.ExitResult, error) {
	ended, err := d.containerDriver.WaitTask(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make(chan *drivers.ExitResult, 1)
	go func() {
		defer close(out)
		for result := range ended {
			if _, stopped := d.stopped.Load(id); !stopped && result.ExitCode == killed && d.removed(ctx, id) {
				result.Err = errors.New(removedFromOutside)
			}
			out <- result
		}
	}()
	return out, nil
}

// removed reports whether the container has gone, or goes within a second: Docker kills it first.
func (d *dockerDriver) removed(ctx context.Context, id string) bool {
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

const removedFromOutside = "the container was removed from outside; if Nomad's own docker driver serves the same " +
	`engine, set in the agent's plugin "docker" { config { } }: gc { dangling_containers { enabled = false } }`

// keepForeignContainers turns the removal of dangling containers off wherever the operator has not set it. A docker
// driver takes the containers of every other docker driver on the same engine for its own lost ones, and removes them
// after five minutes (drivers/docker/reconcile_dangling.go). Three places hold the default, one for each level of
// blocks that can be left out.
func keepForeignContainers(options map[string]*hclspec.Spec) {
	gc := options["gc"].GetDefault()
	collect := blockOptions(gc)
	dangling := collect["dangling_containers"].GetDefault()
	remove := blockOptions(dangling)

	remove["enabled"] = withDefault(remove["enabled"], "false")
	collect["dangling_containers"] = hclspec.NewDefault(
		hclspec.NewBlock("dangling_containers", false, hclspec.NewObject(remove)), disabled(dangling))
	options["gc"] = hclspec.NewDefault(hclspec.NewBlock("gc", false, hclspec.NewObject(collect)), disabled(gc))
}

// blockOptions returns a copy of the options of a block that has a default.
func blockOptions(block *hclspec.Default) map[string]*hclspec.Spec {
	return maps.Clone(block.Primary.GetBlockValue().Nested.GetObject().Attributes)
}

// disabled returns the default of a block with its only "enabled" set to false.
func disabled(block *hclspec.Default) *hclspec.Spec {
	value := block.Default.GetLiteral().Value
	return hclspec.NewLiteral(strings.Replace(value, "enabled = true", "enabled = false", 1))
}
