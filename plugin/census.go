package plugin

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"
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
	envs   map[string]bool // local directories of tasks, by the environments of their processes
	dirs   map[inodeID]bool
}

// inodeID is a directory, whatever its name: what containers have mounted that looks like a task's.
type inodeID struct{ device, inode uint64 }

var processes census

// has looks for a process in the task's cgroup or with the task's environment, or in a container that has the task's directory. It asks no
// docker daemon, which may be what everybody waits for.
func (c *census) has(cfg *drivers.TaskConfig) bool {
	asked := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.began.After(asked) {
		c.look()
	}
	local := cfg.TaskDir().LocalDir
	if c.groups[cfg.AllocID+"."+cfg.Name] || c.envs[local] {
		return true
	}
	id, err := idOf(local)
	return err == nil && c.dirs[id]
}

func (c *census) look() {
	c.began, c.groups, c.envs, c.dirs = time.Now(), map[string]bool{}, map[string]bool{}, map[inodeID]bool{}
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
		environ, _ := os.ReadFile(proc + "/environ")
		c.envs[localDir(environ)] = true
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[namespace] {
			continue
		}
		seen[namespace] = true
		mounts, _ := os.ReadFile(proc + "/mountinfo")
		for _, at := range mounted(string(mounts)) {
			if id, err := idOf(proc + "/root" + at); err == nil {
				c.dirs[id] = true
			}
		}
	}
}

// mounted returns where directories are mounted that are named like a task's local one (proc_pid_mountinfo(5): the fourth field is the path in
// its filesystem, the fifth where it is mounted). The name alone says nothing: anyone makes a directory of that name.
func mounted(mounts string) (at []string) {
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 4 && path.Base(fields[3]) == "local" {
			at = append(at, unescape(fields[4]))
		}
	}
	return at
}

func idOf(dir string) (inodeID, error) {
	var stat unix.Stat_t
	err := unix.Stat(dir, &stat)
	return inodeID{stat.Dev, stat.Ino}, err
}

// localDir is the host's path of the local directory of a task without a root of its own, of which a process's environment tells
// (proc_pid_environ(5)): a raw_exec task can have asked for a cgroup of another name (cgroup_v2_override, cgroup_v1_override). It is empty
// for every other process.
func localDir(environ []byte) string {
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if dir, ok := bytes.CutPrefix(entry, []byte("NOMAD_TASK_DIR=")); ok {
			return string(dir)
		}
	}
	return ""
}
