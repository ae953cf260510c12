package plugin

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

// stage shows Docker what a task mounts of its allocation. Docker follows any link in the path that it is given, as root, and a task makes
// links where it likes in what it mounts: to /, and the next container has the host. So the path is followed here, without leaving the
// allocation's directory, and what it leads to is mounted in a directory of root's beside the tasks', whose name Docker is given. It is below
// the allocation's directory because of nothing else does Nomad's docker mount a part without volumes.enabled.
type stage struct {
	root              *os.Root // the allocation's directory
	allocDir, taskDir string
	name              string // below root
	count             int
}

// stagePrefix begins the name of a stage; the task's follows.
const stagePrefix = ".mounts-"

// newStage makes one until strike is called, in the place of what a start has left that its plugin did not survive.
func newStage(cfg *drivers.TaskConfig) (*stage, error) {
	root, err := os.OpenRoot(cfg.AllocDir)
	if err != nil {
		return nil, fmt.Errorf("open the allocation's directory: %w", err)
	}
	s := &stage{root: root, allocDir: cfg.AllocDir, taskDir: cfg.TaskDir().Dir, name: stagePrefix + cfg.Name}
	err = strikeStage(cfg)
	if err == nil {
		err = root.Mkdir(s.name, 0o700)
	}
	if err == nil {
		err = unix.Mount("nomad-driver-vault", s.dir(), "tmpfs", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, "mode=0700")
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("make a place for mounts in the allocation's directory: %w", err)
	}
	return s, nil
}

func (s *stage) dir() string { return filepath.Join(s.allocDir, s.name) }

// strike takes the stage away. A container that has been started has mounts of its own.
func (s *stage) strike(cfg *drivers.TaskConfig) error {
	_ = s.root.Close()
	return strikeStage(cfg)
}

func strikeStage(cfg *drivers.TaskConfig) error {
	dir := filepath.Join(cfg.AllocDir, stagePrefix+cfg.Name)
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) { // nothing is mounted there
		err = os.Remove(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mounts of a start: %w", err)
	}
	return nil
}

// mountAll replaces what the job mounts of the allocation, and mounts read-only what root opens by name in alloc: the logs, and the container
// library's directory of exec tasks.
func (s *stage) mountAll(task *drivers.TaskConfig) error {
	if err := s.shield(task, task.Env["NOMAD_ALLOC_DIR"]); err != nil {
		return err
	}
	var options map[string]any
	if err := task.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	for _, replace := range []func(*drivers.TaskConfig, map[string]any) error{s.volumes, s.mounts} {
		if err := replace(task, options); err != nil {
			return err
		}
	}
	if err := task.EncodeConcreteDriverConfig(options); err != nil {
		return fmt.Errorf("encode task config: %w", err)
	}
	return nil
}

// shielded are the directories of an allocation that tasks do not write to.
var shielded = []string{"alloc/logs", "alloc/container"}

// shield mounts them over those of an alloc directory that is mounted at a path of the container.
func (s *stage) shield(task *drivers.TaskConfig, at string) error {
	for _, name := range shielded {
		shown, err := s.show(name)
		if err != nil {
			return fmt.Errorf("mount %s: %w", name, err)
		}
		task.Mounts = append(task.Mounts, &drivers.MountConfig{HostPath: shown, TaskPath: filepath.Join(at, filepath.Base(name)), Readonly: true})
	}
	return nil
}

// volumes replaces the sources of config volumes. Those of a volume driver are names.
func (s *stage) volumes(task *drivers.TaskConfig, options map[string]any) error {
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
		shown, err := s.replace(task, bind{field: fmt.Sprintf("volumes %q", text), source: parts[0], target: parts[1], readonly: slices.Contains(mode, "ro")})
		if err != nil {
			return err
		}
		parts[0] = shown
		volumes[i] = strings.Join(parts, ":")
	}
	return nil
}

// mounts replaces the sources of config mount blocks.
func (s *stage) mounts(task *drivers.TaskConfig, options map[string]any) error {
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
			shown, err := s.replace(task, bind{field: fmt.Sprintf("%s %q", name, source), source: source, target: target, readonly: readonly})
			if err != nil {
				return err
			}
			block["source"] = shown
		}
	}
	return nil
}

// bind is a part of the allocation that a job mounts into its container.
type bind struct {
	field, source, target string
	readonly              bool
}

// replace returns the name of the source for Docker. What is not the allocation's is left to Nomad and its volumes.enabled.
func (s *stage) replace(task *drivers.TaskConfig, b bind) (string, error) {
	path := b.source
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.taskDir, path)
	}
	path = filepath.Clean(path)
	if !below(path, s.allocDir) {
		return b.source, nil
	}
	name, err := filepath.Rel(s.allocDir, path)
	if err != nil {
		return "", err
	}
	_ = s.root.MkdirAll(name, 0o755) // as Docker does; what keeps it from that keeps follow from it, unless it is a file
	shown, real, err := s.follow(name)
	if err != nil {
		return "", fmt.Errorf("config %s: mount a part of the allocation: %w: no link may lead out of it", b.field, inode.Cause(err))
	}
	return shown, s.allow(task, b, real)
}

// follow mounts what a name leads to, and returns where, and which path it has below the allocation's directory.
func (s *stage) follow(name string) (shown, real string, err error) {
	if real, err = inode.Follow(s.root, name); err != nil {
		return "", "", err
	}
	file, info, err := openName(s.root, real)
	if err != nil {
		return "", "", err
	}
	defer file.Close()
	if info.Mode()&fs.ModeSymlink != 0 {
		return "", "", unix.ELOOP
	}
	above, err := filepath.EvalSymlinks(s.allocDir)
	if err != nil {
		return "", "", err
	}
	if real, err = os.Readlink(inode.Path(file)); err != nil {
		return "", "", err
	}
	if real, err = filepath.Rel(above, real); err != nil {
		return "", "", err
	}
	s.count++
	shown = filepath.Join(s.dir(), strconv.Itoa(s.count))
	return shown, real, bindAt(file, shown)
}

// show is follow for a name that no link leads on from.
func (s *stage) show(name string) (string, error) {
	shown, real, err := s.follow(name)
	if err == nil && real != name {
		err = fmt.Errorf("%s is a link", name)
	}
	return shown, err
}

// allow refuses a mount by which a container could put something in the place of what root opens by name, of this task or another.
func (s *stage) allow(task *drivers.TaskConfig, b bind, real string) error {
	whole := !strings.Contains(real, "/") && real != "alloc"
	switch {
	case strings.HasPrefix(real, stagePrefix):
		return fmt.Errorf("config %s: the driver's own directory cannot be mounted", b.field)
	case b.readonly:
		return nil
	case whole:
		return fmt.Errorf("config %s: the directory of a whole task or allocation can be mounted read-only; name one in it, such as local", b.field)
	case slices.ContainsFunc(shielded, func(name string) bool { return below(real, name) }):
		return fmt.Errorf("config %s: tasks only read %s: mount it read-only", b.field, real)
	case real == "alloc":
		return s.shield(task, b.target)
	}
	return nil
}
