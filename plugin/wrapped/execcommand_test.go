package wrapped

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/shoenig/test/must"
)

func TestLookUp(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"runs": 0o755, "plain": 0o644} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, mode))
	}
	must.NoError(t, os.Symlink("runs", filepath.Join(dir, "link")))
	must.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling")))
	task := exec.Command("/bin/sleep", "60")
	task.Env = []string{"PATH=/nonexistent:" + dir}
	must.NoError(t, task.Start())
	defer func() { _ = task.Process.Kill(); _ = task.Wait() }()
	proc := filepath.Join("/proc", strconv.Itoa(task.Process.Pid))
	for command, fails := range map[string]string{
		"runs": "", dir + "/runs": "", dir + "/link": "",
		"relative/path": "",
		"nope":          `command "nope": not found in the task's PATH, "/nonexistent:` + dir + `"`,
		"plain":         `command "plain": not found in the task's PATH`,
		"dangling":      "not found in the task's PATH",
		dir + "/plain":  "the task's root has no such executable file",
		dir:             "the task's root has no such executable file",
		"/nope/runs":    `command "/nope/runs": the task's root has no such executable file`,
		dir + "/runs/x": "no such executable file",
	} {
		t.Run(command, func(t *testing.T) {
			err := lookUp(proc, command)
			if fails == "" {
				must.NoError(t, err)
				return
			}
			must.ErrorContains(t, err, fails)
		})
	}
	must.NoError(t, lookUp("/proc/0", "nope"), must.Sprint("a process that has ended is the executor's to report"))
}
