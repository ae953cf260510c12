package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// processes are those that serve doors.
func processes(t *testing.T) (pids []int) {
	t.Helper()
	out, _ := exec.Command("pgrep", "-u", fmt.Sprint(testUID)).CombinedOutput()
	for _, field := range strings.Fields(string(out)) {
		var pid int
		_, err := fmt.Sscan(field, &pid)
		must.NoError(t, err)
		if !ended(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// A plugin is killed at every moment of its start, beside a process that is killed at times: at most one process is
// left, and the next plugin has the door.
func TestAPluginMayDieAtAnyMomentOfItsStart(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	newer := filepath.Join(t.TempDir(), "newer")
	must.NoError(t, exec.Command("cp", must1(os.Executable()), newer).Run())
	for n := range 40 {
		program := "/proc/self/exe"
		if n%3 == 2 {
			program = newer // the process is replaced each time that the build changes
		}
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), "PLUGIN_OF_TEST="+dir)
		must.NoError(t, cmd.Start())
		<-time.After(time.Duration(n) * 2 * time.Millisecond)
		if left := processes(t); n%5 == 4 && len(left) > 0 {
			_ = unix.Kill(left[0], unix.SIGKILL)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		eventually(t, "at most one process is left", func() bool { return len(processes(t)) <= 1 })
	}
	startPlugin(t, "/proc/self/exe", dir)
	must.Eq(t, "1 x", say(t, filepath.Join(dir, "a.sock"), "x"))
	eventually(t, "one process is left", func() bool { return len(processes(t)) == 1 })
}
