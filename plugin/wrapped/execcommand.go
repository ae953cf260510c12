package wrapped

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"golang.org/x/sys/unix"
)

// ExecTaskStreamingRaw runs a command in the task, and refuses one that is not there or that the task's user may not
// execute: nomad alloc exec. Nomad's
// executor would wait for ever for the end of its input, with the lock of the container, so that the task could not be
// stopped any more (drivers/shared/executor/exec_utils.go, runNoTTY; runc's Process waits for its input to be copied).
func (d *execDriver) ExecTaskStreamingRaw(ctx context.Context, id string, cmd []string, tty bool,
	stream drivers.ExecTaskStream) error {
	status, err := d.InspectTask(id)
	if err != nil {
		return err
	}
	if len(cmd) > 0 {
		uid := -1
		if known, started := d.users.Load(id); started {
			uid = known.(int)
		}
		if code, err := lookUp(filepath.Join("/proc", status.DriverAttributes["pid"]), cmd[0], uid); err != nil {
			return refuse(stream, code, err)
		}
	}
	return d.processDriver.ExecTaskStreamingRaw(ctx, id, cmd, tty, stream)
}

// refuse answers as docker and a shell do: an error would reach the user as an unexpected EOF once in a while.
func refuse(stream drivers.ExecTaskStream, code int, reason error) error {
	said := &drivers.ExecTaskStreamingResponseMsg{Stderr: &proto.ExecTaskStreamingIOOperation{
		Data: []byte(reason.Error() + "\n")}}
	return errors.Join(stream.Send(said), stream.Send(drivers.NewExecStreamingResponseExit(code)))
}

// The exit codes of a shell for a command that is not there, and for one that it may not execute.
const (
	notFound      = 127
	notExecutable = 126
)

// lookUp returns an error, and the exit code for it, when a command is surely not to be executed by a user in the root
// and the PATH of a process, whose directory below /proc is given; -1 is a user who is not known. What cannot be
// judged, such as a path relative to a working directory, passes.
func lookUp(proc, command string, uid int) (code int, err error) {
	root, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, nil //nolint:nilerr // the process has ended, and the executor says so
	}
	defer unix.Close(root)
	if strings.Contains(command, "/") {
		if !filepath.IsAbs(command) {
			return 0, nil
		}
		switch err := withAccessOf(uid, func() error { return executable(root, command) }); {
		case absent(err):
			return notFound, fmt.Errorf("command %q: the task's root has no such executable file", command)
		case err != nil:
			return notExecutable, fmt.Errorf("command %q: the task's user may not execute it: %w", command, err)
		}
		return 0, nil
	}
	path, seen := pathOf(proc), error(nil)
	for _, dir := range filepath.SplitList(path) {
		err := withAccessOf(uid, func() error { return executable(root, filepath.Join(dir, command)) })
		if !filepath.IsAbs(dir) || err == nil {
			return 0, nil
		}
		if !absent(err) {
			seen = err
		}
	}
	if seen != nil {
		return notExecutable, fmt.Errorf("command %q: the task's user may not execute it: %w", command, seen)
	}
	return notFound, fmt.Errorf("command %q: not found in the task's PATH, %q", command, path)
}

// absent reports whether an error says that there is no such file.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// executable returns an error when a path below root leads to no file that may be executed. Links are followed as the
// task follows them.
func executable(root int, path string) error {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Mode&0o111 == 0 {
		return unix.EACCES
	}
	err = unix.Faccessat2(fd, "", unix.X_OK, unix.AT_EACCESS|unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.8
		return nil
	}
	return err
}

// withAccessOf calls f with the access to files that the executor's process has before it executes a command: that
// user's, with group 0, and without capabilities, which come with the execution (drivers/shared/executor/
// executor_linux_cgo.go, ExecStreaming and configureCapabilities). A user who is not known is root.
func withAccessOf(uid int, f func() error) error {
	if uid <= 0 {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread, which is that user's from now on, ends with the goroutine
		if err := errors.Join(unix.Setfsgid(0), unix.Setfsuid(uid)); err != nil {
			done <- nil
			return
		}
		done <- f()
	}()
	return <-done
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
