package plugin

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-vault/internal/inode"
)

// commandDirs is where a command without a slash is looked for, in the task's root: the executor's own list
// (lookupTaskBin in drivers/shared/executor/executor_linux_cgo.go) and the directories for administrators.
var commandDirs = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"}

// view is what a task sees, with the host's names of it.
//
// The executor looks for the task's command as root, outside of the task's root, follows links there and makes what it finds executable for
// everyone: also a private key that the job names, or that somebody puts in the place of the command at that moment. So the command is found
// and made executable here, and the executor is shown another file: see decoy.
type view struct {
	taskDir, allocDir string // on the host
	mounts            []*drivers.MountConfig
}

// find returns the absolute path in the task's root of the command, which is a path from that root or from the task's
// local directory, or a name to be looked for in commandDirs. It is empty when there is no such file. A file of the task's own is
// readable and executable by everyone afterwards.
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
		if info.Mode().Perm()&everyone != everyone && v.makeExecutable(file) != nil {
			return "", notOwn(command, c)
		}
		return c, nil
	}
	return "", nil
}

func notOwn(command, path string) error {
	return fmt.Errorf("config command %q: %s is not the task's own file and not readable and executable by everyone: "+
		"run chmod a+rx on it, or bring it with an artifact", command, path)
}

// checkHostCommand is find for a raw_exec task, which has no root of its own. The executor of one looks in the task's local directory, in its
// directory, on the host and in PATH (lookupBin in drivers/shared/executor/executor.go), and changes what it finds for a user who might not.
func checkHostCommand(cfg *drivers.TaskConfig) error {
	var options struct {
		Command string `codec:"command"`
	}
	if err := cfg.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	uid, known := uidOf(cfg.User)
	if !known || uid == os.Geteuid() {
		return nil // root changes what it likes, and a user whom nobody knows does not run
	}
	dirs := cfg.TaskDir()
	candidates := []string{filepath.Join(dirs.LocalDir, options.Command), filepath.Join(dirs.Dir, options.Command)}
	if filepath.IsAbs(options.Command) {
		candidates = append(candidates, options.Command)
	} else if path, err := exec.LookPath(options.Command); err == nil {
		candidates = append(candidates, path)
	}
	for _, file := range candidates {
		info, err := os.Stat(file)
		if err != nil {
			continue
		}
		own := int(info.Sys().(*syscall.Stat_t).Uid) == uid
		if info.Mode().Perm()&everyone != everyone && !own && (view{taskDir: dirs.Dir, allocDir: dirs.SharedAllocDir}).makeExecutable(file) != nil {
			return notOwn(options.Command, file)
		}
		return nil
	}
	return nil
}

// uidOf returns the number of a user of the host, which is the plugin's own where none is named.
func uidOf(name string) (uid int, known bool) {
	if name == "" {
		return os.Geteuid(), true
	}
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return 0, false
	}
	uid, err = strconv.Atoi(u.Uid)
	return uid, err == nil
}

// onHost returns the host's name of what the task sees at a path: in its directory, or on the last mount that covers it.
func (v view) onHost(path string) string {
	for i := len(v.mounts) - 1; i >= 0; i-- {
		if at := filepath.Join("/", v.mounts[i].TaskPath); below(path, at) {
			return filepath.Join(v.mounts[i].HostPath, path[len(at):])
		}
	}
	return filepath.Join(v.taskDir, path)
}

// everyone is the mode that the executor gives to a command.
const everyone = 0o555

// makeExecutable is for a file in the task's directories, reached without a link that leads out of them and without another name, which may
// be one of the host's files. What is looked at is what is changed.
func (v view) makeExecutable(file string) error {
	dir := v.taskDir
	if !below(file, dir) {
		dir = v.allocDir
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
	at, info, err := openName(root, name)
	if err != nil {
		return err
	}
	defer at.Close()
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink != 1 {
		return os.ErrPermission
	}
	return os.Chmod(inode.Path(at), info.Mode().Perm()|everyone)
}

// decoy returns what to give the executor as the command, so that it starts path in the task's root and touches no file that anyone but root
// can replace. It looks in the task's local directory, in the task's directory, and on the mounts in their order, the first of which is to be
// at bait. With three directories more upwards than there are from the root, the first two are names beside the allocations and in the data
// directory, which are the agent's; on the first mount it is a file beside that of the mount, in which there is nothing to change.
func decoy(path, bait string) (command string, err error) {
	file := filepath.Join(filepath.Dir(bait), path)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", err
	}
	return "/../../.." + path, os.WriteFile(file, nil, 0o755)
}
