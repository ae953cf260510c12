package wrapped

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/inode"
)

// allocMounts shows Docker what a task mounts of its allocation. Docker follows, as root, any link in the path that
// it is given, and a task makes links where it likes in what it mounts: with a link to /, the next container would
// have the host. So the path is followed here, without leaving the allocation's directory. What it leads to is
// mounted in a directory of root's beside the tasks', and Docker is given that name. The directory is below the
// allocation's because without volumes.enabled Nomad's docker mounts nothing else.
type allocMounts struct {
	root              *os.Root // the allocation's directory
	allocDir, taskDir string
	name              string // the directory of the mounts, below root
	count             int    // of mounts
}

// allocMountsPrefix begins the name of the directory; the task's name follows.
const allocMountsPrefix = ".mounts-"

// newAllocMounts makes the directory, in the place of one that a start has left whose plugin died. It is there until
// remove is called.
func newAllocMounts(cfg *drivers.TaskConfig) (*allocMounts, error) {
	root, err := os.OpenRoot(cfg.AllocDir)
	if err != nil {
		return nil, fmt.Errorf("open the allocation's directory: %w", err)
	}
	m := &allocMounts{root: root, allocDir: cfg.AllocDir, taskDir: cfg.TaskDir().Dir, name: allocMountsPrefix + cfg.Name}
	err = removeAllocMounts(cfg)
	if err == nil {
		err = root.Mkdir(m.name, 0o700)
	}
	if err == nil {
		err = unix.Mount("nomad-driver-vault", m.dir(), "tmpfs", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, "mode=0700")
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("make a place for mounts in the allocation's directory: %w", err)
	}
	return m, nil
}

func (m *allocMounts) dir() string { return filepath.Join(m.allocDir, m.name) }

// remove removes the directory. A container that has been started has mounts of its own.
func (m *allocMounts) remove(cfg *drivers.TaskConfig) error {
	_ = m.root.Close()
	return removeAllocMounts(cfg)
}

func removeAllocMounts(cfg *drivers.TaskConfig) error {
	dir := filepath.Join(cfg.AllocDir, allocMountsPrefix+cfg.Name)
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) { // nothing is mounted there
		err = os.Remove(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mounts of a start: %w", err)
	}
	return nil
}

// apply replaces the sources of what the job mounts of the allocation, and mounts read-only what root opens by name in
// alloc: the logs, and the container library's directory of exec tasks.
func (m *allocMounts) apply(task *drivers.TaskConfig) error {
	if err := m.protect(task, task.Env["NOMAD_ALLOC_DIR"]); err != nil {
		return err
	}
	var options map[string]any
	if err := task.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	if err := m.replaceVolumes(task, options); err != nil {
		return err
	}
	if err := m.replaceMounts(task, options); err != nil {
		return err
	}
	if err := task.EncodeConcreteDriverConfig(options); err != nil {
		return fmt.Errorf("encode task config: %w", err)
	}
	return nil
}

// protected are the directories of an allocation that tasks do not write to.
var protected = []string{"alloc/logs", "alloc/container"}

// protect mounts them read-only over those of an alloc directory that is mounted at a path of the container.
func (m *allocMounts) protect(task *drivers.TaskConfig, at string) error {
	for _, name := range protected {
		source, err := m.mountDirect(name)
		if err != nil {
			return fmt.Errorf("mount %s: %w", name, err)
		}
		task.Mounts = append(task.Mounts, &drivers.MountConfig{
			HostPath: source, TaskPath: filepath.Join(at, filepath.Base(name)), Readonly: true})
	}
	return nil
}

// replaceVolumes replaces the sources of config volumes. Those of a volume driver are names and stay.
func (m *allocMounts) replaceVolumes(task *drivers.TaskConfig, options map[string]any) error {
	volumes, _ := options["volumes"].([]any)
	if driver, _ := options["volume_driver"].(string); driver != "" {
		return nil
	}
	for i, v := range volumes {
		text, _ := v.(string)
		parts := strings.Split(text, ":")
		if len(parts) < 2 {
			continue // Nomad's docker says what is wrong
		}
		mode := strings.Split(strings.Join(parts[2:], ":"), ",")
		source, err := m.sourceOf(task, bind{field: fmt.Sprintf("volumes %q", text),
			source: parts[0], target: parts[1], readonly: slices.Contains(mode, "ro")})
		if err != nil {
			return err
		}
		parts[0] = source
		volumes[i] = strings.Join(parts, ":")
	}
	return nil
}

