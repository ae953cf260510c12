package wrapped

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"golang.org/x/sys/unix"
)

// ExecTaskStreamingRaw runs a command in the task, and refuses one that is not there: nomad alloc exec. Nomad's
// executor would wait for ever for the end of its input, with the lock of the container, so that the task could not be
// stopped any more (drivers/shared/executor/exec_utils.go, runNoTTY; runc's Process waits for its input to be copied).
func (d *execDriver) ExecTaskStreamingRaw(ctx context.Context, id string, cmd []string, tty bool,
	stream drivers.ExecTaskStream) error {
	status, err := d.InspectTask(id)
	if err != nil {
		return err
	}
	if len(cmd) > 0 {
		if err := lookUp(filepath.Join("/proc", status.DriverAttributes["pid"]), cmd[0]); err != nil {
			return notFound(stream, err)
		}
	}
	return d.processDriver.ExecTaskStreamingRaw(ctx, id, cmd, tty, stream)
}

// notFound answers as docker and a shell do: an error would reach the user as an unexpected EOF once in a while.
func notFound(stream drivers.ExecTaskStream, reason error) error {
	const code = 127
	said := &drivers.ExecTaskStreamingResponseMsg{Stderr: &proto.ExecTaskStreamingIOOperation{
		Data: []byte(reason.Error() + "\n")}}
	return errors.Join(stream.Send(said), stream.Send(drivers.NewExecStreamingResponseExit(code)))
}

// lookUp returns an error when a command is surely not to be found in the root and the PATH of a process, whose
// directory below /proc is given. What cannot be judged, such as a path relative to a working directory, passes.
func lookUp(proc, command string) error {
	root, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // the process has ended, and the executor says so
	}
	defer unix.Close(root)
	if strings.Contains(command, "/") {
		if filepath.IsAbs(command) && !executable(root, command) {
			return fmt.Errorf("command %q: the task's root has no such executable file", command)
		}
		return nil
	}
	path := pathOf(proc)
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) || executable(root, filepath.Join(dir, command)) {
			return nil
		}
	}
	return fmt.Errorf("command %q: not found in the task's PATH, %q", command, path)
}

// executable reports whether a path below root leads to a file that anybody may execute, or may do so for all that is
// known here. Links are followed as the task follows them.
func executable(root int, path string) bool {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP)
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return true
	}
	return stat.Mode&unix.S_IFMT == unix.S_IFREG && stat.Mode&0o111 != 0
}

// pathOf returns the PATH with which a process was started.
func pathOf(proc string) string {
	environ, _ := os.ReadFile(proc + "/environ")
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if path, ok := bytes.CutPrefix(entry, []byte("PATH=")); ok {
			return string(path)
		}
	}
	return ""
}
