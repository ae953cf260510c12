package wrapped

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-vault/plugin/execroot"
)

// rawExecDriver is Nomad's raw_exec. The agent cannot know that it supports no mounts, because that field is lost on
// the way to an external plugin (plugins/drivers/server.go): a volume_mount would be silently ignored.
type rawExecDriver struct {
	processDriver
	*concealer
}

// StartTask refuses a task with mounts, and one whose command only its user may not execute.
func (d rawExecDriver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if len(cfg.Mounts) > 0 {
		return nil, nil, fmt.Errorf("volume_mount %q: raw_exec tasks see the host's own files and cannot mount volumes; "+
			"remove the block or use vault-exec or vault-docker", cfg.Mounts[0].TaskPath)
	}
	if err := guard(cfg); err != nil {
		return nil, nil, err
	}
	if err := checkHostCommand(cfg); err != nil {
		return nil, nil, err
	}
	return d.processDriver.StartTask(cfg)
}

// enableRawExec turns raw_exec on: who installs this plugin and configures it wants it, while Nomad has its own off
// because it is always there.
func enableRawExec(attrs map[string]*hclspec.Spec) {
	attrs["enabled"] = withDefault(attrs["enabled"], "true")
}

// checkHostCommand refuses a command that the executor would make executable for a user who may not execute it. The
// executor looks in the task's local directory, in its directory, on the host and in PATH (lookupBin in
// drivers/shared/executor/executor.go), and changes as root the mode of what it finds.
func checkHostCommand(cfg *drivers.TaskConfig) error {
	var options struct {
		Command string `codec:"command"`
	}
	if err := cfg.DecodeDriverConfig(&options); err != nil {
		return fmt.Errorf("decode task config: %w", err)
	}
	uid, known := uidOf(cfg.User)
	if !known || uid == os.Geteuid() {
		return nil // root changes what it likes, and a user whom nobody knows does not run
	}
	dirs := cfg.TaskDir()
	candidates := []string{filepath.Join(dirs.LocalDir, options.Command), filepath.Join(dirs.Dir, options.Command)}
	if filepath.IsAbs(options.Command) {
		candidates = append(candidates, options.Command)
	} else if path, err := exec.LookPath(options.Command); err == nil {
		candidates = append(candidates, path)
	}
	for _, file := range candidates {
		info, err := os.Stat(file)
		if err != nil {
			continue
		}
		if int(info.Sys().(*syscall.Stat_t).Uid) == uid {
			return nil
		}
		return execroot.EnsureExecutable(dirs, options.Command, file)
	}
	return nil
}

// uidOf returns the ID of a user of the host, which is the plugin's own where none is named.
func uidOf(name string) (uid int, known bool) {
	if name == "" {
		return os.Geteuid(), true
	}
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return 0, false
	}
	uid, err = strconv.Atoi(u.Uid)
	return uid, err == nil
}
