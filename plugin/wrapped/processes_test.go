package wrapped

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/cgroupslib"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// inCgroup reports whether a process with that /proc/<pid>/cgroup is in a cgroup of that name.
func inCgroup(cgroups, name string) bool { return slices.Contains(cgroupNames(cgroups), name) }

func TestGroupsAndMountsOfTasksAreFound(t *testing.T) {
	v1 := "12:cpuset:/nomad/share/1f.web\n1:name=systemd:/nomad/1f.web\n"
	v2 := "0::/nomad.slice/share.slice/1f.web.scope\n"
	for _, groups := range []string{v1, v2} {
		must.True(t, inCgroup(groups, "1f.web"))
		must.False(t, inCgroup(groups, "1f.we"))
		must.False(t, inCgroup(groups, "f.web"))
	}
	must.True(t, inCgroup("0::/nomad.slice/share.slice/1f.a b.scope\n", "1f.a b"))
	table := filepath.Join(t.TempDir(), "mountinfo")
	must.NoError(t, os.WriteFile(table, []byte(
		"36 35 98:0 /nomad/alloc/1f/web/local /local rw,noatime master:1 - ext3 /dev/root rw\n"+
			"37 35 98:0 /nomad/alloc/1f/a\\040b/local /a\\040b rw,noatime master:1 - ext3 /dev/root rw\n"+
			"38 35 98:0 /1 / rw - x x x\n"), 0o600))
	must.Eq(t, []string{"/local", "/a b"}, taskMounts(table))
	must.SliceEmpty(t, taskMounts("/proc/none/mountinfo"))
}

// TestTaskIsFoundInACgroupOfAnotherName starts a raw_exec task in the cgroup that it asks for, as an operator's job
// may.
func TestTaskIsFoundInACgroupOfAnotherName(t *testing.T) {
	need.Root(t)
	h := serve(t, "raw_exec", "")
	cfg := drivertest.Shell(t, h, "raw_exec", "(sleep 600 &)\n"+drivertest.Stays)
	options := map[string]any{}
	must.NoError(t, cfg.DecodeDriverConfig(&options))
	for option, value := range anotherCgroup(t) {
		options[option] = value
	}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(options))
	drivertest.StartReady(t, h, cfg)
	groups := drivertest.Read(t, fmt.Sprintf("/proc/%d/cgroup", pidOf(t, cfg)))
	must.False(t, inCgroup(groups, cfg.AllocID+"."+cfg.Name), must.Sprint(groups))

	// What the next plugin process knows of the task.
	known := &drivers.TaskConfig{ID: cfg.ID, AllocID: cfg.AllocID, Name: cfg.Name, AllocDir: cfg.AllocDir}
	inner := h.Impl().(driver.Sweeper)
	must.True(t, inner.Runs(known))
	must.False(t, inner.Runs(&drivers.TaskConfig{AllocID: cfg.AllocID, Name: "other", AllocDir: cfg.AllocDir}))
	must.NoError(t, inner.Sweep(known))
	must.SliceEmpty(t, drivertest.Processes(cfg))
	must.False(t, inner.Runs(known))
}

// anotherCgroup makes cgroups with another name than Nomad's, and returns what a job says to be in them.
func anotherCgroup(t *testing.T) map[string]any {
	t.Helper()
	name := fmt.Sprintf("nomad-driver-vault-test-%d", os.Getpid())
	if cgroupslib.GetMode() == cgroupslib.CG2 {
		makeCgroup(t, filepath.Join("/sys/fs/cgroup", name))
		return map[string]any{"cgroup_v2_override": name}
	}
	override := map[string]string{}
	mounts, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	must.NoError(t, err)
	for _, procs := range mounts {
		controller := filepath.Base(filepath.Dir(procs))
		if controller == "cpuset" || controller == "unified" { // the one takes processes only after more was said of it
			continue
		}
		makeCgroup(t, filepath.Join("/sys/fs/cgroup", controller, name))
		override[controller] = name
	}
	return map[string]any{"cgroup_v1_override": []map[string]string{override}}
}

