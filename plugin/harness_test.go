package plugin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/numalib"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/e2e/stack"
)

// What Nomad expects of a driver, of each of ours as a whole: behind the gRPC connection it has in the agent, with tasks that have
// none of our blocks.

// requireDocker makes sure of an engine that has stack.Image.
func requireDocker(t *testing.T) {
	t.Helper()
	for _, part := range stack.Missing() {
		switch {
		case part != "Docker" && part != "a static busybox":
		case os.Getenv("CI") == "true":
			t.Fatal("docker tasks need " + part)
		default:
			t.Skip("docker tasks need " + part)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := stack.Start(ctx, stack.Options{OnlyDocker: true})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	must.True(t, s.Docker)
}

// wrapped is one of our drivers, configured as an agent does it.
func wrapped(t *testing.T, wraps string) *testutils.DriverHarness {
	t.Helper()
	state := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) }) // the driver keeps its state in memory
	body := "state_dir = " + strconv.Quote(state)
	if wraps == "docker" {
		body += "\n gc {\n image = false\n }"
	}
	h := testutils.NewDriverHarness(t, newPlugin(t, wraps, "vault-"+wraps))
	schema, err := h.ConfigSchema()
	must.NoError(t, err)
	raw, err := encoded(t, schema, body)
	must.NoError(t, err)
	must.NoError(t, h.SetConfig(&base.Config{PluginConfig: raw, AgentConfig: &base.AgentConfig{
		Driver: &base.ClientDriverConfig{Topology: numalib.Scan(numalib.PlatformScanners(false))}}}))
	return h
}

// shell is a task that runs a script, not yet started.
func shell(t *testing.T, h *testutils.DriverHarness, d, script string) *drivers.TaskConfig {
	return command(t, h, d, "/bin/sh", "-c", script)
}

func command(t *testing.T, h *testutils.DriverHarness, d, name string, args ...string) *drivers.TaskConfig {
	t.Helper()
	body := fmt.Sprintf("command = %q\n args = [", name)
	for _, arg := range args {
		body += strconv.Quote(arg) + ", "
	}
	body += "]"
	switch d {
	case "docker":
		body += fmt.Sprintf("\n image = %q", stack.Image)
	case "raw_exec":
		body += "\n work_dir = \"/\"" // no other user may enter the harness's directories
	}
	schema, err := h.TaskConfigSchema()
	must.NoError(t, err)
	raw, err := encoded(t, schema, body)
	must.NoError(t, err)
	var options map[string]any
	must.NoError(t, base.MsgPackDecode(raw, &options))
	return execTask(t, h, options)
}

// stays is a script that ends with 5 when it is asked to, says so with a file, and otherwise stays.
const stays = `trap 'echo asked > $NOMAD_TASK_DIR/asked; exit 5' TERM USR1; : > $NOMAD_TASK_DIR/ready; while :; do sleep 0.05; done`

