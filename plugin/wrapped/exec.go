package wrapped

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-vault/plugin/execroot"
)

// The values of the option filesystem. An operator who publishes us as "exec" gets Nomad's own by default.
const (
	filesystemBind   = "bind"
	filesystemChroot = "chroot"
)

// execOptions are our options of a plugin that wraps exec; beside says that it is not published as "exec".
func execOptions(beside bool) map[string]*hclspec.Spec {
	filesystem := filesystemBind
	if !beside {
		filesystem = filesystemChroot
	}
	options := map[string]*hclspec.Spec{"filesystem": hclspec.NewDefault(
		hclspec.NewAttr("filesystem", "string", false), hclspec.NewLiteral(`"`+filesystem+`"`))}
	maps.Copy(options, execroot.Options())
	return options
}

// execConfig is what we read of the plugin's config block for exec, beside execroot.Config.
type execConfig struct {
	Filesystem string                 `codec:"filesystem"`
	PIDMode    string                 `codec:"default_pid_mode"` // Nomad's own option, for tasks that do not say
	Vault      map[string]*vaultFiles `codec:"vault"`
}

// vaultFiles are the files of a vault block that are secrets.
type vaultFiles struct {
	TokenFile string `codec:"token_file"`
	KeyFile   string `codec:"key_file"`
}

// execDriver is Nomad's exec with another root for its tasks: see package execroot. Isolation is the same as in Nomad's
// exec, since the same executor makes the mounts.
type execDriver struct {
	processDriver
	*concealer
	config   execConfig // set before the first start
	roots    *execroot.Builder
	users    sync.Map // numbers of the users of the tasks, by ID
	taskDirs sync.Map // directories of the tasks that were started in a root of ours, by ID
	logger   hclog.Logger
}

func newExecDriver(logger hclog.Logger, c *concealer, nomads processDriver) *execDriver {
	return &execDriver{processDriver: nomads, concealer: c, roots: execroot.New(logger), logger: logger}
}

// SetConfig reads our options and configures Nomad's exec. An error names the field.
func (d *execDriver) SetConfig(c *base.Config) error {
	var config execConfig
	var root execroot.Config
	err := errors.Join(base.MsgPackDecode(c.PluginConfig, &config), base.MsgPackDecode(c.PluginConfig, &root))
	if err != nil {
		return fmt.Errorf("decode plugin config: %w", err)
	}
	if config.Filesystem != filesystemBind && config.Filesystem != filesystemChroot {
		return fmt.Errorf("plugin config: filesystem %q: set %q or %q", config.Filesystem, filesystemBind, filesystemChroot)
	}
	if err := d.roots.Configure(root); err != nil {
		return err
	}
	d.config = config
	return d.processDriver.SetConfig(c)
}

func (d *execDriver) buildsRoots() bool { return d.config.Filesystem == filesystemBind }

// Capabilities says that a task's root is not Nomad's to build, which is what image isolation means.
func (d *execDriver) Capabilities() (*drivers.Capabilities, error) {
	caps, err := d.processDriver.Capabilities()
	if err != nil || !d.buildsRoots() {
		return caps, err
	}
	bind := *caps
	bind.FSIsolation = fsisolation.Image
	return &bind, nil
}

// Fingerprint reports what Nomad's exec reports, and an unhealthy driver until the host's directories can be mounted.
func (d *execDriver) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	reports, err := d.processDriver.Fingerprint(ctx)
	if err != nil || !d.buildsRoots() {
		return reports, err
	}
	checked := make(chan *drivers.Fingerprint)
	go func() {
		defer close(checked)
		var usable bool
		for report := range reports { // to its end even when ctx is done: Nomad's drivers block on a report nobody takes
			usable = usable || d.checkRoots(report)
			select {
			case checked <- report:
			case <-ctx.Done():
			}
		}
	}()
	return checked, nil
}

// checkRoots makes the report of a healthy driver unhealthy when the host's directories cannot be mounted. It returns
// whether they can.
func (d *execDriver) checkRoots(report *drivers.Fingerprint) bool {
	err := d.roots.Check()
	if err != nil && report.Health == drivers.HealthStateHealthy {
		report.Health, report.HealthDescription = drivers.HealthStateUnhealthy, err.Error()
	}
	return err == nil
}

// Env returns the environment of a task as Nomad's exec would have it.
func (d *execDriver) Env(given map[string]string) map[string]string {
	if !d.buildsRoots() {
		return given
	}
	return d.roots.Env(given)
}

