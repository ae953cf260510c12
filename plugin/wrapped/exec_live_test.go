package wrapped

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

var sleeper = map[string]any{"command": "sleep", "args": []string{"600"}}

func TestExecTaskInABoundRoot(t *testing.T) {
	h := serve(t, "exec", "")
	cfg := drivertest.Task(t, h, sleeper)
	cfg.DNS = &drivers.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example"}}
	volume := t.TempDir()
	drivertest.Write(t, volume, map[string]string{"conf": "from the volume"})
	cfg.Mounts = []*drivers.MountConfig{{HostPath: volume, TaskPath: "/etc/app/conf.d"}}
	before := cfg.Copy()
	handle := drivertest.Start(t, h, cfg)

	for command, want := range map[string]string{
		"id -un":                     "nobody",
		"echo $GREETING":             "hello",
		"echo $NOMAD_ALLOC_DIR":      "/alloc",
		"cat /etc/app/conf.d/conf":   "from the volume",
		"readlink /proc/1/root":      "/",
		"cat /proc/1/comm":           "sleep",
		"test ! -e /root; echo $?":   "0",
		"test ! -e /var; echo $?":    "0",
		"touch /usr/x; echo $?":      "1",
		"touch /etc/ssl/x; echo $?":  "1",
		"head -n1 /etc/passwd":       strings.TrimSpace(strings.SplitN(drivertest.Read(t, "/etc/passwd"), "\n", 2)[0]),
		"echo x > /local/x; echo $?": "0",
	} {
		t.Run(command, func(t *testing.T) { must.Eq(t, want, drivertest.Exec(t, h, cfg, command)) })
	}
	drivertest.Exec(t, h, cfg, "echo shared > /alloc/data/file")
	must.Eq(t, "shared\n", drivertest.Read(t, filepath.Join(cfg.AllocDir, "alloc/data/file")))
	testutils.TestTaskDNSConfig(t, h, cfg.ID, cfg.DNS)
	must.Eq(t, before.Mounts, handle.Config.Mounts)
	must.Eq(t, before.Env, handle.Config.Env)
}

// TestExecTaskIsAsConfinedAsInAChroot starts the same task in both roots and compares what the kernel says of it.
func TestExecTaskIsAsConfinedAsInAChroot(t *testing.T) {
	var seen [2]string
	for i, filesystem := range []string{"bind", "chroot"} {
		h := serve(t, "exec", `filesystem = "`+filesystem+`"`)
		cfg := drivertest.Task(t, h, map[string]any{"command": "/bin/sleep", "args": []string{"600"}})
		drivertest.Start(t, h, cfg)
		for line := range strings.Lines(
			drivertest.Exec(t, h, cfg, "cat /proc/1/status /proc/1/oom_score_adj /proc/1/limits")) {
			switch field := strings.Fields(line)[0]; field {
			case "Uid:", "Gid:", "Groups:", "NoNewPrivs:", "Seccomp:",
				"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "Max":
				seen[i] += line
			}
		}
		seen[i] += drivertest.Exec(t, h, cfg,
			"for f in /dev/* /dev/pts/ptmx /sys/firmware; do stat -c '%n %F %a %u' $f; done")
	}
	must.StrContains(t, seen[0], "CapBnd:")
	must.Eq(t, seen[1], seen[0])
}

