package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// layout collects the mounts of one start. Where a job puts something of its own below a host directory it wins, as it
// does in a chroot: a volume or a file from an artifact or template. Such a directory is not mounted but its entries are.
type layout struct {
	root      *os.Root // the task's directory; what a task left there must not lead us out of it
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

// add lays out a host path: nothing when it does not exist, one mount when nothing else is to be seen below it.
func (l *layout) add(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // a default that this distribution does not have
	}
	if !info.IsDir() || !l.crowded(path) {
		return l.bind(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
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
		return l.add(path)
	case e.Type()&os.ModeSymlink != 0:
		return l.link(path)
	case e.Type().IsRegular():
		return l.bind(path)
	}
	return nil
}

// crowded reports whether a mount of the whole directory would hide something of the job's, or leave no place for it: a
// mount point cannot be made in a read-only directory.
func (l *layout) crowded(dir string) bool {
	for _, claim := range l.claims {
		if below(claim, dir) && claim != dir && !l.seen(claim) {
			return true
		}
	}
	d, err := l.root.Open(dir[1:])
	if err != nil {
		return false
	}
	defer d.Close()
	names, _ := d.Readdirnames(1)
	return len(names) > 0
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

// taken reports whether the place of a host's file or directory belongs to the job. An empty file or a directory may be a
// mount point that an earlier start left.
func (l *layout) taken(path string, dir bool) bool {
	if slices.Contains(l.claims, path) {
		return true
	}
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
	l.mounts = append(l.mounts, &drivers.MountConfig{HostPath: path, TaskPath: path, Readonly: true})
	for _, sub := range l.submounts {
		if sub == real || !below(sub, real) {
			continue
		}
		if info, err := os.Stat(sub); err != nil || !info.IsDir() && !info.Mode().IsRegular() {
			continue
		}
		l.mounts = append(l.mounts, &drivers.MountConfig{HostPath: sub, TaskPath: path + sub[len(real):], Readonly: true})
	}
	return nil
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