// StartTask starts the task in a root of read-only mounts. The handle has the configuration as it was given: what is
// added here is made anew, from the host of that day, whenever the task is started again.
func (d *execDriver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	task := cfg
	if d.buildsRoots() {
		task = withResolver(cfg)
	}
	if err := guard(task); err != nil {
		return nil, nil, err
	}
	d.rememberUser(cfg)
	if !d.buildsRoots() {
		d.warnOfSecrets(cfg)
		return d.processDriver.StartTask(cfg)
	}
	if err := d.checkPIDMode(cfg); err != nil {
		return nil, nil, err
	}
	d.taskDirs.Store(cfg.ID, cfg.TaskDir().Dir)
	task, release, err := d.roots.Build(task)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	handle, network, err := d.processDriver.StartTask(task)
	if handle != nil {
		handle.Config = cfg
	}
	return handle, network, err
}

// withResolver returns the task with a resolver that it can reach. In a network namespace of its own systemd-resolved's
// address, 127.0.0.53, leads nowhere. Nomad's exec looks for that only where there is a dns block, and then has the
// servers that systemd-resolved asks; an empty block changes nothing else (drivers/shared/resolvconf).
func withResolver(cfg *drivers.TaskConfig) *drivers.TaskConfig {
	if cfg.DNS != nil || cfg.NetworkIsolation == nil || cfg.NetworkIsolation.Path == "" {
		return cfg
	}
	task := cfg.Copy()
	task.DNS = &drivers.DNSConfig{}
	return task
}

// RecoverTask takes over a task that an earlier plugin process has started.
func (d *execDriver) RecoverTask(handle *drivers.TaskHandle) error {
	err := d.processDriver.RecoverTask(handle)
	if err != nil || handle == nil || handle.Config == nil {
		return err
	}
	d.rememberUser(handle.Config)
	if d.buildsRoots() {
		d.taskDirs.Store(handle.Config.ID, handle.Config.TaskDir().Dir)
	}
	return nil
}

// rememberUser notes who a task runs as, and what nomad alloc exec runs in it.
func (d *execDriver) rememberUser(cfg *drivers.TaskConfig) {
	if uid, known := uidOf(cmp.Or(cfg.User, Find("exec").User)); known {
		d.users.Store(cfg.ID, uid)
	}
}

// DestroyTask removes the task, and the mount points that the executor has made in its directory.
func (d *execDriver) DestroyTask(id string, force bool) error {
	err := d.processDriver.DestroyTask(id, force)
	if err != nil && !errors.Is(err, drivers.ErrTaskNotFound) {
		return err
	}
	d.users.Delete(id)
	if dir, started := d.taskDirs.LoadAndDelete(id); started {
		if err := d.roots.RemoveMountPoints(dir.(string)); err != nil {
			d.logger.Warn("cannot remove the mount points of a task", "path", dir, "error", err)
		}
	}
	return err
}

// ErrHostProcesses refuses a task the view of the host's processes.
var ErrHostProcesses = errors.New(`config pid_mode "host" is not allowed: among the host's processes a task reaches ` +
	`the host's files; leave it out, or have this node's operator set default_pid_mode = "host"`)

// checkPIDMode refuses a task the view of the host's processes unless the operator gives it to all tasks. With
// CAP_SETUID, which Nomad's exec gives it, a task becomes the user of any process that has no capabilities. The
// /proc/<pid>/root of that process is the host's own root, and the task can read and write there.
func (d *execDriver) checkPIDMode(cfg *drivers.TaskConfig) error {
	const host = "host"
	var options struct {
		PIDMode string `codec:"pid_mode"`
	}
	if err := cfg.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	if options.PIDMode == host && d.config.PIDMode != host {
		return ErrHostProcesses
	}
	return nil
}

// warnOfSecrets logs which secrets of the plugin's configuration a task in a chroot can read. Nomad has made the
// chroot of the client's chroot_env, which is not known here, and owners and modes keep no task out.
func (d *execDriver) warnOfSecrets(cfg *drivers.TaskConfig) {
	for name, c := range d.config.Vault {
		for option, file := range map[string]string{"token_file": c.TokenFile, "key_file": c.KeyFile} {
			if _, err := os.Lstat(filepath.Join(cfg.TaskDir().Dir, file)); file != "" && err == nil {
				d.logger.Warn("exec tasks can read this file: chroot_env puts it into their root; move it elsewhere",
					"vault", name, option, file)
			}
		}
	}
}