// replaceMounts replaces the sources of config mount blocks.
func (m *allocMounts) replaceMounts(task *drivers.TaskConfig, options map[string]any) error {
	for _, name := range []string{"mount", "mounts"} {
		blocks, _ := options[name].([]any)
		for _, b := range blocks {
			block, _ := b.(map[string]any)
			if block["type"] != "bind" {
				continue
			}
			source, _ := block["source"].(string)
			target, _ := block["target"].(string)
			readonly, _ := block["readonly"].(bool)
			replaced, err := m.sourceOf(task, bind{field: fmt.Sprintf("%s %q", name, source),
				source: source, target: target, readonly: readonly})
			if err != nil {
				return err
			}
			block["source"] = replaced
		}
	}
	return nil
}

// bind is a part of the allocation that a job mounts into its container.
type bind struct {
	field, source, target string
	readonly              bool
}

// sourceOf returns the source of a mount for Docker. What is not the allocation's is left to Nomad and its
// volumes.enabled.
func (m *allocMounts) sourceOf(task *drivers.TaskConfig, b bind) (string, error) {
	path := b.source
	if !filepath.IsAbs(path) {
		path = filepath.Join(m.taskDir, path)
	}
	path = filepath.Clean(path)
	if !inode.Within(path, m.allocDir) {
		return b.source, nil
	}
	name, err := filepath.Rel(m.allocDir, path)
	if err != nil {
		return "", err
	}
	_ = m.root.MkdirAll(name, 0o755) // as Docker does; whatever is in its way fails mountName too, unless it is a file
	source, real, err := m.mountName(name)
	if err != nil {
		return "", fmt.Errorf("config %s: mount a part of the allocation: %w: no link may lead out of it",
			b.field, inode.Cause(err))
	}
	return source, m.permit(task, b, real)
}

// mountName mounts what a name leads to, and returns where, and which path that has below the allocation's directory.
func (m *allocMounts) mountName(name string) (source, real string, err error) {
	if real, err = inode.Follow(m.root, name); err != nil {
		return "", "", err
	}
	file, info, err := inode.OpenName(m.root, real)
	if err != nil {
		return "", "", err
	}
	defer file.Close()
	if info.Mode()&fs.ModeSymlink != 0 {
		return "", "", unix.ELOOP
	}
	above, err := filepath.EvalSymlinks(m.allocDir)
	if err != nil {
		return "", "", err
	}
	if real, err = os.Readlink(inode.Path(file)); err != nil {
		return "", "", err
	}
	if real, err = filepath.Rel(above, real); err != nil {
		return "", "", err
	}
	m.count++
	source = filepath.Join(m.dir(), strconv.Itoa(m.count))
	return source, real, inode.Bind(file, source)
}

// mountDirect is mountName for a name from which no link leads on.
func (m *allocMounts) mountDirect(name string) (string, error) {
	source, real, err := m.mountName(name)
	if err == nil && real != name {
		err = fmt.Errorf("%s is a link", name)
	}
	return source, err
}

// permit refuses a mount by which a container could put something in the place of what root opens by name, of this
// task or another one. real is the path of the mount's source below the allocation's directory.
func (m *allocMounts) permit(task *drivers.TaskConfig, b bind, real string) error {
	whole := !strings.Contains(real, "/") && real != "alloc"
	switch {
	case strings.HasPrefix(real, allocMountsPrefix):
		return fmt.Errorf("config %s: the driver's own directory cannot be mounted", b.field)
	case isPrivate(real), whole && hides(task):
		return fmt.Errorf("config %s: it would show the container private/, where identities are that no task sees; name "+
			"a directory such as local", b.field)
	case b.readonly:
		return nil
	case whole:
		return fmt.Errorf("config %s: the directory of a whole task or allocation can be mounted read-only; "+
			"name one in it, such as local", b.field)
	case slices.ContainsFunc(protected, func(name string) bool { return inode.Within(real, name) }):
		return fmt.Errorf("config %s: tasks only read %s: mount it read-only", b.field, real)
	case real == "alloc":
		return m.protect(task, b.target)
	}
	return nil
}

// isPrivate reports whether a path below the allocation's directory is the private directory of a task, or in it.
func isPrivate(real string) bool {
	of, inside, _ := strings.Cut(real, "/")
	return of != "alloc" && inode.Within(inside, "private")
}

// hides reports whether the driver has the task find an empty directory in the place of private/.
func hides(task *drivers.TaskConfig) bool {
	return slices.ContainsFunc(task.Mounts, func(m *drivers.MountConfig) bool { return m.TaskPath == "/private" })
}