// TestExecTaskLeavesNoMountPoints is about what the executor makes in a task's directory: for files such as those of
// systemd-resolved, which are on a tmpfs of the host's, and for the entries of a directory that a volume is mounted
// in.
func TestExecTaskLeavesNoMountPoints(t *testing.T) {
	need.Root(t)
	host, err := os.MkdirTemp("/var/lib", "nomad-driver-vault-test-")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(host)) })
	must.NoError(t, os.Chmod(host, 0o755))
	drivertest.Write(t, host, map[string]string{
		"run/resolve/stub.conf": "nameserver 127.0.0.53", "run/resolve/resolv.conf": "nameserver 192.0.2.1",
		"conf/a": "a", "conf/dir/b": "b", "conf/link": "->a"})
	h := serve(t, "exec", fmt.Sprintf("paths = [%q, %q, %q, \"/usr\", \"/bin\", \"/lib\", \"/lib64\"]",
		host+"/run/resolve/stub.conf", host+"/run/resolve/resolv.conf", host+"/conf"))
	cfg := drivertest.Task(t, h, sleeper)
	drivertest.Write(t, cfg.TaskDir().Dir, map[string]string{
		host[1:] + "/conf/mine": "of the job", host[1:] + "/conf/empty": ""})
	cfg.Mounts = []*drivers.MountConfig{{HostPath: t.TempDir(), TaskPath: host + "/conf/volume"}}
	handle := drivertest.Start(t, h, cfg)
	must.Eq(t, "nameserver 127.0.0.53", drivertest.Exec(t, h, cfg, "cat "+host+"/run/resolve/stub.conf"))
	must.Eq(t, "b", drivertest.Exec(t, h, cfg, "cat "+host+"/conf/dir/b"))
	must.SliceNotEmpty(t, filesIn(t, cfg.TaskDir().Dir+host+"/run"))

	inner := h.Impl().(*execDriver)
	must.NoError(t, inner.RecoverTask(handle))
	must.Error(t, h.DestroyTask(cfg.ID, false), must.Sprint("it runs"))
	must.SliceNotEmpty(t, filesIn(t, cfg.TaskDir().Dir+host+"/run"))
	must.NoError(t, h.DestroyTask(cfg.ID, true))
	must.Eq(t, []string{"empty", "mine"}, filesIn(t, cfg.TaskDir().Dir+host), must.Sprint("the host has neither"))
	_, err = os.Lstat(cfg.TaskDir().Dir + host + "/run")
	must.ErrorIs(t, err, os.ErrNotExist)
}

// filesIn are the names of the files below a directory.
func filesIn(t *testing.T, dir string) (all []string) {
	t.Helper()
	must.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, e.Name())
		}
		return err
	}))
	return all
}

func TestExecTaskStreaming(t *testing.T) {
	h := serve(t, "exec", "")
	cfg := drivertest.Task(t, h, sleeper)
	drivertest.Start(t, h, cfg)
	testutils.ExecTaskStreamingConformanceTests(t, h, cfg.ID)
}

func TestExecTaskStopsAndStartsAgain(t *testing.T) {
	h := serve(t, "exec", "")
	cfg := drivertest.Task(t, h, map[string]any{"command": "sh",
		"args": []string{"-c", "trap 'exit 7' HUP; while :; do sleep 0.1; done"}})
	drivertest.Write(t, cfg.TaskDir().Dir, map[string]string{"etc/app.conf": "the job's"})
	for range 2 {
		_, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		must.Eq(t, "the job's", drivertest.Exec(t, h, cfg, "cat /etc/app.conf"))
		must.Eq(t, "nobody", drivertest.Exec(t, h, cfg, "id -un"))
		result, err := h.WaitTask(context.Background(), cfg.ID)
		must.NoError(t, err)
		must.NoError(t, h.StopTask(cfg.ID, 10*time.Second, "SIGHUP"))
		must.Eq(t, 7, (<-result).ExitCode)
		must.NoError(t, h.DestroyTask(cfg.ID, false))
	}
}

func TestExecTaskOfTheJobsOwnProgram(t *testing.T) {
	h := serve(t, "exec", "")
	cfg := drivertest.Task(t, h, map[string]any{"command": "local/run"})
	script := filepath.Join(cfg.TaskDir().LocalDir, "run")
	must.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\nexec sleep 600\n"), 0o600))
	drivertest.Start(t, h, cfg)
	must.Eq(t, "sleep", drivertest.Exec(t, h, cfg, "cat /proc/1/comm"))
}

func TestExecTaskWithoutItsCommand(t *testing.T) {
	h := serve(t, "exec", "")
	_, _, err := h.StartTask(drivertest.Task(t, h, map[string]any{"command": "no-such-program"}))
	must.ErrorContains(t, err, `config command "no-such-program" not found`)
}

// TestExecCannotChangeAHostsFile is why package execroot finds the command: Nomad's executor, given this command in a
// root of mounts, makes the file readable for everyone.
func TestExecCannotChangeAHostsFile(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "key")
	must.NoError(t, os.WriteFile(secret, []byte("k"), 0o600))
	h := serve(t, "exec", "")
	_, _, err := h.StartTask(drivertest.Task(t, h, map[string]any{"command": secret}))
	must.ErrorContains(t, err, "not found")
	info, err := os.Stat(secret)
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode().Perm())
}
