package wrapped

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// sweepTimeout is how long killed processes may take to be gone.
const sweepTimeout = 5 * time.Second

// Sweep removes the container of a start that nobody knows the outcome of. Nomad's docker names a container after its
// task and allocation, and takes a running one of that name for the one it was asked for (drivers/docker/driver.go,
// StartTask): the task would go on with the environment of a generation that has gone.
func (d *dockerDriver) Sweep(cfg *drivers.TaskConfig) error {
	handle := drivers.NewTaskHandle(1)
	handle.Config = &drivers.TaskConfig{
		ID:   cfg.ID + "/lost", // what goes by the task's own ID is not lost
		Name: cfg.Name,
		// Nobody reads its output or moves it to other processors.
		StdoutPath: os.DevNull,
		StderrPath: os.DevNull,
		Resources:  &drivers.Resources{LinuxResources: &drivers.LinuxResources{CpusetCpus: "0"}},
	}
	if err := handle.SetDriverState(map[string]string{"ContainerID": containerName(cfg)}); err != nil { // a name will do
		return fmt.Errorf("encode handle of a lost container: %w", err)
	}
	err := d.RecoverTask(handle)
	switch {
	case err == nil:
		err = d.DestroyTask(handle.Config.ID, true)
	case strings.Contains(err.Error(), "No such container"):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", containerName(cfg), err)
	}
	if err := removeAllocMounts(cfg); err != nil {
		return err
	}
	return sweepProcesses(cfg)
}

// containerName returns the name that Nomad's docker gives a container (drivers/docker/driver.go,
// createContainerConfig).
func containerName(cfg *drivers.TaskConfig) string {
	return strings.ReplaceAll(cfg.Name, "/", "_") + "-" + cfg.AllocID
}

// Sweep ends the processes of a start that nobody knows the outcome of.
func (d rawExecDriver) Sweep(cfg *drivers.TaskConfig) error { return sweepProcesses(cfg) }

// Sweep ends the processes of a start that nobody knows the outcome of.
func (d *execDriver) Sweep(cfg *drivers.TaskConfig) error { return sweepProcesses(cfg) }

// sweepProcesses kills what Nomad's drivers have started for a task, and returns when it is gone.
func sweepProcesses(cfg *drivers.TaskConfig) error {
	deadline := time.Now().Add(sweepTimeout)
	for {
		killed, err := killProcesses(cfg)
		if err != nil || len(killed) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of an earlier start do not end", killed)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// killProcesses kills each process of the task that it finds, and returns which they are. A process is opened before
// it is looked at, so that no other one that has got its ID since can be killed in its place.
func killProcesses(cfg *drivers.TaskConfig) (killed []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		process, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if belongsTo(pid, cfg) {
			if err := process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return killed, fmt.Errorf("kill process %d of an earlier start: %w", pid, err)
			}
			killed = append(killed, pid)
		}
		_ = process.Release()
	}
	return killed, nil
}

// belongsTo reports whether a process is the task's, its executor, or the reader of its container's output. A process
// that cannot be read has ended.
func belongsTo(pid int, cfg *drivers.TaskConfig) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil || hasEnded(stat) {
		return false
	}
	cmdline, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		return false
	}
	switch argv := strings.Split(string(cmdline), "\x00"); {
	case len(argv) > 2 && argv[1] == "executor":
		return strings.Contains(argv[2], strconv.Quote(filepath.Join(cfg.TaskDir().Dir, "executor.out")))
	case len(argv) > 1 && argv[1] == "docker_logger":
		// The names are Nomad's (client/allocrunner/taskrunner/logmon_hook.go).
		logs := filepath.Join(cfg.AllocDir, "alloc/logs/."+cfg.Name)
		return hasOpen(proc+"/fd", logs+".stdout.fifo", logs+".stderr.fifo")
	}
	cgroups, err := os.ReadFile(proc + "/cgroup")
	if err == nil && slices.Contains(cgroupNames(string(cgroups)), cgroupOf(cfg)) {
		return true
	}
	environ, err := os.ReadFile(proc + "/environ")
	return err == nil && localDir(environ) == cfg.TaskDir().LocalDir
}

// hasOpen reports whether one of those files is among the open files of a process, whose /proc/<pid>/fd is fds.
func hasOpen(fds string, files ...string) bool {
	entries, err := os.ReadDir(fds)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(entry os.DirEntry) bool {
		file, err := os.Readlink(filepath.Join(fds, entry.Name()))
		return err == nil && slices.Contains(files, file)
	})
}
