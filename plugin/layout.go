package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/inode"
)

// layout collects the mounts of one start. Where a job puts something of its own below a host directory it wins, as it
// does in a chroot: a volume or a file from an artifact or template. Such a directory is not mounted but its entries are.
type layout struct {
	root      *os.Root // the task's directory; what a task left there must not lead us out of it
	ownerless string   // below it are the host's directories, at their paths without links, for the executor to mount
	visible   []string // the host paths that the task sees
	claims    []string // where something will be mounted that is not ours
	submounts []string // the host's mount points
	mounts    []*drivers.MountConfig
}

// claims returns the places where volumes and the resolv.conf that exec makes for a dns block will be mounted.
func claims(cfg *drivers.TaskConfig) []string {
	var all []string
	for _, m := range cfg.Mounts {
		all = append(all, filepath.Join("/", m.TaskPath))
	}
	if cfg.DNS != nil {
		all = append(all, "/etc/resolv.conf")
	}
	return all
}

// own lays out what the task has of the allocation, and keeps from it what root opens there by name: the executor's log, the container
// library's directory, and the logs, which it can read. No task, whatever its capabilities, removes or renames what is a mount in its own
// root (mount_namespaces(7)). The executor's log is the first mount, for the sake of the command: see decoy.
func (l *layout) own(dirs *allocdir.TaskDir) error {
	logs, err := openLogs(dirs)
	if err != nil {
		return err
	}
	defer logs.Close()
	at := filepath.Join(l.ownerless, ".task")
	for _, dir := range []string{at, at + "/root", at + "/container"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(at+"/root/executor.out", nil, everyone); err != nil {
		return err
	}
	if err := bindAt(logs, at+"/logs"); err != nil {
		return err
	}
	l.mounts = []*drivers.MountConfig{
		{HostPath: at + "/root/executor.out", TaskPath: "/executor.out", Readonly: true},
		{HostPath: dirs.SharedAllocDir, TaskPath: "/alloc"},
		{HostPath: at + "/logs", TaskPath: "/alloc/logs", Readonly: true},
		{HostPath: at + "/container", TaskPath: "/alloc/container", Readonly: true},
	}
	return nil
}

// openLogs opens the directory of an allocation's logs for its name alone. Where a task has put something else in its place, that is an error.
func openLogs(dirs *allocdir.TaskDir) (*os.File, error) {
	shared, err := os.OpenRoot(dirs.SharedAllocDir)
	if err != nil {
		return nil, err
	}
	defer shared.Close()
	logs, info, err := openName(shared, "logs")
	if err == nil && !info.IsDir() {
		logs.Close()
		err = fmt.Errorf("alloc/logs is %s", inode.Kind(info.Mode()))
	}
	return logs, err
}

// add lays out a path of the operator's: nothing when it does not exist or the task has something else there. A file is shown as it is: the
// operator has named it.
func (l *layout) add(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil: // a default that this distribution does not have
	case l.occupied(path, info.IsDir()):
	case info.IsDir():
		return l.directory(path)
	default:
		l.mounts = append(l.mounts, &drivers.MountConfig{HostPath: path, TaskPath: path, Readonly: true})
	}
	return nil
}

// mountsMost is how many mounts a task may have of the host's directories. Each takes the kernel and the executor about a millisecond.
const mountsMost = 1000

