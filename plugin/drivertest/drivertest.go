// Package drivertest has what the tests of drivers share: tasks in directories as Nomad makes them, started behind
// the gRPC connection that a driver has in the agent.
package drivertest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/client/lib/cgroupslib"
	"github.com/hashicorp/nomad/client/lib/idset"
	"github.com/hashicorp/nomad/client/lib/numalib"
	"github.com/hashicorp/nomad/client/lib/numalib/hw"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"
	"github.com/zclconf/go-cty/cty/msgpack"

	"nomad-driver-vault/e2e/stack"
	"nomad-driver-vault/internal/need"
)

// RequireDocker makes sure of an engine that has stack.Image, or skips like need.Skip. The stack has no more than that.
func RequireDocker(t *testing.T) *stack.Stack {
	t.Helper()
	for _, part := range stack.Missing() {
		if part == "Docker" || part == "a static busybox" {
			need.Skip(t, part)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := stack.Start(ctx, stack.Options{OnlyDocker: true})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	must.True(t, s.Docker)
	return s
}

// Encode takes the body of a config block the way of an agent's configuration or a job: HCL, the driver's schema,
// msgpack.
func Encode(t *testing.T, schema *hclspec.Spec, body string) ([]byte, error) {
	t.Helper()
	spec, diagnostics := hclspecutils.Convert(schema)
	must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics))
	block := hclutils.HclConfigToInterface(t, "config {"+body+"\n}")
	value, diagnostics, _ := hclutils.ParseHclInterface(block, spec, nil)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	return msgpack.Marshal(value, value.Type())
}

// Configure configures a driver as an agent does, from the bytes that Encode returns.
func Configure(t *testing.T, h *testutils.DriverHarness, raw []byte) {
	t.Helper()
	must.NoError(t, h.SetConfig(&base.Config{PluginConfig: raw, AgentConfig: &base.AgentConfig{
		Driver: &base.ClientDriverConfig{Topology: numalib.Scan(numalib.PlatformScanners(false))}}}))
}

// Task returns a task in directories of its own, with those options in its config block. It is not started.
func Task(t *testing.T, h *testutils.DriverHarness, options map[string]any) *drivers.TaskConfig {
	t.Helper()
	id := uuid.Generate()
	cfg := &drivers.TaskConfig{
		ID: uuid.Generate(), AllocID: id, Name: "app", Env: map[string]string{"GREETING": "hello", "NOMAD_ALLOC_ID": id},
		StdoutPath: "/dev/null", StderrPath: "/dev/null",
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{
				Cpu:    structs.AllocatedCpuResources{CpuShares: 100},
				Memory: structs.AllocatedMemoryResources{MemoryMB: 128},
			},
			LinuxResources: &drivers.LinuxResources{
				CPUShares: 100, MemoryLimitBytes: 128 << 20,
				CpusetCgroupPath: cgroupslib.LinuxResourcesPath(id, "app", false),
			},
		},
	}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(options))
	t.Cleanup(h.MkAllocDir(cfg, false))
	must.NoError(t, initCgroups())
	h.MakeTaskCgroup(id, "app")
	return cfg
}

// initCgroups makes the cgroups of all tasks as an agent does when it starts, and gives the tasks their CPUs as it does
// for the first allocation: a cpuset without CPUs takes no process.
var initCgroups = sync.OnceValue(func() error {
	cores := numalib.Scan(numalib.PlatformScanners(false)).UsableCores()
	if err := cgroupslib.Init(hclog.NewNullLogger(), cores.String()); err != nil {
		return err
	}
	return cgroupslib.GetPartition(hclog.NewNullLogger(), cores).Release(idset.Empty[hw.CoreID]())
})

// Shell returns a task that runs a script, like Command.
func Shell(t *testing.T, h *testutils.DriverHarness, wraps, script string) *drivers.TaskConfig {
	t.Helper()
	return Command(t, h, wraps, "/bin/sh", "-c", script)
}

// Command returns a task of a driver that wraps that one, with the defaults of its options. It is not started.
func Command(t *testing.T, h *testutils.DriverHarness, wraps, name string, args ...string) *drivers.TaskConfig {
	t.Helper()
	body := fmt.Sprintf("command = %q\n args = [", name)
	for _, arg := range args {
		body += strconv.Quote(arg) + ", "
	}
	body += "]"
	switch wraps {
	case "docker":
		body += fmt.Sprintf("\n image = %q", stack.Image)
	case "raw_exec":
		body += "\n work_dir = \"/\"" // no other user may enter the harness's directories
	}
	schema, err := h.TaskConfigSchema()
	must.NoError(t, err)
	raw, err := Encode(t, schema, body)
	must.NoError(t, err)
	var options map[string]any
	must.NoError(t, base.MsgPackDecode(raw, &options))
	return Task(t, h, options)
}

// Stays is a script that ends with 5 when it is asked to, says so with a file, and otherwise stays.
const Stays = `trap 'echo asked > $NOMAD_TASK_DIR/asked; exit 5' TERM USR1; : > $NOMAD_TASK_DIR/ready; ` +
	`while :; do sleep 0.05; done`

// SetOptions sets options in a task's config block.
func SetOptions(t *testing.T, cfg *drivers.TaskConfig, set map[string]any) {
	t.Helper()
	options := map[string]any{}
	must.NoError(t, cfg.DecodeDriverConfig(&options))
	for name, value := range set {
		options[name] = value
	}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(options))
}

// Start starts a task, which stays until the end of the test.
func Start(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig) *drivers.TaskHandle {
	t.Helper()
	handle, _, err := h.StartTask(cfg)
	must.NoError(t, err)
	t.Cleanup(func() { _ = h.DestroyTask(cfg.ID, true) })
	return handle
}

// StartReady starts a task and returns when its script, such as Stays, says that it listens to signals.
func StartReady(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig) *drivers.TaskConfig {
	t.Helper()
	Start(t, h, cfg)
	AwaitFile(t, cfg, "ready")
	return cfg
}

// AwaitFile waits for a file in the task's local directory.
func AwaitFile(t *testing.T, cfg *drivers.TaskConfig, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must.NoError(t, stack.Eventually(ctx, func() error {
		_, err := os.Stat(filepath.Join(cfg.TaskDir().LocalDir, name))
		return err
	}))
}

// Result returns the channel of the task's result.
func Result(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig) <-chan *drivers.ExitResult {
	t.Helper()
	result, err := h.WaitTask(context.Background(), cfg.ID)
	must.NoError(t, err)
	return result
}

// Exec runs a shell command in the task, as nomad alloc exec does, and returns what it prints. It has to succeed.
func Exec(t *testing.T, h *testutils.DriverHarness, cfg *drivers.TaskConfig, command string) string {
	t.Helper()
	code, stdout, stderr := testutils.ExecTask(t, h, cfg.ID, command, false, "")
	must.Zero(t, code, must.Sprintf("%s: %s%s", command, stdout, stderr))
	return strings.TrimSpace(stdout)
}

// Processes returns the processes that were given the task's environment, or that run it: /proc/<pid> and command line.
func Processes(cfg *drivers.TaskConfig) (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		environ, _ := os.ReadFile(proc + "/environ")
		cmdline, _ := os.ReadFile(proc + "/cmdline")
		given := strings.Contains(string(environ), "NOMAD_ALLOC_ID="+cfg.AllocID)
		if given || strings.Contains(string(cmdline), cfg.AllocDir) {
			found = append(found, proc+" "+string(cmdline))
		}
	}
	return found
}
