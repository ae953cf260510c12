package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// The values of filesystem. An operator who publishes us as "exec" gets Nomad's own by default.
const (
	filesystemBind   = "bind"
	filesystemChroot = "chroot"
)

// execConfig is what an operator can say about the root of exec tasks.
type execConfig struct {
	Filesystem string   `codec:"filesystem"`
	Paths      []string `codec:"paths"`
	HostEnv    []string `codec:"host_env"`
	StateDir   string   `codec:"state_dir"`

	Vault map[string]*cluster `codec:"vault"`
}

// execPaths is what Nomad puts into a chroot (DefaultChrootEnv in client/config/config.go), less the sockets: Nomad copies
// regular files only, while a directory bound from /run would show systemd-resolved's sockets to the task. The files are
// what /etc/resolv.conf links to.
var execPaths = []string{
	"/run/systemd/resolve/resolv.conf", "/run/systemd/resolve/stub-resolv.conf", "/run/resolvconf/resolv.conf",
	"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64",
}

// execEnv are the variables of the agent's environment that a task has. Nomad gives a task in a chroot all but those of the client's
// env.denylist, which no plugin sees, and one in an image none.
var execEnv = []string{"PATH", "LANG", "LC_ALL", "TZ"}

func execOptions(beside bool) map[string]*hclspec.Spec {
	filesystem := filesystemBind
	if !beside {
		filesystem = filesystemChroot
	}
	return map[string]*hclspec.Spec{
		"filesystem": text("filesystem", filesystem),
		"paths": hclspec.NewDefault(hclspec.NewAttr("paths", "list(string)", false),
			hclspec.NewLiteral(`["`+strings.Join(execPaths, `", "`)+`"]`)),
		"host_env": hclspec.NewDefault(hclspec.NewAttr("host_env", "list(string)", false),
			hclspec.NewLiteral(`["`+strings.Join(execEnv, `", "`)+`"]`)),
	}
}

func (c execConfig) validate() error {
	if c.Filesystem != filesystemBind && c.Filesystem != filesystemChroot {
		return fmt.Errorf("plugin config: filesystem %q: set %q or %q", c.Filesystem, filesystemBind, filesystemChroot)
	}
	for _, p := range c.Paths {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
			return fmt.Errorf("plugin config: paths: %q is not the absolute path of a directory or file below /", p)
		}
		switch strings.Split(p, "/")[1] {
		case "alloc", "local", "secrets", "private", "tmp", "dev", "proc", "sys":
			return fmt.Errorf("plugin config: paths: %q would hide the task's own; bind it elsewhere with a volume", p)
		}
	}
	return nil
}

// execRoot is Nomad's exec with another root for its tasks: where Nomad links or copies every file of the host's /usr and
// /etc into each task's directory, this one mounts the same directories into it, read-only. Isolation is the same as in
// Nomad's exec: the mounts are made by the same executor, in the task's own mount namespace.
//
// Seen from the task three things differ. Host directories cannot be written to, not even by root. They show the host as
// it is now, not as it was at the task's start. And nobody owns what is in them (see ownerless), so that a task reads what
// everyone may, and set-user-ID programs are programs like others.
type execRoot struct {
	processDriver
	execConfig
	pidMode   string // of tasks that do not say, Nomad's own option default_pid_mode
	ownerless ownerless
	roots     sync.Map // directories of the tasks that were started, by ID
	logger    hclog.Logger
}

func newExecRoot(logger hclog.Logger, inner processDriver) *execRoot {
	return &execRoot{processDriver: inner, ownerless: ownerless{logger: logger}, logger: logger}
}

// SetConfig reads filesystem and paths. An error names the field.
func (r *execRoot) SetConfig(c *base.Config) error {
	var own execConfig
	var theirs struct {
		PIDMode string `codec:"default_pid_mode"`
	}
	err := base.MsgPackDecode(c.PluginConfig, &own)
	if err == nil {
		err = base.MsgPackDecode(c.PluginConfig, &theirs)
	}
	if err != nil {
		return fmt.Errorf("decode plugin config: %w", err)
	}
	if err := own.validate(); err != nil {
		return err
	}
	r.execConfig, r.pidMode, r.ownerless.stateDir = own, theirs.PIDMode, own.StateDir
	return r.processDriver.SetConfig(c)
}