// behaviours are what each driver is tested for; d says which one, and h is a new one of it.
var behaviours = map[string]func(t *testing.T, d string, h *testutils.DriverHarness){
	"a task that ends by itself has its exit code": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, "exit 7")
		start(t, h, cfg)
		result := <-waiting(t, h, cfg)
		must.Eq(t, 7, result.ExitCode)
		must.Zero(t, result.Signal)
		must.False(t, result.Successful())
		status, err := h.InspectTask(cfg.ID)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateExited, status.State)
		must.Eq(t, 7, status.ExitResult.ExitCode)
		must.NoError(t, h.DestroyTask(cfg.ID, false))
		_, err = h.InspectTask(cfg.ID)
		must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
	},
	"a task is stopped by its signal": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := ready(t, h, shell(t, h, d, stays))
		result := waiting(t, h, cfg)
		must.NoError(t, h.StopTask(cfg.ID, 10*time.Second, "SIGTERM"))
		must.Eq(t, 5, (<-result).ExitCode)
	},
	"a task that does not listen is killed after its time": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := ready(t, h, shell(t, h, d, `trap '' TERM INT; : > $NOMAD_TASK_DIR/ready; while :; do sleep 0.05; done`))
		result := waiting(t, h, cfg)
		began := time.Now()
		must.NoError(t, h.StopTask(cfg.ID, time.Second, "SIGTERM"))
		ended := <-result
		must.Between(t, time.Second, time.Since(began), 10*time.Second)
		must.Eq(t, 128+int(unix.SIGKILL), ended.ExitCode)
	},
	"a signal reaches the task": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := ready(t, h, shell(t, h, d, stays))
		result := waiting(t, h, cfg)
		must.NoError(t, h.SignalTask(cfg.ID, "SIGUSR1"))
		must.Eq(t, 5, (<-result).ExitCode)
	},
	"a running task is destroyed by force only": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := ready(t, h, shell(t, h, d, stays))
		result := waiting(t, h, cfg)
		must.Error(t, h.DestroyTask(cfg.ID, false))
		must.NoError(t, h.SignalTask(cfg.ID, "SIGCONT"), must.Sprint("it runs on"))
		must.NoError(t, h.DestroyTask(cfg.ID, true))
		must.NotNil(t, <-result)
		_, err := h.InspectTask(cfg.ID)
		must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
	},
	"another plugin process takes over a running task": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, stays)
		handle := start(t, h, cfg)
		awaitFile(t, cfg, "ready")
		next := wrapped(t, d)
		must.NoError(t, next.RecoverTask(stored(t, handle)))
		must.NoError(t, next.RecoverTask(stored(t, handle)), must.Sprint("a task that it has already"))
		result := waiting(t, next, cfg)
		status, err := next.InspectTask(cfg.ID)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateRunning, status.State)
		here, err := next.ExecTask(cfg.ID, []string{"/bin/sh", "-c", "exit 6"}, 10*time.Second)
		must.NoError(t, err)
		must.Eq(t, 6, here.ExitResult.ExitCode)
		must.NoError(t, next.StopTask(cfg.ID, 10*time.Second, "SIGTERM"))
		must.Eq(t, 5, (<-result).ExitCode)
		must.NoError(t, next.DestroyTask(cfg.ID, false))
		awaitFile(t, cfg, "asked")
	},
	"a task that has gone meanwhile is not taken over": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, stays)
		handle := start(t, h, cfg)
		must.NoError(t, h.DestroyTask(cfg.ID, true))
		next := wrapped(t, d)
		must.Error(t, next.RecoverTask(stored(t, handle)))
		_, err := next.InspectTask(cfg.ID)
		must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
	},
	"statistics tell what a busy task uses": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, "while :; do :; done")
		start(t, h, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		usages, err := h.TaskStats(ctx, cfg.ID, 100*time.Millisecond)
		must.NoError(t, err)
		for usage := range usages {
			if cpu, memory := usage.ResourceUsage.CpuStats, usage.ResourceUsage.MemoryStats; cpu.Percent > 0 && max(memory.RSS, memory.Usage) > 0 {
				return
			}
		}
		t.Fatal("within 30 seconds there were none")
	},
	"the task's directories are the host's": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, `echo mine > $NOMAD_TASK_DIR/file; echo ours > $NOMAD_ALLOC_DIR/data/file; echo hidden > $NOMAD_SECRETS_DIR/file`)
		start(t, h, cfg)
		must.True(t, (<-waiting(t, h, cfg)).Successful())
		dirs := cfg.TaskDir()
		must.Eq(t, "mine\n", read(t, filepath.Join(dirs.LocalDir, "file")))
		must.Eq(t, "ours\n", read(t, filepath.Join(dirs.SharedAllocDir, "data", "file")))
		must.Eq(t, "hidden\n", read(t, filepath.Join(dirs.SecretsDir, "file")))
	},
	"a task runs as its user": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, `test "$(id -u)" = 65534`)
		cfg.User = map[string]string{"docker": "65534"}[d] // the image knows no names of the host's
		if cfg.User == "" {
			cfg.User = "nobody"
		}
		start(t, h, cfg)
		must.Zero(t, (<-waiting(t, h, cfg)).ExitCode)
	},
	"a user that is denied does not run at all": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, `test "$(id -u)" = 0`)
		cfg.User = "root"
		if _, _, err := h.StartTask(cfg); d == "exec" {
			must.ErrorContains(t, err, `user "root" is not allowed`)
		} else {
			must.NoError(t, err, must.Sprint("denied_users is empty unless the operator sets it"))
			must.Zero(t, (<-waiting(t, h, cfg)).ExitCode)
			must.NoError(t, h.DestroyTask(cfg.ID, false))
		}
	},
	"commands run in a task": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, stays)
		cfg.Env["TMPDIR"] = cfg.Env["NOMAD_TASK_DIR"] // the image has no /tmp
		ready(t, h, cfg)
		result, err := h.ExecTask(cfg.ID, []string{"/bin/sh", "-c", "echo $GREETING; echo no >&2; exit 3"}, 10*time.Second)
		must.NoError(t, err)
		must.Eq(t, 3, result.ExitResult.ExitCode)
		must.StrContains(t, string(result.Stdout), "hello\n")
		if d == "docker" {
			testStreams(t, h, cfg)
		} else {
			testutils.ExecTaskStreamingConformanceTests(t, h, cfg.ID)
		}
	},
	"an ID is used once": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := ready(t, h, shell(t, h, d, stays))
		_, _, err := h.StartTask(cfg)
		must.ErrorContains(t, err, "already started")
		must.NoError(t, h.SignalTask(cfg.ID, "SIGCONT"), must.Sprint("the first one runs on"))
	},
	"a task starts again after its end": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, "exit 4")
		for range 2 {
			_, _, err := h.StartTask(cfg)
			must.NoError(t, err)
			must.Eq(t, 4, (<-waiting(t, h, cfg)).ExitCode)
			must.NoError(t, h.DestroyTask(cfg.ID, false))
		}
	},
	"what a plugin that died has left of a task is swept": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := ready(t, h, shell(t, h, d, "(sleep 600 &)\n"+stays))
		other := ready(t, h, shell(t, h, d, stays))
		result := waiting(t, h, cfg)
		known := &drivers.TaskConfig{ID: cfg.ID, AllocID: cfg.AllocID, Name: cfg.Name, AllocDir: cfg.AllocDir} // to the next plugin
		inner := h.Impl().(*Plugin).inner.(driver.Sweeper)
		must.SliceNotEmpty(t, running(cfg))
		must.True(t, inner.Runs(known))
		for range 2 {
			must.NoError(t, inner.Sweep(known))
			must.SliceEmpty(t, running(cfg))
			must.False(t, inner.Runs(known))
		}
		must.NotNil(t, <-result)
		must.True(t, inner.Runs(&drivers.TaskConfig{AllocID: other.AllocID, Name: other.Name, AllocDir: other.AllocDir}))
		must.NoError(t, h.SignalTask(other.ID, "SIGCONT"), must.Sprint("another task runs on"))
	},
	"a task that has ended by itself does not run": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := shell(t, h, d, "exit 0")
		start(t, h, cfg)
		must.Zero(t, (<-waiting(t, h, cfg)).ExitCode)
		must.False(t, h.Impl().(*Plugin).inner.(driver.Sweeper).Runs(cfg), must.Sprint("what the wrapped driver still has beside it is none of it"))
	},
	"a start that fails leaves nothing": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := command(t, h, d, "/no/such/program")
		_, _, err := h.StartTask(cfg)
		must.ErrorContains(t, err, "/no/such/program")
		_, err = h.InspectTask(cfg.ID)
		must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
	},
	"a task that nobody knows is no reason to try again": func(t *testing.T, _ string, h *testutils.DriverHarness) {
		must.NoError(t, h.StopTask("unknown", time.Second, "SIGTERM"))
		must.NoError(t, h.DestroyTask("unknown", true))
		must.Error(t, h.SignalTask("unknown", "SIGTERM"))
		_, err := h.ExecTask("unknown", []string{"/bin/true"}, time.Second)
		must.Error(t, err)
		result, err := h.WaitTask(context.Background(), "unknown")
		must.NoError(t, err, must.Sprint("the client asks in the background"))
		must.Error(t, (<-result).Err)
	},
}

