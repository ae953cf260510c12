package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/inode"
)

// Argument is the first argument of a process that serves doors.
const Argument = "doors"

const (
	controlSocket = "doors.sock"     // in Config.Dir
	pidFile       = "doors.pid"      // beside it
	newSuffix     = ".new"           // of the control socket of a process that has not taken over yet
	startWithin   = 10 * time.Second // for a process to answer
	controlFD     = 3                // in the process: the listener of its control socket
	// runtimeData is what Go's runtime and this program's packages map to write to before there is a door: 126 MB were
	// measured, of which 8 are used.
	runtimeData = 128 << 20
)

// running is the process that serves the doors, as the plugin sees it.
type running struct {
	link  *link
	pidfd int
	pid   int
	log   *stderr
	kept  chan struct{} // closed when the next plugin will find it
	once  sync.Once     // it is given up once
}

// kill ends the process at once, and returns when it has ended.
func (r *running) kill() {
	r.once.Do(func() {
		r.link.close()
		if err := unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0); err == nil {
			awaitEnd(r.pidfd)
		}
		unix.Close(r.pidfd)
		if r.log != nil {
			r.log.reader.Close()
		}
	})
}

// release forgets the process, which goes on.
func (r *running) release() {
	r.once.Do(func() {
		r.link.close()
		unix.Close(r.pidfd)
		r.log.reader.Close()
	})
}

// awaitEnd waits until a process that was killed has ended.
func awaitEnd(pidfd int) {
	polled := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(polled, -1); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// start starts a process that listens on the new control socket, and connects to it.
func start(ctx context.Context, c Config, errs *os.File) (*running, error) {
	control := &Socket{Dir: c.Dir, Name: controlSocket + newSuffix, Mode: 0o600}
	listener, err := control.listen()
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", c.Dir, err)
	}
	file := os.NewFile(uintptr(listener), control.Name)
	defer file.Close()
	cmd := exec.Command("/proc/self/exe", Argument, strconv.FormatInt(c.Memory+runtimeData, 10),
		strconv.FormatInt(2*c.RecordSize, 10))
	cmd.Args[0] = "nomad-driver-vault"
	cmd.Env = []string{"GOMEMLIMIT=" + strconv.FormatInt(c.Memory/4*3, 10)}
	cmd.Dir = "/"
	cmd.Stderr = errs
	cmd.ExtraFiles = []*os.File{file}
	var pidfd int
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd,
		Credential: &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}}
	if err := startUnprivileged(cmd); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // how it ends does not matter
	r := &running{pidfd: pidfd, pid: cmd.Process.Pid, kept: make(chan struct{})}
	conn, err := connect(ctx, c.Dir, control.Name)
	r.link = newLink(conn)
	if err != nil {
		r.kill()
		return nil, err
	}
	return r, nil
}

// startUnprivileged starts a program that can never have a capability. What a thread gives up, the processes have not
// that it starts; so a thread is made for that, and ends.
func startUnprivileged(cmd *exec.Cmd) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := dropCapabilities()
		if err == nil {
			err = cmd.Start()
		}
		failed <- err
	}()
	return <-failed
}

// dropCapabilities takes from what this thread will start all capabilities, and each way to get one.
func dropCapabilities() error {
	for capability := 0; capability <= 63; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop inheritable capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// connect connects to a control socket.
func connect(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	at, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", inode.Path(at)+"/"+name)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// writePID writes down which process it is, for the next plugin. The directory is root's.
func (r *running) writePID(dir string) error {
	began, err := startTime(r.pid)
	if err != nil {
		return err
	}
	temporary := filepath.Join(dir, pidFile+newSuffix)
	if err := os.WriteFile(temporary, fmt.Appendf(nil, "%d %s", r.pid, began), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, pidFile))
}

// find returns the process that an earlier plugin has started, and an error where there is none.
func find(ctx context.Context, dir string) (r *running, sameBuild bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, pidFile))
	if err != nil {
		return nil, false, err
	}
	var pid int
	var began string
	if _, err := fmt.Sscan(string(text), &pid, &began); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", pidFile, err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false, os.NewSyscallError("pidfd_open", err)
	}
	if now, err := startTime(pid); err != nil || now != began {
		unix.Close(pidfd)
		return nil, false, errors.New("it has ended")
	}
	ours, err := os.Stat("/proc/self/exe")
	if err == nil {
		var its os.FileInfo
		its, err = os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		sameBuild = err == nil && os.SameFile(ours, its)
	}
	r = &running{pidfd: pidfd, pid: pid, kept: make(chan struct{})}
	close(r.kept)
	conn, err := connect(ctx, dir, controlSocket)
	r.link = newLink(conn)
	if err != nil {
		r.kill()
		return nil, false, err
	}
	return r, sameBuild, nil
}

// startTime returns when a process began, as the kernel counts: field 22 of /proc/<pid>/stat (proc_pid_stat(5)).
func startTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := fieldsAfterName(string(text))
	if len(fields) < 20 {
		return "", errors.New("unknown form of /proc/pid/stat")
	}
	return fields[19], nil
}

// fieldsAfterName returns the fields from the third on. The second is a name in brackets, which may hold anything.
func fieldsAfterName(stat string) []string {
	return strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
}