func makeCgroup(t *testing.T, dir string) {
	t.Helper()
	must.NoError(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() { _ = os.Remove(dir) })
}

// pidOf is a process of the task.
func pidOf(t *testing.T, cfg *drivers.TaskConfig) int {
	t.Helper()
	for _, process := range drivertest.Processes(cfg) {
		if strings.Contains(process, "sleep 600") || strings.Contains(process, "sleep\x00600") {
			pid, err := strconv.Atoi(strings.TrimPrefix(strings.Fields(process)[0], "/proc/"))
			must.NoError(t, err)
			return pid
		}
	}
	t.Fatal("the task has no process")
	return 0
}

// TestContainerOfAnotherTaskIsNotTheTasks mounts a directory that is named like another task's local one.
func TestContainerOfAnotherTaskIsNotTheTasks(t *testing.T) {
	need.Root(t)
	drivertest.RequireDocker(t)
	h := serve(t, "docker", "")
	victim := &drivers.TaskConfig{AllocID: "1f", Name: "web", AllocDir: filepath.Join(t.TempDir(), "1f")}
	must.NoError(t, os.MkdirAll(victim.TaskDir().LocalDir, 0o755))
	cfg := drivertest.Shell(t, h, "docker", drivertest.Stays)
	options := map[string]any{}
	must.NoError(t, cfg.DecodeDriverConfig(&options))
	options["volumes"] = []string{"../alloc/data/1f/web/local:/v"}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(options))
	drivertest.StartReady(t, h, cfg)
	inner := h.Impl().(driver.Sweeper)
	must.True(t, inner.Runs(cfg))
	must.False(t, inner.Runs(victim))
	must.False(t, inner.RunsAny(victim))
}

// What an init task has left is kept while this finds the main task.
func TestProcessOfAnyTaskOfAnAllocationIsFound(t *testing.T) {
	need.Root(t)
	for _, wraps := range Names() {
		t.Run(wraps, func(t *testing.T) {
			if wraps == "docker" {
				drivertest.RequireDocker(t)
			}
			h := serve(t, wraps, "")
			cfg := drivertest.Shell(t, h, wraps, drivertest.Stays)
			ended := &drivers.TaskConfig{AllocID: cfg.AllocID, Name: "init", AllocDir: cfg.AllocDir}
			inner := h.Impl().(driver.Sweeper)
			must.False(t, inner.RunsAny(ended))
			drivertest.StartReady(t, h, cfg)
			must.True(t, inner.RunsAny(ended))
			must.False(t, inner.Runs(ended))
			must.False(t, inner.RunsAny(&drivers.TaskConfig{AllocID: "1f", AllocDir: cfg.AllocDir + "f"}))
			must.NoError(t, h.DestroyTask(cfg.ID, true))
			must.False(t, inner.RunsAny(ended))
		})
	}
}

// Those who ask while somebody looks share the next look, and none gets an answer that is older than its question.
func TestOneLookAtTheProcessesAnswersMany(t *testing.T) {
	var p processTable
	looks := map[time.Time]bool{}
	cfg := &drivers.TaskConfig{AllocID: "none", Name: "web", AllocDir: "/none"}
	p.mu.Lock()
	var all sync.WaitGroup
	var mu sync.Mutex
	for range 100 {
		all.Go(func() {
			asked := time.Now()
			must.False(t, p.has(cfg))
			p.mu.Lock()
			began := p.began
			p.mu.Unlock()
			must.True(t, began.After(asked))
			mu.Lock()
			looks[began] = true
			mu.Unlock()
		})
	}
	waiting := func() int {
		stacks := make([]byte, 1<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*processTable).has(")
	}
	for waiting() < 100 {
	}
	p.mu.Unlock()
	all.Wait()
	must.MapLen(t, 1, looks)
}