func TestWrappedExec(t *testing.T)    { testBehaviours(t, "exec") }
func TestWrappedRawExec(t *testing.T) { testBehaviours(t, "raw_exec") }
func TestWrappedDocker(t *testing.T)  { testBehaviours(t, "docker") }

func testBehaviours(t *testing.T, d string) {
	requireRoot(t)
	if d == "docker" {
		requireDocker(t)
	}
	t.Setenv("TMPDIR", t.TempDir()) // the harness leaves its own directories behind
	for sentence, test := range behaviours {
		t.Run(sentence, func(t *testing.T) {
			if d != "docker" { // Its Capabilities, which the harness asks for, write to a variable of the package.
				t.Parallel()
			}
			test(t, d, wrapped(t, d))
		})
	}
}

// running are the processes that were given the task's environment, or run it.
func running(cfg *drivers.TaskConfig) (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		environ, _ := os.ReadFile(proc + "/environ")
		cmdline, _ := os.ReadFile(proc + "/cmdline")
		if strings.Contains(string(environ), "NOMAD_ALLOC_ID="+cfg.AllocID) || strings.Contains(string(cmdline), cfg.AllocDir) {
			found = append(found, proc+" "+string(cmdline))
		}
	}
	return found
}

// waiting is the channel of the task's result.
func waiting(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig) <-chan *drivers.ExitResult {
	t.Helper()
	result, err := h.WaitTask(context.Background(), cfg.ID)
	must.NoError(t, err)
	return result
}

