package execroot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/inode"
)

// idmapMounts makes the mounts through which tasks see the host's directories. They are idmapped (mount_setattr(2)),
// by a mapping that has none of the owners and groups of the host's files. So every user is "other" to every file,
// root included: a capability such as the CAP_DAC_OVERRIDE that Nomad's exec gives each task counts only where owner
// and group are mapped (privileged_wrt_inode_uidgid in the kernel's kernel/capability.c). New files of the host are
// treated alike.
//
// Mounting an empty file over each file that others may not read is not enough: such a mount is gone, in all tasks,
// as soon as the host renames another file over the path (__detach_mounts in the kernel's fs/namespace.c), which is
// how passwd(1) writes /etc/shadow.
type idmapMounts struct {
	stateDir string // set before the first start
	logger   hclog.Logger

	cleaned sync.Once // removeAbandoned

	mu     sync.Mutex
	userns *os.File // guarded by mu: the user namespace with the mapping, once there is one
}

// unmappedID is the only ID in the mapping: the kernel rejects an empty one. No file may belong to it. It is one below
// 4294967294, which was NFS's nobody.
const unmappedID = 1<<32 - 3

// stage mounts the host's directories, and what is mounted below them, at their paths below a new directory, until
// remove is called. It leaves out what is mounted below them on a file system without idmapped mounts.
func (m *idmapMounts) stage(dirs, hostMounts []string) (stagingDir string, err error) {
	userns, err := m.userNamespace()
	if err != nil {
		return "", err
	}
	if stagingDir, err = m.makeStagingDir(); err != nil {
		return "", err
	}
	if err := m.cloneAll(dirs, stagingDir, hostMounts, userns); err != nil {
		m.remove(stagingDir)
		return "", err
	}
	return stagingDir, nil
}

func (m *idmapMounts) cloneAll(dirs []string, stagingDir string, hostMounts []string, userns *os.File) error {
	var last string
	for _, dir := range slices.Sorted(slices.Values(dirs)) {
		if last != "" && inode.Within(dir, last) {
			continue
		}
		last = dir
		if err := os.MkdirAll(stagingDir+dir, 0o755); err != nil {
			return fmt.Errorf("make a mount point for %s of paths: %w", dir, err)
		}
		if err := cloneIDMapped(dir, stagingDir+dir, userns); err != nil {
			return fmt.Errorf("mount %s of paths without the owners of its files: %w: it takes Linux 5.12 and a file system "+
				`with idmapped mounts; take it out of paths, or set filesystem = "chroot"`, dir, err)
		}
		m.cloneBelow(dir, stagingDir, hostMounts, userns)
	}
	return nil
}

// cloneBelow clones the directories that are mounted below dir. One that cannot be cloned is logged.
func (m *idmapMounts) cloneBelow(dir, stagingDir string, hostMounts []string, userns *os.File) {
	for _, sub := range hostMounts {
		if info, err := os.Stat(sub); err != nil || !info.IsDir() || sub == dir || !inode.Within(sub, dir) {
			continue
		}
		if err := cloneIDMapped(sub, stagingDir+sub, userns); err != nil {
			m.logger.Warn("tasks do not see what is mounted here, on a file system without idmapped mounts",
				"path", sub, "error", err)
		}
	}
}

// makeStagingDir makes a directory in state_dir and mounts a tmpfs on it, so that one unmount takes away all that is
// mounted in it.
func (m *idmapMounts) makeStagingDir() (dir string, err error) {
	if err := os.MkdirAll(m.stateDir, 0o700); err != nil {
		return "", fmt.Errorf("create state_dir: %w", err)
	}
	m.cleaned.Do(m.removeAbandoned)
	if dir, err = os.MkdirTemp(m.stateDir, fmt.Sprintf("%s%d-*", stagingPrefix, os.Getpid())); err != nil {
		return "", fmt.Errorf("make a directory in state_dir: %w", err)
	}
	err = unix.Mount("nomad-driver-vault", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, "mode=0700")
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_PRIVATE, "") // other mount namespaces need not get what is mounted in it
	}
	if err != nil {
		m.remove(dir)
		return "", fmt.Errorf("mount a tmpfs in state_dir: %w", err)
	}
	return dir, nil
}

// remove removes a staging directory and its mounts.
func (m *idmapMounts) remove(stagingDir string) {
	err := unix.Unmount(stagingDir, unix.MNT_DETACH)
	if err == nil || errors.Is(err, unix.EINVAL) { // nothing is mounted there
		err = os.Remove(stagingDir)
	}
	if err != nil {
		m.logger.Warn("cannot remove the mounts of a start", "path", stagingDir, "error", err)
	}
}

// stagingPrefix begins the name of a staging directory; the ID of the process that made it follows.
const stagingPrefix = "root-"

// removeAbandoned removes the staging directories of plugins that died while they started a task.
func (m *idmapMounts) removeAbandoned() {
	all, _ := filepath.Glob(filepath.Join(m.stateDir, stagingPrefix+"*")) // the pattern is well-formed
	for _, dir := range all {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), stagingPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(unix.Kill(n, 0), unix.ESRCH) {
			m.remove(dir)
		}
	}
}

// cloneIDMapped mounts a host's directory at another place, read-only and with the owners that the user namespace maps.
func cloneIDMapped(dir, at string, userns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY,
		Propagation: unix.MS_PRIVATE,
		Userns_fd:   uint64(userns.Fd()),
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	err = unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// userNamespace returns a user namespace that maps unmappedID only. It is made for a process that is stopped before
// it runs anything, as runc does it (libcontainer/internal/userns), and it stays when that process is gone.
func (m *idmapMounts) userNamespace() (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.userns != nil {
		return m.userns, nil
	}
	// The process is this thread's child and tracee: it is killed when the thread ends (ptrace(2); PR_SET_PDEATHSIG in
	// prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mapping := []syscall.SysProcIDMap{{ContainerID: unmappedID, HostID: unmappedID, Size: 1}}
	process, err := os.StartProcess("/proc/self/exe", []string{"nomad-driver-vault"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: mapping, GidMappings: mapping,
			Ptrace: true, Pdeathsig: unix.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf(
			"make a user namespace (is user.max_user_namespaces 0, or kernel.yama.ptrace_scope 3?): %w", err)
	}
	userns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", process.Pid))
	_ = process.Kill()
	_, _ = process.Wait() // what it ended with says nothing
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	m.userns = userns
	return userns, nil
}