// Capabilities says that a task's root is not Nomad's to build, which is what image isolation means.
func (r *execRoot) Capabilities() (*drivers.Capabilities, error) {
	caps, err := r.processDriver.Capabilities()
	if err != nil || r.Filesystem != filesystemBind {
		return caps, err
	}
	bind := *caps
	bind.FSIsolation = fsisolation.Image
	return &bind, nil
}

// Fingerprint reports what Nomad's exec does, and while the host's directories cannot be mounted for tasks, a driver that is not healthy.
func (r *execRoot) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	reports, err := r.processDriver.Fingerprint(ctx)
	if err != nil || r.Filesystem != filesystemBind {
		return reports, err
	}
	judged := make(chan *drivers.Fingerprint)
	go func() {
		defer close(judged)
		var usable bool
		for report := range reports { // to its end even when ctx is done: Nomad's drivers block on a report nobody takes
			usable = usable || r.judge(report)
			select {
			case judged <- report:
			case <-ctx.Done():
			}
		}
	}()
	return judged, nil
}

// judge corrects the report of a driver that is healthy but for the host's directories, and returns whether they can be mounted.
func (r *execRoot) judge(report *drivers.Fingerprint) bool {
	at, err := r.ownerless.mount(directories(r.Paths), nil)
	if err == nil {
		r.ownerless.remove(at)
	} else if report.Health == drivers.HealthStateHealthy {
		report.Health, report.HealthDescription = drivers.HealthStateUnhealthy, err.Error()
	}
	return err == nil
}

// StartTask starts the task in a root of read-only mounts. The handle has the configuration as it was given, so that what
// is added here is made anew, from the host of that day, whenever the task is started again.
func (r *execRoot) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	err := guard(cfg)
	if err != nil {
		return nil, nil, err
	}
	if r.Filesystem != filesystemBind {
		r.warn(cfg)
		return r.processDriver.StartTask(cfg)
	}
	if err = r.checkPIDMode(cfg); err != nil {
		return nil, nil, err
	}
	l := &layout{visible: r.Paths, claims: claims(cfg)}
	if l.submounts, err = submounts(); err != nil {
		return nil, nil, err
	}
	if l.ownerless, err = r.ownerless.mount(directories(r.Paths), l.submounts); err != nil {
		return nil, nil, err
	}
	defer r.ownerless.remove(l.ownerless) // by then the task has its own
	r.roots.Store(cfg.ID, cfg.TaskDir().Dir)
	task, err := r.rooted(cfg, l)
	if err != nil {
		return nil, nil, err
	}
	handle, network, err := r.processDriver.StartTask(task)
	if handle != nil {
		handle.Config = cfg
	}
	return handle, network, err
}

// RecoverTask takes over a task that another plugin has started.
func (r *execRoot) RecoverTask(handle *drivers.TaskHandle) error {
	err := r.processDriver.RecoverTask(handle)
	if err == nil && r.Filesystem == filesystemBind && handle != nil && handle.Config != nil {
		r.roots.Store(handle.Config.ID, handle.Config.TaskDir().Dir)
	}
	return err
}

// DestroyTask removes the task, and the mount points that the executor has made in its directory.
func (r *execRoot) DestroyTask(id string, force bool) error {
	err := r.processDriver.DestroyTask(id, force)
	if err != nil && !errors.Is(err, drivers.ErrTaskNotFound) {
		return err
	}
	if dir, started := r.roots.LoadAndDelete(id); started {
		if err := removeMountPoints(dir.(string), r.Paths); err != nil {
			r.logger.Warn("cannot remove the mount points of a task", "path", dir, "error", err)
		}
	}
	return err
}

