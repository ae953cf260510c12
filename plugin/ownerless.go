package plugin

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
)

// ownerless makes the mounts that tasks see the host's directories through. They are idmapped (mount_setattr(2)), by a mapping that has none
// of the owners and groups of their files. So nobody is the owner of a file there, and what its mode says of others holds for everyone, also
// for root: a capability such as the CAP_DAC_OVERRIDE that Nomad's exec gives each task counts only where owner and group are mapped
// (privileged_wrt_inode_uidgid in the kernel's kernel/capability.c). The files are the host's own, whenever they came there.
//
// To mount something empty over each file that others may not read is not enough: that mount is gone, in all tasks, as soon as the host
// renames another file over the path (__detach_mounts in the kernel's fs/namespace.c), which is how passwd(1) writes /etc/shadow.
type ownerless struct {
	stateDir string
	logger   hclog.Logger

	swept sync.Once
	mu    sync.Mutex
	users *os.File // the user namespace with the mapping, once there is one
}

// noOne is the one user that the mapping has, since an empty one is none, and one that owns no file. 4294967294 was NFS's nobody.
const noOne = 1<<32 - 3

// mount mounts the host's directories, and what is mounted below them, at their paths below a new directory, until remove is called. What is
// mounted below them on a file system that has no idmapped mounts is left out.
func (o *ownerless) mount(dirs, submounts []string) (at string, err error) {
	users, err := o.mapping()
	if err != nil {
		return "", err
	}
	place, err := o.place()
	if err != nil {
		return "", err
	}
	if err := o.attachAll(dirs, place, submounts, users); err != nil {
		o.remove(place)
		return "", err
	}
	return place, nil
}

func (o *ownerless) attachAll(dirs []string, at string, submounts []string, users *os.File) error {
	var last string
	for _, dir := range slices.Sorted(slices.Values(dirs)) {
		if last != "" && below(dir, last) {
			continue
		}
		last = dir
		if err := os.MkdirAll(at+dir, 0o755); err != nil {
			return fmt.Errorf("make a mount point for %s of paths: %w", dir, err)
		}
		if err := attach(dir, at+dir, users); err != nil {
			return fmt.Errorf("mount %s of paths without the owners of its files: %w: it takes Linux 5.12 and a file system with idmapped "+
				`mounts; take it out of paths, or set filesystem = "chroot"`, dir, err)
		}
		for _, sub := range submounts {
			if info, err := os.Stat(sub); err != nil || !info.IsDir() || sub == dir || !below(sub, dir) {
				continue
			}
			if err := attach(sub, at+sub, users); err != nil {
				o.logger.Warn("tasks do not see what is mounted here, on a file system without idmapped mounts", "path", sub, "error", err)
			}
		}
	}
	return nil
}

// place makes a directory in state_dir with a tmpfs on it, so that all that is mounted there can be taken away at once.
func (o *ownerless) place() (dir string, err error) {
	if err := os.MkdirAll(o.stateDir, 0o700); err != nil {
		return "", fmt.Errorf("create state_dir: %w", err)
	}
	o.swept.Do(o.sweep)
	if dir, err = os.MkdirTemp(o.stateDir, fmt.Sprintf("%s%d-*", placePrefix, os.Getpid())); err != nil {
		return "", fmt.Errorf("make a directory in state_dir: %w", err)
	}
	err = unix.Mount("nomad-driver-vault", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, "mode=0700")
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_PRIVATE, "") // other mount namespaces need not get what is mounted in it
	}
	if err != nil {
		o.remove(dir)
		return "", fmt.Errorf("mount a tmpfs in state_dir: %w", err)
	}
	return dir, nil
}

// remove takes a place and its mounts away. A task that has been started has mounts of its own.
func (o *ownerless) remove(dir string) {
	err := unix.Unmount(dir, unix.MNT_DETACH)
	if err == nil || errors.Is(err, unix.EINVAL) { // nothing is mounted there
		err = os.Remove(dir)
	}
	if err != nil {
		o.logger.Warn("cannot remove the mounts of a start", "path", dir, "error", err)
	}
}

// placePrefix begins the name of a place; the number of the process that made it follows.
const placePrefix = "root-"

// sweep removes what starts have left that their plugin did not survive.
func (o *ownerless) sweep() {
	left, _ := filepath.Glob(filepath.Join(o.stateDir, placePrefix+"*")) // the pattern is well-formed
	for _, dir := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), placePrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(unix.Kill(n, 0), unix.ESRCH) {
			o.remove(dir)
		}
	}
}

// attach mounts a host's directory at another place, read-only and with the owners that users has.
func attach(path, at string, users *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// mapping returns a user namespace that maps nobody but noOne. It is made of a process that is stopped before it runs anything, as runc does
// it (libcontainer/internal/userns), and stays without one.
func (o *ownerless) mapping() (*os.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.users != nil {
		return o.users, nil
	}
	runtime.LockOSThread() // whose child and tracee the process is: it is killed when the thread ends (ptrace(2), PR_SET_PDEATHSIG in prctl(2))
	defer runtime.UnlockOSThread()
	only := []syscall.SysProcIDMap{{ContainerID: noOne, HostID: noOne, Size: 1}}
	process, err := os.StartProcess("/proc/self/exe", []string{"nomad-driver-vault"}, &os.ProcAttr{Env: []string{},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: only, GidMappings: only, Ptrace: true, Pdeathsig: unix.SIGKILL}})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace (is user.max_user_namespaces 0, or kernel.yama.ptrace_scope 3?): %w", err)
	}
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", process.Pid))
	_ = process.Kill()
	_, _ = process.Wait() // what it ended with says nothing
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	o.users = users
	return users, nil
}
