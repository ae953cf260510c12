package plugin

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// Runs reports whether the task has a process.
func (d dockerDriver) Runs(cfg *drivers.TaskConfig) bool { return processes.has(cfg) }

// Runs reports whether the task has a process.
func (d rawExecDriver) Runs(cfg *drivers.TaskConfig) bool { return processes.has(cfg) }

// Runs reports whether the task has a process.
func (r *execRoot) Runs(cfg *drivers.TaskConfig) bool { return processes.has(cfg) }

// census finds the tasks that have a process. One look at all processes answers who asks until it begins: after the end of a plugin each of
// a thousand tasks asks at the same moment.
type census struct {
	mu     sync.Mutex // held while looking
	began  time.Time
	groups map[string]bool // names of cgroups
	dirs   map[string]bool // what containers have mounted: the last three elements of the paths
}

var processes census

// has looks for a process in the task's cgroup, or in a container that has the task's directory. It asks no docker daemon, which may be
// what everybody waits for.
func (c *census) has(cfg *drivers.TaskConfig) bool {
	asked := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.began.After(asked) {
		c.look()
	}
	return c.groups[cfg.AllocID+"."+cfg.Name] || c.dirs[filepath.Join(filepath.Base(cfg.AllocDir), cfg.Name, "local")]
}

func (c *census) look() {
	c.began, c.groups, c.dirs = time.Now(), map[string]bool{}, map[string]bool{}
	host, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[string]bool{host: true} // mount namespaces
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		proc := filepath.Join("/proc", entry.Name())
		status, err := os.ReadFile(proc + "/stat")
		if err != nil || zombie(status) {
			continue
		}
		groups, _ := os.ReadFile(proc + "/cgroup")
		for _, name := range groupNames(string(groups)) {
			c.groups[name] = true
		}
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[namespace] {
			continue
		}
		seen[namespace] = true
		mounts, _ := os.ReadFile(proc + "/mountinfo")
		for _, dir := range mounted(string(mounts)) {
			c.dirs[dir] = true
		}
	}
}

// mounted returns the last three elements of the directories that are mounted (proc_pid_mountinfo(5): the fourth field is the path in its
// filesystem, with spaces as octal numbers).
func mounted(mounts string) (dirs []string) {
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		dir := strings.ReplaceAll(fields[3], `\040`, " ")
		above, last := path.Split(path.Clean(dir))
		above, middle := path.Split(path.Clean(above))
		dirs = append(dirs, path.Join(path.Base(above), middle, last))
	}
	return dirs
}