// directory lays out a directory of the host: one mount when nothing else is to be seen below it.
func (l *layout) directory(path string) error {
	crowd := l.crowd(path)
	if crowd == "" {
		return l.bind(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(l.mounts)+len(entries) > mountsMost {
		return fmt.Errorf("%s would take a mount for each of the %d entries of %s, and a task has %d at most: put it elsewhere, "+
			"or below a directory with fewer", crowd, len(entries), path, mountsMost)
	}
	for _, e := range entries {
		if err := l.entry(filepath.Join(path, e.Name()), e); err != nil {
			return err
		}
	}
	return nil
}

// entry lays out one entry of a crowded directory. Sockets, pipes and devices are left out, as Nomad leaves them out.
func (l *layout) entry(path string, e os.DirEntry) error {
	switch {
	case l.taken(path, e.IsDir()):
		return nil
	case e.IsDir():
		return l.directory(path)
	case e.Type()&os.ModeSymlink != 0:
		return l.link(path)
	case e.Type().IsRegular():
		return l.bind(path)
	}
	return nil
}

// crowd names what a mount of the whole directory would hide or leave no place for, since a mount point cannot be made in a read-only
// directory: a place where something of the job's will be mounted, or files of the job's. It is empty where there is nothing.
func (l *layout) crowd(dir string) string {
	for _, claim := range l.claims {
		if below(claim, dir) && claim != dir && !l.seen(claim) {
			return fmt.Sprintf("destination %q", claim)
		}
	}
	d, err := l.root.OpenFile(dir[1:], unix.O_DIRECTORY|unix.O_NONBLOCK, 0) // a task can have made a pipe of that name
	if err != nil {
		return ""
	}
	defer d.Close()
	if names, _ := d.Readdirnames(1); len(names) > 0 {
		return fmt.Sprintf("what the job has in %q of its own directory", dir)
	}
	return ""
}

// seen reports whether the task finds something of the host at this path, symbolic links followed.
func (l *layout) seen(path string) bool {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(l.visible, func(p string) bool {
		real, err := filepath.EvalSymlinks(p)
		return err == nil && below(target, real)
	})
}

// taken reports whether the place of a host's file or directory belongs to the job.
func (l *layout) taken(path string, dir bool) bool {
	return slices.Contains(l.claims, path) || l.occupied(path, dir)
}

// occupied reports whether the task's own directory has something else in the place of a host's file or directory. An empty file or a
// directory may be a mount point that an earlier start left.
func (l *layout) occupied(path string, dir bool) bool {
	info, err := l.root.Lstat(path[1:])
	switch {
	case err != nil:
		return false
	case dir:
		return !info.IsDir()
	default:
		return !info.Mode().IsRegular() || info.Size() > 0
	}
}

// link repeats a symbolic link of the host.
func (l *layout) link(path string) error {
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	if err := l.root.MkdirAll(filepath.Dir(path)[1:], 0o755); err != nil {
		return err
	}
	return l.root.Symlink(target, path[1:])
}

// bind mounts a path with all that is mounted below it: a bind mount alone does not show that, and in a container
// /etc/resolv.conf itself is a mount.
func (l *layout) bind(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	l.mount(real, path)
	for _, sub := range l.submounts {
		if sub != real && below(sub, real) {
			l.mount(sub, path+sub[len(real):])
		}
	}
	return nil
}

// mount mounts a host's directory or file as nobody's. A file that is a mount of its own is shown as it is if everyone may read it; otherwise
// the task sees what it is mounted over.
func (l *layout) mount(real, at string) {
	info, err := os.Stat(real)
	if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
		return
	}
	from := l.ownerless + real
	if !info.IsDir() && slices.Contains(l.submounts, real) && info.Mode()&0o004 != 0 {
		from = real
	}
	l.mounts = append(l.mounts, &drivers.MountConfig{HostPath: from, TaskPath: at, Readonly: true})
}

// removeMountPoints removes from a task's directory, in which nothing is mounted any more, what was made to mount the host's paths on: empty files
// and directories. What has something in it is the job's.
func removeMountPoints(taskDir string, paths []string) error {
	root, err := os.OpenRoot(taskDir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, path := range paths {
		removeEmpty(root, path)
		for above := filepath.Dir(path); above != "/" && root.Remove(above[1:]) == nil; {
			above = filepath.Dir(above)
		}
	}
	return nil
}

// removeEmpty removes what is empty below a path that the host has, too, and links that are the host's.
func removeEmpty(root *os.Root, path string) {
	if _, err := os.Lstat(path); err != nil {
		return
	}
	info, err := root.Lstat(path[1:])
	switch {
	case err != nil:
		return
	case info.IsDir():
		for _, name := range names(root, path[1:]) {
			removeEmpty(root, filepath.Join(path, name))
		}
	case info.Mode()&os.ModeSymlink != 0:
		ours, _ := root.Readlink(path[1:])
		if theirs, err := os.Readlink(path); err != nil || theirs != ours {
			return
		}
	case !info.Mode().IsRegular() || info.Size() > 0:
		return
	}
	_ = root.Remove(path[1:]) // not where something is left in it
}

// names are those of a directory's entries.
func names(root *os.Root, dir string) []string {
	d, err := root.OpenFile(dir, unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer d.Close()
	all, _ := d.Readdirnames(-1)
	return all
}

// directories returns those of the operator's paths that are directories, without links in their paths.
func directories(paths []string) []string {
	var all []string
	for _, p := range paths {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			continue
		}
		if info, err := os.Stat(real); err == nil && info.IsDir() {
			all = append(all, real)
		}
	}
	return all
}

// submounts returns the host's mount points, parents before what is mounted below them.
func submounts() ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			all = append(all, unescape(fields[4]))
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// unescape undoes what proc_pid_mountinfo(5) does to white space and backslashes in a path: \040 for a space.
func unescape(path string) string {
	if s, err := strconv.Unquote(`"` + strings.ReplaceAll(path, `"`, `\"`) + `"`); err == nil {
		return s
	}
	return path
}

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}