// ready starts a task and returns when its script says that it listens to signals.
func ready(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig) *drivers.TaskConfig {
	t.Helper()
	start(t, h, cfg)
	awaitFile(t, cfg, "ready")
	return cfg
}

// awaitFile waits for a file in the task's local directory.
func awaitFile(t *testing.T, cfg *drivers.TaskConfig, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must.NoError(t, stack.Eventually(ctx, func() error {
		_, err := os.Stat(filepath.Join(cfg.TaskDir().LocalDir, name))
		return err
	}))
}

// testStreams is what of Nomad's conformance tests can be asked of its docker driver, which takes a command that has not begun yet for
// one that has ended, once in about a hundred times (ExecTaskStreaming in drivers/docker/driver.go inspects it right after attaching).
func testStreams(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig) {
	for _, c := range []struct {
		command        string
		tty            bool
		stdin          string
		stdout, stderr string
		code           int
	}{
		{"echo out; echo err >&2; exit 43", false, "", "out\n", "err\n", 43},
		{"head -n1; exit 44", false, "from stdin\n", "from stdin\n", "", 44},
		{"echo out; echo err >&2; exit 45", true, "", "out\r\nerr\r\n", "", 45},
		{"head -n1; exit 46", true, "from stdin\n", "from stdin\r\nfrom stdin\r\n", "", 46},
	} {
		code, stdout, stderr := 0, "", ""
		for tries := 0; code+len(stdout)+len(stderr) == 0 && tries < 5; tries++ {
			// The pause lets it read the last of the output, for which it does not wait either.
			code, stdout, stderr = testutils.ExecTask(t, h, cfg.ID, "trap 'sleep 0.2' EXIT\n"+c.command, c.tty, c.stdin)
		}
		must.Eq(t, c.stdout, stdout)
		must.Eq(t, c.stderr, stderr)
		must.Eq(t, c.code, code)
	}
}

// stored is a handle as Nomad has it after a restart: read from its state database, which has no driver configuration in it.
func stored(t *testing.T, handle *drivers.TaskHandle) *drivers.TaskHandle {
	t.Helper()
	var b []byte
	must.NoError(t, base.MsgPackEncode(&b, handle))
	var kept drivers.TaskHandle
	must.NoError(t, base.MsgPackDecode(b, &kept))
	var options map[string]any
	must.Error(t, kept.Config.DecodeDriverConfig(&options))
	return &kept
}
