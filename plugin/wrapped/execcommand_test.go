package wrapped

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

func TestLookUp(t *testing.T) {
	need.Root(t)
	dir, err := os.MkdirTemp("/var/lib", "nomad-driver-vault-test-") // others cannot enter the test's own
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "closed"), 0o755)))
	for name, mode := range map[string]os.FileMode{"runs": 0o755, "plain": 0o644, "roots": 0o700, "groups": 0o710,
		"closed/runs": 0o755} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, mode))
	}
	must.NoError(t, os.Chmod(filepath.Join(dir, "closed"), 0o700))
	must.NoError(t, os.Symlink("runs", filepath.Join(dir, "link")))
	must.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling")))
	task := exec.Command("/bin/sleep", "60")
	task.Env = []string{"PATH=/nonexistent:" + dir}
	must.NoError(t, task.Start())
	defer func() { _ = task.Process.Kill(); _ = task.Wait() }()
	proc := filepath.Join("/proc", strconv.Itoa(task.Process.Pid))
	const nobody = 65534
	for command, c := range map[string]struct {
		uid, code int
		says      string
	}{
		"runs": {uid: nobody}, dir + "/runs": {uid: nobody}, dir + "/link": {uid: nobody},
		"relative/path":         {uid: nobody},
		"groups":                {uid: nobody}, // Nomad's exec runs with group 0
		"roots":                 {nobody, 126, `command "roots": the task's user may not execute it: permission denied`},
		dir + "/roots":          {nobody, 126, "the task's user may not execute it: permission denied"},
		dir + "/./roots":        {uid: 0},
		dir + "//roots":         {uid: -1},
		dir + "/closed/runs":    {nobody, 126, "permission denied"},
		dir + "/./closed/runs":  {uid: 0},
		"nope":                  {nobody, 127, `command "nope": not found in the task's PATH, "/nonexistent:` + dir + `"`},
		"plain":                 {0, 126, "permission denied"},
		"dangling":              {nobody, 127, "not found in the task's PATH"},
		dir + "/plain":          {0, 126, "permission denied"},
		dir:                     {0, 126, "is a directory"},
		"/nope/runs":            {nobody, 127, `command "/nope/runs": the task's root has no such executable file`},
		dir + "/runs/x":         {nobody, 127, "no such executable file"},
		"/proc/self/task/1/env": {nobody, 127, "no such executable file"},
	} {
		t.Run(command, func(t *testing.T) {
			code, err := lookUp(proc, command, c.uid)
			must.Eq(t, c.code, code)
			if c.says == "" {
				must.NoError(t, err)
				return
			}
			must.ErrorContains(t, err, c.says)
		})
	}
	_, err = lookUp("/proc/0", "nope", nobody)
	must.NoError(t, err, must.Sprint("a process that has ended is the executor's to report"))
}

// TestExecRefusesWhatTheUserMayNotExecute: Nomad's executor would hang, and the task with it.
func TestExecRefusesWhatTheUserMayNotExecute(t *testing.T) {
	h := serve(t, "exec", "")
	cfg := drivertest.Task(t, h, sleeper)
	drivertest.Write(t, cfg.TaskDir().LocalDir, map[string]string{"runs": "#!/bin/sh\nexit 3\n", "roots": "#!/bin/sh\n",
		"dir/": "", "no-interpreter": "#!/no/such/sh\n", "no-format": "\x00\x01"})
	must.NoError(t, os.Chmod(filepath.Join(cfg.TaskDir().LocalDir, "roots"), 0o700))
	drivertest.Start(t, h, cfg)
	for command, code := range map[string]int{"/local/runs": 3, "/local/roots": 126, "/local/dir": 126, "/local/nope": 127,
		"/local/no-interpreter": 255, "/local/no-format": 255} { // runc says these two, at once
		t.Run(command, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			said := &answers{}
			err := h.Impl().(*execDriver).ExecTaskStreamingRaw(ctx, cfg.ID, []string{command}, false, said)
			must.NoError(t, err)
			must.Eq(t, code, said.code, must.Sprint(said.stderr))
		})
	}
}

// answers is the user's end of nomad alloc exec, without input.
type answers struct {
	code   int
	stderr string
	closed bool
}

func (a *answers) Send(m *drivers.ExecTaskStreamingResponseMsg) error {
	a.stderr += string(m.GetStderr().GetData())
	if m.Exited {
		a.code = int(m.Result.ExitCode)
	}
	return nil
}

func (a *answers) Recv() (*drivers.ExecTaskStreamingRequestMsg, error) {
	if a.closed {
		return nil, io.EOF
	}
	a.closed = true
	return &drivers.ExecTaskStreamingRequestMsg{Stdin: &proto.ExecTaskStreamingIOOperation{Close: true}}, nil
}
