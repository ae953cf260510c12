package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// commandDirs is where a command without a slash is looked for, in the task's root: the executor's own list
// (lookupTaskBin in drivers/shared/executor/executor_linux_cgo.go) and the directories for administrators.
var commandDirs = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"}

// view is what the executor will look at when it starts the task's command.
//
// The executor runs as root, outside of the task's root, follows symbolic links there and makes what it finds executable
// for everyone. In a chroot that is the task's own copy; here it could be the host's file: a job whose command is the path
// of a private key would make that key world-readable. So the same search is made here first, and a command is accepted
// only where the executor has no mode to change or the file is the task's.
type view struct {
	taskDir, allocDir string // on the host
	mounts            []*drivers.MountConfig
}

// find returns the absolute path in the task's root of the command, which is a path from that root or from the task's
// local directory, or a name to be looked for in commandDirs. It is empty when there is no such file.
func (v view) find(command string) (string, error) {
	candidates := []string{filepath.Join("/", command)}
	if !strings.Contains(command, "/") {
		for _, dir := range commandDirs {
			candidates = append(candidates, filepath.Join(dir, command))
		}
	}
	for _, c := range candidates {
		file := v.executors(c)
		if file == "" || !v.exists(c, file) {
			continue
		}
		if !v.harmless(file) {
			return "", fmt.Errorf("config command %q: %s is not the task's own file and not readable and executable by everyone: "+
				"run chmod a+rx on it, or bring it with an artifact", command, c)
		}
		return c, nil
	}
	return "", nil
}

// executors returns the host's name of the file that the executor takes for a path, empty when it finds none. Mounts
// match any path, also one that is not below them.
func (v view) executors(path string) string {
	files := []string{filepath.Join(v.taskDir, "local", path), filepath.Join(v.taskDir, path)}
	for _, m := range v.mounts {
		if rel, err := filepath.Rel(m.TaskPath, path); err == nil {
			files = append(files, filepath.Join(m.HostPath, rel))
		}
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			return file
		}
	}
	return ""
}

// exists reports whether the task finds the path: it is in the task's directory or on the last mount that covers it.
func (v view) exists(path, found string) bool {
	if below(found, v.taskDir) {
		return true
	}
	for i := len(v.mounts) - 1; i >= 0; i-- {
		if m := v.mounts[i]; below(path, filepath.Join("/", m.TaskPath)) {
			info, err := os.Stat(filepath.Join(m.HostPath, path[len(filepath.Join("/", m.TaskPath)):]))
			return err == nil && info.Mode().IsRegular()
		}
	}
	return false
}

// harmless reports whether the executor leaves the file's mode alone or the file is the task's own, reached without a
// link that leads out of the task's directories.
func (v view) harmless(file string) bool {
	const everyone = 0o555
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&everyone == everyone {
		return true
	}
	for _, dir := range []string{v.taskDir, v.allocDir} {
		if !below(file, dir) {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return false
		}
		defer root.Close()
		_, err = root.Stat(file[len(dir)+1:])
		return err == nil
	}
	return false
}
