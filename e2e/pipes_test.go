package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/e2e/stack"
)

// TestNobodyWaitsForALogCollector: neither one that hangs, with its pipe full, nor one that has died keeps the driver
// from telling the task of its secrets, or from stopping it. What the driver would have said is dropped.
func TestNobodyWaitsForALogCollector(t *testing.T) {
	each(t, "collector", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Config = file("secrets/color", inJob(j, "color"), onSignal)
		// Its shell says nothing, so that it has nothing to wait for or to die of.
		_, alloc := register(t, s, shell(j, "trap 'cat /secrets/color >> /local/told; echo >> /local/told' HUP; echo on > "+
			"/local/told; while sleep 0.1; do :; done"))
		told := func(want string) {
			t.Helper()
			eventually(t, 30*time.Second, func() error {
				have, err := os.ReadFile(alloc.Path(j.Name, "local/told"))
				if err == nil && string(have) != want {
					err = fmt.Errorf("the task was told %q", have)
				}
				return err
			})
		}
		told("on\n")
		collector := collectorOf(t, alloc, j)
		must.NoError(t, syscall.Kill(collector, syscall.SIGSTOP))
		fill(t, filepath.Join(alloc.Path("alloc", "logs"), "."+j.Name+".stderr.fifo"))
		put(t, s, j, map[string]any{"color": "blue"})
		told("on\nblue\n")

		must.NoError(t, syscall.Kill(collector, syscall.SIGKILL))
		put(t, s, j, map[string]any{"color": "red"})
		told("on\nblue\nred\n")
		must.Zero(t, state(t, ctx, alloc, j).Restarts)
		_, _, code := execute(t, alloc, j, false, "", "exit 3")
		must.Eq(t, 3, code)

		ended := stop(t, ctx, s, alloc, j)
		eventually(t, time.Until(ended.Add(slack)), func() error { return unrevoked(t, ctx, s, j.Name) })
	})
}

// collectorOf is the process that reads the pipes of the task's log for Nomad.
func collectorOf(t *testing.T, alloc *stack.Alloc, j job) (pid int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/fd/*")
	must.NoError(t, err)
	for _, fd := range all {
		file, _ := os.Readlink(fd)
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(fd), "../cmdline"))
		if strings.HasSuffix(file, alloc.ID+"/alloc/logs/."+j.Name+".stderr.fifo") &&
			strings.Contains(string(cmdline), "\x00logmon") {
			_, err := fmt.Sscanf(fd, "/proc/%d/", &pid)
			must.NoError(t, err)
		}
	}
	must.Positive(t, pid, must.Sprint("a log collector has the pipe open"))
	return pid
}

// fill writes to a pipe until it is full.
func fill(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	defer unix.Close(fd)
	for err == nil {
		_, err = unix.Write(fd, []byte(strings.Repeat("full\n", 800)))
	}
	must.True(t, errors.Is(err, unix.EAGAIN))
}
