package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a Nomad agent starts is made to outlive it: executors, containers, mounts, network namespaces. sweep removes
// what belongs to one stack, and a guard, a child process of ours, sweeps when we die without a Close.

// allocDir is the folder of the allocations in the folder of the stack; its name is short for the sake of task sockets
// in it.
const allocDir = "a"

// guardVar names the folder that a process is the guard of.
const guardVar = "NOMAD_DRIVER_VAULT_GUARD"

// The guard is this very program, started again: whoever imports the package can be one.
func init() {
	dir := os.Getenv(guardVar)
	if dir == "" {
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_, _ = io.Copy(io.Discard, os.Stdin) // The pipe ends with the process that holds its other end.
	if _, err := os.Stat(dir); err == nil {
		_ = sweep(dir)
	}
	os.Exit(0)
}

// startGuard starts the guard of dir; closing what it returns lets the guard go.
func startGuard(dir string) (io.Closer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), guardVar+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return stdin, nil
}

// sweep ends what still runs for the stack in dir, and removes dir.
func sweep(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := killMarked(dir); err != nil {
		return err
	}
	return errors.Join(sweepAllocs(ctx, dir), removePulled(ctx, dir), removeImages(ctx), unmountBelow(dir),
		os.RemoveAll(dir))
}

// killMarked kills until there is nobody left to kill: a process may start another one just before it dies.
func killMarked(dir string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids := marked(dir)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill what is left of the stack: processes %v stay", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// doors finds the processes that serve doors, which have neither the mark nor a directory.
func doors(dir string) (pids []int) {
	files, _ := filepath.Glob(dir + "/state/*/doors.pid")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		var pid int
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			continue
		}
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.HasPrefix(command, []byte("nomad-driver-vault\x00doors\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// marked finds the living processes that carry the mark, or work inside dir, or serve doors.
func marked(dir string) []int {
	pids := doors(dir)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		env, err := os.ReadFile(proc + "/environ")
		if err != nil || pid == os.Getpid() || len(env) == 0 { // A zombie has no environment.
			continue
		}
		cwd, _ := os.Readlink(proc + "/cwd")
		if slices.Contains(strings.Split(string(env), "\x00"), mark(dir)) || strings.HasPrefix(cwd, dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sweepAllocs removes the containers and the network namespaces of every allocation the agent had.
func sweepAllocs(ctx context.Context, dir string) error {
	allocs, err := os.ReadDir(filepath.Join(dir, allocDir))
	if err != nil {
		return nil // No agent has run.
	}
	var errs []error
	var names []string
	for _, alloc := range allocs {
		names = append(names, alloc.Name())
		netns := filepath.Join("/var/run/netns", alloc.Name())
		_ = unix.Unmount(netns, unix.MNT_DETACH)
		if err := os.Remove(netns); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove network namespace: %w", err))
		}
	}
	if dockerAnswers(ctx) {
		errs = append(errs, removeContainers(ctx, dir, names))
	}
	return errors.Join(errs...)
}

// unmountBelow detaches every mount below dir, the innermost first.
func unmountBelow(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var points []string
	for line := range bytes.Lines(info) {
		fields := strings.Fields(string(line)) // proc_pid_mountinfo(5): the fifth is the mount point.
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}
