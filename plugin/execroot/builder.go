package execroot

import (
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/helper/args"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// Builder builds the roots of tasks. Configure comes first, and never while a task starts.
type Builder struct {
	config Config
	mounts idmapMounts
}

// New returns a Builder that logs what it cannot clean up.
func New(logger hclog.Logger) *Builder { return &Builder{mounts: idmapMounts{logger: logger}} }

// Configure sets what the roots are made of. An error names the option.
func (b *Builder) Configure(c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	b.config, b.mounts.stateDir = c, c.StateDir
	return nil
}

// Check returns an error when the host's directories cannot be mounted for tasks, and says what it takes.
func (b *Builder) Check() error {
	staged, err := b.mounts.stage(directories(b.config.Paths), nil)
	if err == nil {
		b.mounts.remove(staged)
	}
	return err
}

// Build returns a copy of the task with what the executor needs to start it in a root of ours: mounts, and the command
// by an absolute path. The caller starts the task and then calls release; by then the task has mounts of its own. An
// error is for the job's author or the operator.
func (b *Builder) Build(cfg *drivers.TaskConfig) (task *drivers.TaskConfig, release func(), err error) {
	hostMounts, err := mountPoints()
	if err != nil {
		return nil, nil, err
	}
	staged, err := b.mounts.stage(directories(b.config.Paths), hostMounts)
	if err != nil {
		return nil, nil, err
	}
	l := &layout{staged: staged, visible: b.config.Paths, claims: claims(cfg), hostMounts: hostMounts}
	if task, err = b.build(cfg, l); err != nil {
		b.mounts.remove(staged)
		return nil, nil, err
	}
	return task, func() { b.mounts.remove(staged) }, nil
}

// build puts the job's volumes after our mounts, so that a job can mount over any of them.
func (b *Builder) build(cfg *drivers.TaskConfig, l *layout) (*drivers.TaskConfig, error) {
	task := cfg.Copy()
	dirs := cfg.TaskDir()
	root, err := os.OpenRoot(dirs.Dir)
	if err != nil {
		return nil, fmt.Errorf("open task directory: %w", err)
	}
	defer root.Close()

	l.root = root
	if err := l.addAllocation(dirs); err != nil {
		return nil, fmt.Errorf("lay out the allocation's directory in the task's root: %w", err)
	}
	for _, p := range b.config.Paths {
		if err := l.addPath(p); err != nil {
			return nil, fmt.Errorf("lay out %s in the task's root: %w", p, err)
		}
	}
	task.Mounts = append(l.mounts, task.Mounts...)
	return task, b.setCommand(task)
}

// setCommand replaces the task's command by the name with which the executor is to start it.
func (b *Builder) setCommand(task *drivers.TaskConfig) error {
	var options map[string]any
	if err := task.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	name, _ := options["command"].(string)
	path, err := view{dirs: task.TaskDir(), mounts: task.Mounts}.find(name)
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("config command %q not found: looked in %s", name, b.searched(name))
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
func (b *Builder) searched(command string) string {
	if !strings.Contains(command, "/") {
		return "the task's directory, its local directory, " + strings.Join(commandDirs, ", ")
	}
	return "the task's own directories and volumes, and on the host in " + strings.Join(b.config.Paths, ", ") +
		" (paths in the plugin's config)"
}

// defaultPath is for an agent that has no PATH of its own. It is systemd's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Env returns the environment of a task that the agent has given it, and in it the agent's own variables of host_env,
// which the plugin inherits, and a PATH in any case. The agent leaves its variables out where a task's root is not its
// own to build: there a job's PATH = "/opt/bin:${PATH}" has arrived as it was written.
func (b *Builder) Env(given map[string]string) map[string]string {
	host := map[string]string{"PATH": defaultPath}
	for _, name := range b.config.HostEnv {
		if value, ok := os.LookupEnv(name); ok {
			host[name] = value
		}
	}
	env := maps.Clone(host)
	for name, value := range given {
		env[name] = args.ReplaceEnv(value, host)
	}
	return env
}
