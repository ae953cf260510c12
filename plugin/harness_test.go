package plugin

import (
	"context"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/numalib"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// What Nomad expects of a driver, of each of ours as a whole: behind the gRPC connection it has in the agent, with
// tasks that have none of our blocks.

// serve returns one of our drivers, configured as an agent does it.
func serve(t *testing.T, wraps string) *testutils.DriverHarness {
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
	raw, err := drivertest.Encode(t, schema, body)
	must.NoError(t, err)
	must.NoError(t, h.SetConfig(&base.Config{PluginConfig: raw, AgentConfig: &base.AgentConfig{
		Driver: &base.ClientDriverConfig{Topology: numalib.Scan(numalib.PlatformScanners(false))}}}))
	return h
}

// behaviours are what each driver is tested for; d says which one, and h is a new one of it.
var behaviours = map[string]func(t *testing.T, d string, h *testutils.DriverHarness){
	"a task that ends by itself has its exit code": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, "exit 7")
		drivertest.Start(t, h, cfg)
		result := <-drivertest.Result(t, h, cfg)
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
		cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, d, drivertest.Stays))
		result := drivertest.Result(t, h, cfg)
		must.NoError(t, h.StopTask(cfg.ID, 10*time.Second, "SIGTERM"))
		must.Eq(t, 5, (<-result).ExitCode)
	},
	"a task that does not listen is killed after its time": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, d,
			`trap '' TERM INT; : > $NOMAD_TASK_DIR/ready; while :; do sleep 0.05; done`))
		result := drivertest.Result(t, h, cfg)
		began := time.Now()
		must.NoError(t, h.StopTask(cfg.ID, time.Second, "SIGTERM"))
		ended := <-result
		must.Between(t, time.Second, time.Since(began), 10*time.Second)
		must.Eq(t, 128+int(unix.SIGKILL), ended.ExitCode)
	},
	"a signal reaches the task": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, d, drivertest.Stays))
		result := drivertest.Result(t, h, cfg)
		must.NoError(t, h.SignalTask(cfg.ID, "SIGUSR1"))
		must.Eq(t, 5, (<-result).ExitCode)
	},
	"a running task is destroyed by force only": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, d, drivertest.Stays))
		result := drivertest.Result(t, h, cfg)
		must.Error(t, h.DestroyTask(cfg.ID, false))
		must.NoError(t, h.SignalTask(cfg.ID, "SIGCONT"), must.Sprint("it runs on"))
		must.NoError(t, h.DestroyTask(cfg.ID, true))
		must.NotNil(t, <-result)
		_, err := h.InspectTask(cfg.ID)
		must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
	},
	"another plugin process takes over a running task": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, drivertest.Stays)
		handle := drivertest.Start(t, h, cfg)
		drivertest.AwaitFile(t, cfg, "ready")
		next := serve(t, d)
		must.NoError(t, next.RecoverTask(stored(t, handle)))
		must.NoError(t, next.RecoverTask(stored(t, handle)), must.Sprint("a task that it has already"))
		result := drivertest.Result(t, next, cfg)
		status, err := next.InspectTask(cfg.ID)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateRunning, status.State)
		here, err := next.ExecTask(cfg.ID, []string{"/bin/sh", "-c", "exit 6"}, 10*time.Second)
		must.NoError(t, err)
		must.Eq(t, 6, here.ExitResult.ExitCode)
		must.NoError(t, next.StopTask(cfg.ID, 10*time.Second, "SIGTERM"))
		must.Eq(t, 5, (<-result).ExitCode)
		must.NoError(t, next.DestroyTask(cfg.ID, false))
		drivertest.AwaitFile(t, cfg, "asked")
	},
	"a task that has gone meanwhile is not taken over": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, drivertest.Stays)
		handle := drivertest.Start(t, h, cfg)
		must.NoError(t, h.DestroyTask(cfg.ID, true))
		next := serve(t, d)
		must.Error(t, next.RecoverTask(stored(t, handle)))
		_, err := next.InspectTask(cfg.ID)
		must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
	},
	"statistics tell what a busy task uses": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, "while :; do :; done")
		drivertest.Start(t, h, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		usages, err := h.TaskStats(ctx, cfg.ID, 100*time.Millisecond)
		must.NoError(t, err)
		for usage := range usages {
			cpu, memory := usage.ResourceUsage.CpuStats, usage.ResourceUsage.MemoryStats
			if cpu.Percent > 0 && max(memory.RSS, memory.Usage) > 0 {
				return
			}
		}
		t.Fatal("within 30 seconds there were none")
	},
	"the task's directories are the host's": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, "echo mine > $NOMAD_TASK_DIR/file; "+
			"echo ours > $NOMAD_ALLOC_DIR/data/file; echo hidden > $NOMAD_SECRETS_DIR/file")
		drivertest.Start(t, h, cfg)
		must.True(t, (<-drivertest.Result(t, h, cfg)).Successful())
		dirs := cfg.TaskDir()
		must.Eq(t, "mine\n", drivertest.Read(t, filepath.Join(dirs.LocalDir, "file")))
		must.Eq(t, "ours\n", drivertest.Read(t, filepath.Join(dirs.SharedAllocDir, "data", "file")))
		must.Eq(t, "hidden\n", drivertest.Read(t, filepath.Join(dirs.SecretsDir, "file")))
	},
	"a task runs as its user": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, `test "$(id -u)" = 65534`)
		cfg.User = map[string]string{"docker": "65534"}[d] // the image knows no names of the host's
		if cfg.User == "" {
			cfg.User = "nobody"
		}
		drivertest.Start(t, h, cfg)
		must.Zero(t, (<-drivertest.Result(t, h, cfg)).ExitCode)
	},
	"a user that is denied does not run at all": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, `test "$(id -u)" = 0`)
		cfg.User = "root"
		if _, _, err := h.StartTask(cfg); d == "exec" {
			must.ErrorContains(t, err, `user "root" is not allowed`)
		} else {
			must.NoError(t, err, must.Sprint("denied_users is empty unless the operator sets it"))
			must.Zero(t, (<-drivertest.Result(t, h, cfg)).ExitCode)
			must.NoError(t, h.DestroyTask(cfg.ID, false))
		}
	},
	"commands run in a task": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, drivertest.Stays)
		cfg.Env["TMPDIR"] = cfg.Env["NOMAD_TASK_DIR"] // the image has no /tmp
		drivertest.StartReady(t, h, cfg)
		result, err := h.ExecTask(cfg.ID, []string{"/bin/sh", "-c", "echo $GREETING; echo no >&2; exit 3"}, 10*time.Second)
		must.NoError(t, err)
		must.Eq(t, 3, result.ExitResult.ExitCode)
		must.StrContains(t, string(result.Stdout), "hello\n")
		testutils.ExecTaskStreamingConformanceTests(t, h, cfg.ID)
	},
	"an ID is used once": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, d, drivertest.Stays))
		_, _, err := h.StartTask(cfg)
		must.ErrorContains(t, err, "already started")
		must.NoError(t, h.SignalTask(cfg.ID, "SIGCONT"), must.Sprint("the first one runs on"))
	},
	"a task starts again after its end": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, "exit 4")
		for range 2 {
			_, _, err := h.StartTask(cfg)
			must.NoError(t, err)
			must.Eq(t, 4, (<-drivertest.Result(t, h, cfg)).ExitCode)
			must.NoError(t, h.DestroyTask(cfg.ID, false))
		}
	},
	"what a plugin that died has left of a task is swept": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.StartReady(t, h, drivertest.Shell(t, h, d, "(sleep 600 &)\n"+drivertest.Stays))
		other := drivertest.StartReady(t, h, drivertest.Shell(t, h, d, drivertest.Stays))
		result := drivertest.Result(t, h, cfg)
		// What the next plugin process knows of the task.
		known := &drivers.TaskConfig{ID: cfg.ID, AllocID: cfg.AllocID, Name: cfg.Name, AllocDir: cfg.AllocDir}
		inner := h.Impl().(*Plugin).inner.(driver.Sweeper)
		must.SliceNotEmpty(t, drivertest.Processes(cfg))
		must.True(t, inner.Runs(known))
		for range 2 {
			must.NoError(t, inner.Sweep(known))
			must.SliceEmpty(t, drivertest.Processes(cfg))
			must.False(t, inner.Runs(known))
		}
		must.NotNil(t, <-result)
		must.True(t, inner.Runs(&drivers.TaskConfig{AllocID: other.AllocID, Name: other.Name, AllocDir: other.AllocDir}))
		must.NoError(t, h.SignalTask(other.ID, "SIGCONT"), must.Sprint("another task runs on"))
	},
	"a task that has ended by itself does not run": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Shell(t, h, d, "exit 0")
		drivertest.Start(t, h, cfg)
		must.Zero(t, (<-drivertest.Result(t, h, cfg)).ExitCode)
		must.False(t, h.Impl().(*Plugin).inner.(driver.Sweeper).Runs(cfg),
			must.Sprint("what the wrapped driver still has beside it is none of it"))
	},
	"a start that fails leaves nothing": func(t *testing.T, d string, h *testutils.DriverHarness) {
		cfg := drivertest.Command(t, h, d, "/no/such/program")
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
	need.Root(t)
	if d == "docker" {
		drivertest.RequireDocker(t)
	}
	t.Setenv("TMPDIR", t.TempDir()) // the harness leaves its own directories behind
	for sentence, test := range behaviours {
		t.Run(sentence, func(t *testing.T) {
			if d != "docker" { // Its Capabilities, which the harness asks for, write to a variable of the package.
				t.Parallel()
			}
			test(t, d, serve(t, d))
		})
	}
}

// stored is a handle as Nomad has it after a restart: read from its state database, which has no driver configuration
// in it.
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
