package execroot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-vault/internal/inode"
)

// layout collects the mounts of one start. Where a job puts something of its own below a host directory, a volume or
// a file from an artifact or template, the job's wins, as it does in a chroot. Such a directory is not mounted as a
// whole: each of its entries is.
type layout struct {
	root       *os.Root // the task's directory; what a task left there must not lead us out of it
	staged     string   // below it are the host's directories, idmapped, at their paths without links
	visible    []string // the host's paths that the task sees
	claims     []string // where something will be mounted that is the job's
	hostMounts []string // the host's mount points
	mounts     []*drivers.MountConfig
}

// claims returns the places where volumes will be mounted, and the resolv.conf that exec makes for a dns block.
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

// addAllocation lays out what the task has of its allocation. What root opens there by name is a read-only mount: the
// executor's log, the container library's directory, and the logs, which the task can read. No task, whatever its
// capabilities, removes or renames what is a mount in its own root (mount_namespaces(7)). The executor's log is the
// first mount, because decoy relies on it.
func (l *layout) addAllocation(dirs *allocdir.TaskDir) error {
	logs, err := openLogs(dirs)
	if err != nil {
		return err
	}
	defer logs.Close()
	at := filepath.Join(l.staged, ".task")
	for _, dir := range []string{at, at + "/root", at + "/container"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(at+"/root/executor.out", nil, everyone); err != nil {
		return err
	}
	if err := inode.Bind(logs, at+"/logs"); err != nil {
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

// openLogs opens the directory of an allocation's logs for its name alone. It is an error when a task has put
// something else in its place.
func openLogs(dirs *allocdir.TaskDir) (*os.File, error) {
	shared, err := os.OpenRoot(dirs.SharedAllocDir)
	if err != nil {
		return nil, err
	}
	defer shared.Close()
	logs, info, err := inode.OpenName(shared, "logs")
	if err == nil && !info.IsDir() {
		logs.Close()
		err = fmt.Errorf("alloc/logs is %s", inode.Kind(info.Mode()))
	}
	return logs, err
}

// addPath lays out one of the operator's paths: nothing when it does not exist or the task has something else there.
// A file is shown with its owner and mode: the operator has named it.
func (l *layout) addPath(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil: // a default that this distribution does not have
	case l.shadowed(path, info.IsDir()):
	case info.IsDir():
		return l.addDirectory(path)
	default:
		l.mounts = append(l.mounts, &drivers.MountConfig{HostPath: path, TaskPath: path, Readonly: true})
	}
	return nil
}

// maxMounts is how many mounts a task may have of the host's directories. Each takes the kernel and the executor
// about a millisecond.
const maxMounts = 1000

// addDirectory lays out a directory of the host: one mount when nothing else is to be seen below it.
func (l *layout) addDirectory(path string) error {
	cause := l.needsPerEntryMounts(path)
	if cause == "" {
		return l.bind(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(l.mounts)+len(entries) > maxMounts {
		return fmt.Errorf("%s would take a mount for each of the %d entries of %s, and a task has %d at most: "+
			"put it elsewhere, or below a directory with fewer", cause, len(entries), path, maxMounts)
	}
	for _, e := range entries {
		if err := l.addEntry(filepath.Join(path, e.Name()), e); err != nil {
			return err
		}
	}
	return nil
}

// addEntry lays out one entry of a directory that is not mounted as a whole. It leaves out sockets, pipes and
// devices, as Nomad does.
func (l *layout) addEntry(path string, e os.DirEntry) error {
	switch {
	case l.claimed(path, e.IsDir()):
		return nil
	case e.IsDir():
		return l.addDirectory(path)
	case e.Type()&os.ModeSymlink != 0:
		return l.copyLink(path)
	case e.Type().IsRegular():
		return l.bind(path)
	}
	return nil
}

// needsPerEntryMounts names what of the job's a mount of the whole directory would hide, or leave no place for, since
// a mount point cannot be made in a read-only directory: a place where something will be mounted, or the job's own
// files. It is empty when one mount will do.
func (l *layout) needsPerEntryMounts(dir string) string {
	for _, claim := range l.claims {
		if inode.Within(claim, dir) && claim != dir && !l.visibleOnHost(claim) {
			return fmt.Sprintf("destination %q", claim)
		}
	}
	if len(entryNames(l.root, dir[1:], 1)) > 0 {
		return fmt.Sprintf("what the job has in %q of its own directory", dir)
	}
	return ""
}

// visibleOnHost reports whether the task finds something of the host at this path, symbolic links followed.
func (l *layout) visibleOnHost(path string) bool {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(l.visible, func(p string) bool {
		real, err := filepath.EvalSymlinks(p)
		return err == nil && inode.Within(target, real)
	})
}

// claimed reports whether the place of a host's file or directory belongs to the job.
func (l *layout) claimed(path string, dir bool) bool {
	return slices.Contains(l.claims, path) || l.shadowed(path, dir)
}

// shadowed reports whether the task's own directory has something else in the place of a host's file or directory. An
// empty file or a directory may be a mount point that an earlier start left.
func (l *layout) shadowed(path string, dir bool) bool {
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

// copyLink repeats a symbolic link of the host.
func (l *layout) copyLink(path string) error {
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
	l.bindOne(real, path)
	for _, sub := range l.hostMounts {
		if sub != real && inode.Within(sub, real) {
			l.bindOne(sub, path+sub[len(real):])
		}
	}
	return nil
}

// bindOne mounts a host's directory or file from where it is idmapped. A file that is a mount of its own is shown
// with its owner if everyone may read it; otherwise the task sees what it is mounted over.
func (l *layout) bindOne(real, at string) {
	info, err := os.Stat(real)
	if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
		return
	}
	from := l.staged + real
	if !info.IsDir() && slices.Contains(l.hostMounts, real) && info.Mode()&0o004 != 0 {
		from = real
	}
	l.mounts = append(l.mounts, &drivers.MountConfig{HostPath: from, TaskPath: at, Readonly: true})
}
