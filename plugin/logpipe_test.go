package plugin

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// late starts a task with a wrapped driver a moment after something else has happened.
type late struct {
	drivers.DriverPlugin
	do func()
}

func (d late) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.do()
	return d.DriverPlugin.StartTask(cfg)
}

// TestLogPipeIsNotAnotherFileLater exchanges the pipes of a task's log for links to a key, where the executor or the
// docker logger would write the task's output into it.
func TestLogPipeIsNotAnotherFileLater(t *testing.T) {
	need.Root(t)
	for _, d := range []string{"exec", "raw_exec", "docker"} {
		t.Run(d, func(t *testing.T) {
			if d == "docker" {
				drivertest.RequireDocker(t)
			}
			h, key := serve(t, d), drivertest.NewCanary(t)
			cfg := drivertest.Shell(t, h, d, "echo spoken; sleep 600")
			logs := filepath.Join(cfg.TaskDir().SharedAllocDir, "logs")
			must.NoError(t, os.MkdirAll(logs, 0o777))
			cfg.StdoutPath, cfg.StderrPath = filepath.Join(logs, ".app.stdout.fifo"), filepath.Join(logs, ".app.stderr.fifo")
			spoken := make(chan string, 2)
			for _, pipe := range []string{cfg.StdoutPath, cfg.StderrPath} {
				must.NoError(t, unix.Mkfifo(pipe, 0o600))
				collect(t, pipe, spoken)
			}
			state := t.TempDir()
			t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
			p := h.Impl().(*Plugin)
			p.Driver = driver.New(t.Context(), hclog.NewNullLogger(), p.name, late{p.inner, func() {
				for _, pipe := range []string{cfg.StdoutPath, cfg.StderrPath} {
					must.NoError(t, os.Symlink(key.Path, pipe+"-link"))
					must.NoError(t, unix.Renameat2(unix.AT_FDCWD, pipe, unix.AT_FDCWD, pipe+"-link", unix.RENAME_EXCHANGE))
				}
			}})
			must.NoError(t, p.Configure(config.Operator{Name: p.name, StateDir: state,
				StartTimeout: time.Minute, PollInterval: time.Minute, MinPollInterval: time.Second}))
			drivertest.Start(t, h, cfg)
			select {
			case text := <-spoken:
				must.Eq(t, "spoken\n", text)
			case <-time.After(30 * time.Second):
				t.Error("the log is lost")
			}
			must.NoError(t, h.DestroyTask(cfg.ID, true))
			key.Lives(t)
		})
	}
}

// collect reads a pipe as Nomad's log collector does, and hands on what it reads first.
func collect(t *testing.T, pipe string, text chan<- string) {
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // which waits for nobody and has no end
	must.NoError(t, err)
	t.Cleanup(func() { reader.Close() })
	go func() {
		data := make([]byte, 1<<10)
		if n, err := reader.Read(data); err == nil {
			text <- string(data[:n])
		}
	}()
}