// checkPIDMode refuses the host's processes to a task unless the operator shows them to all: with CAP_SETUID, which Nomad's exec gives it, a task
// becomes the user of any of them that has no capabilities, whose /proc/<pid>/root then is the host's own root, to be read and written.
func (r *execRoot) checkPIDMode(cfg *drivers.TaskConfig) error {
	const host = "host"
	var options struct {
		PIDMode string `codec:"pid_mode"`
	}
	if err := cfg.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	if options.PIDMode == host && r.pidMode != host {
		return errors.New(`config pid_mode "host" is not allowed: among the host's processes a task reaches the host's files; leave it out, ` +
			`or have this node's operator set default_pid_mode = "host"`)
	}
	return nil
}

// warn says which secrets of the plugin's configuration a task can read because they are in its chroot: Nomad has made it of the client's
// chroot_env, which is not known here, with owners and modes that keep no task out.
func (r *execRoot) warn(cfg *drivers.TaskConfig) {
	for name, c := range r.Vault {
		for option, file := range map[string]string{"token_file": c.TokenFile, "key_file": c.KeyFile} {
			if _, err := os.Lstat(filepath.Join(cfg.TaskDir().Dir, file)); file != "" && err == nil {
				r.logger.Warn("exec tasks can read this file: chroot_env puts it into their root; move it elsewhere", "vault", name, option, file)
			}
		}
	}
}

// rooted returns a copy of the task with what makes up for the chroot: mounts, environment and an absolute command.
// Volumes come after ours, so that a job can mount over any of them.
func (r *execRoot) rooted(cfg *drivers.TaskConfig, l *layout) (*drivers.TaskConfig, error) {
	task := cfg.Copy()
	dirs := cfg.TaskDir()
	root, err := os.OpenRoot(dirs.Dir)
	if err != nil {
		return nil, fmt.Errorf("open task directory: %w", err)
	}
	defer root.Close()

	l.root = root
	if err := l.own(dirs); err != nil {
		return nil, fmt.Errorf("lay out the allocation's directory in the task's root: %w", err)
	}
	for _, p := range r.Paths {
		if err := l.add(p); err != nil {
			return nil, fmt.Errorf("lay out %s in the task's root: %w", p, err)
		}
	}
	task.Mounts = append(l.mounts, task.Mounts...)

	task.Env = hostEnv(r.HostEnv)
	maps.Copy(task.Env, cfg.Env)
	return task, r.setCommand(task)
}

// setCommand replaces the task's command by the name with which the executor is to start it.
func (r *execRoot) setCommand(task *drivers.TaskConfig) error {
	var options map[string]any
	if err := task.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	name, _ := options["command"].(string)
	dirs := task.TaskDir()
	v := view{taskDir: dirs.Dir, allocDir: dirs.SharedAllocDir, mounts: task.Mounts}
	path, err := v.find(name)
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("config command %q not found: looked in %s", name, r.searched(name))
	}
	if options["command"], err = decoy(path, task.Mounts[0].HostPath); err != nil {
		return fmt.Errorf("lay out the command in the task's root: %w", err)
	}
	if err := task.EncodeConcreteDriverConfig(options); err != nil {
		return fmt.Errorf("encode task config: %w", err)
	}
	return nil
}

// searched says, for an error message, where a command has been looked for.
func (r *execRoot) searched(command string) string {
	if !strings.Contains(command, "/") {
		return "the task's directory, its local directory, " + strings.Join(commandDirs, ", ")
	}
	return "the task's own directories and volumes, and on the host in " + strings.Join(r.Paths, ", ") +
		" (paths in the plugin's config)"
}

// defaultPath is for an agent without a PATH of its own, as systemd sets it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hostEnv returns the agent's variables of those names, which the plugin inherits, and a PATH in any case.
func hostEnv(names []string) map[string]string {
	env := map[string]string{"PATH": defaultPath}
	for _, name := range names {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	return env
}
