package execroot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-vault/internal/inode"
)

// commandDirs is where a command without a slash is looked for, in the task's root: the executor's own list
// (lookupTaskBin in drivers/shared/executor/executor_linux_cgo.go) and the directories for administrators.
var commandDirs = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"}

// view is what a task sees, with the host's names of it.
//
// The executor looks for the task's command as root, outside of the task's root. It follows links there, and makes
// what it finds executable for everyone: also a private key that the job names, or that somebody puts in the place of
// the command at that moment. So the command is found and made executable here, and the executor is shown another
// file: see decoy.
type view struct {
	dirs   *allocdir.TaskDir
	mounts []*drivers.MountConfig
}

// find returns the absolute path of the command in the task's root. The command is a path from that root or from the
// task's local directory, or a name to be looked for in commandDirs. The path is empty when there is no such file. A
// file of the task's own is readable and executable by everyone afterwards.
func (v view) find(command string) (string, error) {
	candidates := []string{filepath.Join("/local", command), filepath.Join("/", command)}
	if !strings.Contains(command, "/") {
		for _, dir := range commandDirs {
			candidates = append(candidates, filepath.Join(dir, command))
		}
	}
	for _, c := range candidates {
		file := v.onHost(c)
		info, err := os.Stat(file)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if info.Mode().Perm()&everyone != everyone && makeExecutable(v.dirs, file) != nil {
			return "", notOwn(command, c)
		}
		return c, nil
	}
	return "", nil
}

// onHost returns the host's name of what the task sees at a path: in its directory, or on the last mount that covers
// it.
func (v view) onHost(path string) string {
	for i := len(v.mounts) - 1; i >= 0; i-- {
		if at := filepath.Join("/", v.mounts[i].TaskPath); inode.Within(path, at) {
			return filepath.Join(v.mounts[i].HostPath, path[len(at):])
		}
	}
	return filepath.Join(v.dirs.Dir, path)
}

// everyone is the mode that the executor gives to a command.
const everyone = 0o555

// EnsureExecutable makes a file that is a task's command readable and executable by everyone, as the executor would,
// but changes only a file of the task's own. For any other the error says what the job's author can do.
func EnsureExecutable(dirs *allocdir.TaskDir, command, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("config command %q: %w", command, err)
	}
	if info.Mode().Perm()&everyone != everyone && makeExecutable(dirs, file) != nil {
		return notOwn(command, file)
	}
	return nil
}

func notOwn(command, path string) error {
	return fmt.Errorf("config command %q: %s is not the task's own file and not readable and executable by everyone: "+
		"run chmod a+rx on it, or bring it with an artifact", command, path)
}

// makeExecutable is for a file in the task's directories. No link on the way may lead out of them, and the file may
// have no other name: that could be one of the host's. The file that is checked is the file that is changed.
func makeExecutable(dirs *allocdir.TaskDir, file string) error {
	dir := dirs.Dir
	if !inode.Within(file, dir) {
		dir = dirs.SharedAllocDir
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name, err := filepath.Rel(dir, file)
	if err != nil {
		return err
	}
	if name, err = inode.Follow(root, name); err != nil {
		return err
	}
	at, info, err := inode.OpenName(root, name)
	if err != nil {
		return err
	}
	defer at.Close()
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink != 1 {
		return os.ErrPermission
	}
	return os.Chmod(inode.Path(at), info.Mode().Perm()|everyone)
}

// decoy returns what to give the executor as the command, so that it starts path in the task's root and touches no
// file that anyone but root can replace. first is the host's file of the first mount.
//
// The executor looks in the task's local directory, in the task's directory, and then on the mounts in their order.
// With three directories more upwards than there are from the root, the first two lead to names beside the
// allocations and in the data directory, which are the agent's. On the first mount it is a file beside first, whose
// mode needs no change.
func decoy(path, first string) (command string, err error) {
	file := filepath.Join(filepath.Dir(first), path)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", err
	}
	return "/../../.." + path, os.WriteFile(file, nil, 0o755)
}
