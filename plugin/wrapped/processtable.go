package wrapped

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Runs reports whether the task has a process.
func (d *dockerDriver) Runs(cfg *drivers.TaskConfig) bool { return processes.has(cfg) }

// Runs reports whether the task has a process.
func (d rawExecDriver) Runs(cfg *drivers.TaskConfig) bool { return processes.has(cfg) }

// Runs reports whether the task has a process.
func (d *execDriver) Runs(cfg *drivers.TaskConfig) bool { return processes.has(cfg) }

// RunsAny reports whether any task of the allocation has a process.
func (d *dockerDriver) RunsAny(cfg *drivers.TaskConfig) bool { return processes.hasAny(cfg) }

// RunsAny reports whether any task of the allocation has a process.
func (d rawExecDriver) RunsAny(cfg *drivers.TaskConfig) bool { return processes.hasAny(cfg) }

// RunsAny reports whether any task of the allocation has a process.
func (d *execDriver) RunsAny(cfg *drivers.TaskConfig) bool { return processes.hasAny(cfg) }

// processTable says which tasks have a process. One scan of /proc answers everybody who asked before it began: after
// the end of a plugin each of a thousand tasks asks at the same moment.
type processTable struct {
	mu        sync.Mutex // held during a scan; guards what follows
	began     time.Time  // when the last scan began
	cgroups   map[string]bool
	localDirs map[string]bool // local directories of tasks, by the environments of their processes
	mounted   map[fileID]bool // directories mounted in containers that are named like a task's local or shared one
}

// fileID is a file or directory, whatever its name.
type fileID struct{ device, inode uint64 }

var processes processTable

// has looks for a process in the task's cgroup or with the task's environment, or in a container that has the task's
// directory. It asks no docker daemon, which may be what everybody waits for.
func (p *processTable) has(cfg *drivers.TaskConfig) bool {
	asked := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since(asked)
	local := cfg.TaskDir().LocalDir
	return p.cgroups[cgroupOf(cfg)] || p.localDirs[local] || p.mounts(local)
}

// hasAny is has for any task of the allocation, whatever driver has started it: containers have the directory that all
// of its tasks share.
func (p *processTable) hasAny(cfg *drivers.TaskConfig) bool {
	asked := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since(asked)
	for name := range p.cgroups {
		if strings.HasPrefix(name, cfg.AllocID+".") {
			return true
		}
	}
	for dir := range p.localDirs {
		if strings.HasPrefix(dir, cfg.AllocDir+"/") {
			return true
		}
	}
	return p.mounts(cfg.TaskDir().SharedAllocDir)
}

// mounts reports whether a container has that directory of the host.
func (p *processTable) mounts(dir string) bool {
	id, err := idOf(dir)
	return err == nil && p.mounted[id]
}

// since scans unless a scan has begun after that moment.
func (p *processTable) since(asked time.Time) {
	if p.began.After(asked) {
		return
	}
	p.began = time.Now()
	p.cgroups, p.localDirs, p.mounted = map[string]bool{}, map[string]bool{}, map[fileID]bool{}
	host, _ := os.Readlink("/proc/self/ns/mnt")
	scanned := map[string]bool{host: true} // mount namespaces
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		proc := filepath.Join("/proc", entry.Name())
		stat, err := os.ReadFile(proc + "/stat")
		if err != nil || hasEnded(stat) {
			continue
		}
		cgroups, _ := os.ReadFile(proc + "/cgroup")
		for _, name := range cgroupNames(string(cgroups)) {
			p.cgroups[name] = true
		}
		environ, _ := os.ReadFile(proc + "/environ")
		p.localDirs[localDir(environ)] = true
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || scanned[namespace] {
			continue
		}
		scanned[namespace] = true
		for _, at := range taskMounts(proc + "/mountinfo") {
			if id, err := idOf(proc + "/root" + at); err == nil {
				p.mounted[id] = true
			}
		}
	}
}

// taskMounts returns where directories are mounted that are named like a task's local one, or like the one that it
// shares with the other tasks of its allocation, in the file system that they are on. The name alone proves nothing:
// anyone makes a directory of that name.
func taskMounts(table string) (at []string) {
	file, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer file.Close()
	mounts, _ := mountinfo.GetMountsFromReader(file, nil)
	for _, m := range mounts {
		if base := path.Base(m.Root); base == "local" || base == "alloc" {
			at = append(at, m.Mountpoint)
		}
	}
	return at
}

func idOf(file string) (fileID, error) {
	var stat unix.Stat_t
	err := unix.Stat(file, &stat)
	return fileID{stat.Dev, stat.Ino}, err
}

// localDir returns the host's path of the local directory of a task that has no root of its own, out of a process's
// environment (proc_pid_environ(5)): a raw_exec task can have asked for a cgroup of another name (cgroup_v2_override,
// cgroup_v1_override). It is empty for every other process.
func localDir(environ []byte) string {
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if dir, ok := bytes.CutPrefix(entry, []byte("NOMAD_TASK_DIR=")); ok {
			return string(dir)
		}
	}
	return ""
}

// hasEnded reports that a process has ended, and waits for its parent to notice. stat is its /proc/<pid>/stat
// (proc_pid_stat(5)): the state follows the name, which is in parentheses and can have any character.
func hasEnded(stat []byte) bool {
	state := stat[bytes.LastIndexByte(stat, ')')+1:]
	return bytes.HasPrefix(state, []byte(" Z")) || bytes.HasPrefix(state, []byte(" X"))
}

// cgroupOf returns the name that Nomad gives a task's cgroup. Under cgroup v2 it has .scope behind it
// (client/lib/cgroupslib/init.go).
func cgroupOf(cfg *drivers.TaskConfig) string { return cfg.AllocID + "." + cfg.Name }

// cgroupNames returns the names of the cgroups that a process is in, and of those above them, with and without .scope.
// cgroups is its /proc/<pid>/cgroup (cgroups(7)).
func cgroupNames(cgroups string) (names []string) {
	for line := range strings.Lines(cgroups) {
		if _, path, ok := strings.Cut(line[strings.Index(line, ":")+1:], ":"); ok {
			for part := range strings.SplitSeq(strings.Trim(path, "/\n"), "/") {
				names = append(names, part, strings.TrimSuffix(part, ".scope"))
			}
		}
	}
	return names
}
