package execroot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

func commandOf(t *testing.T, cfg *drivers.TaskConfig) string {
	t.Helper()
	var options struct {
		Command string   `codec:"command"`
		Args    []string `codec:"args"`
	}
	must.NoError(t, cfg.DecodeDriverConfig(&options))
	must.Eq(t, []string{"-x"}, options.Args)
	return filepath.Clean(options.Command)
}

// showing returns a Builder of roots that show those paths of the host. At the end of the test nothing may be staged.
func showing(t *testing.T, paths ...string) *Builder {
	t.Helper()
	need.Root(t)
	b, state := New(hclog.NewNullLogger()), t.TempDir()
	b.config, b.mounts.stateDir = Config{Paths: paths}, state // Configure refuses what is in the host's /tmp
	t.Cleanup(func() {
		left, err := os.ReadDir(state)
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	})
	return b
}

func TestBuildAddsWhatAChrootHas(t *testing.T) {
	host := t.TempDir()
	drivertest.Write(t, host, map[string]string{"etc/passwd": "root", "usr/bin/app": "binary", "key": "k"})
	b := showing(t, host+"/etc", host+"/lib32", host+"/usr", host+"/key")
	cfg := drivertest.Allocation(t, host+"/usr/bin/app")
	cfg.Mounts = []*drivers.MountConfig{{HostPath: "/srv/data", TaskPath: "/data"}}
	before := cfg.Copy()

	task, release, err := b.Build(cfg)
	must.NoError(t, err)
	defer release()
	must.Eq(t, before, cfg)
	shown := strings.TrimSuffix(task.Mounts[4].HostPath, host+"/etc")
	must.StrHasPrefix(t, b.mounts.stateDir+"/", shown)
	must.Eq(t, []*drivers.MountConfig{
		{HostPath: shown + "/.task/root/executor.out", TaskPath: "/executor.out", Readonly: true},
		{HostPath: cfg.AllocDir + "/alloc", TaskPath: "/alloc"},
		{HostPath: shown + "/.task/logs", TaskPath: "/alloc/logs", Readonly: true},
		{HostPath: shown + "/.task/container", TaskPath: "/alloc/container", Readonly: true},
		{HostPath: shown + host + "/etc", TaskPath: host + "/etc", Readonly: true},
		{HostPath: shown + host + "/usr", TaskPath: host + "/usr", Readonly: true},
		{HostPath: host + "/key", TaskPath: host + "/key", Readonly: true},
		{HostPath: "/srv/data", TaskPath: "/data"},
	}, task.Mounts)
	must.Eq(t, host+"/usr/bin/app", commandOf(t, task))
}

func TestEnv(t *testing.T) {
	b := showing(t)
	for _, name := range []string{"A", "LANG", "PATH", "NOTIFY_SOCKET", "DENIED_BY_THE_OPERATOR"} {
		t.Setenv(name, "host")
	}
	b.config.HostEnv = []string{"A", "LANG", "NOT_SET"}
	for name, c := range map[string]struct{ given, want map[string]string }{
		"what a chroot has": {nil, map[string]string{"A": "host", "LANG": "host", "PATH": defaultPath}},
		"the job's own wins": {map[string]string{"A": "task"},
			map[string]string{"A": "task", "LANG": "host", "PATH": defaultPath}},
		"the job's own with the host's in it": {map[string]string{"PATH": "/opt/bin:${PATH}", "B": "${LANG}-${NOPE}-$LANG"},
			map[string]string{"A": "host", "LANG": "host", "PATH": "/opt/bin:" + defaultPath, "B": "host-${NOPE}-$LANG"}},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, c.want, b.Env(c.given))
			must.Eq(t, c.want, b.Env(b.Env(c.given)), must.Sprint("a task that is recovered"))
		})
	}
}

func TestCommand(t *testing.T) {
	host := t.TempDir()
	drivertest.Write(t, host, map[string]string{
		"usr/bin/app": "binary", "usr/bin/dir/": "", "etc/secret": "s", "opt/tool": "binary", "srv/v/bin/tool": "binary",
		"srv/v/key": "k",
	})
	for _, name := range []string{"etc/secret", "srv/v/key"} {
		must.NoError(t, os.Chmod(filepath.Join(host, name), 0o640))
	}
	for sentence, c := range map[string]struct {
		command string // HOST stands for the host's directory
		task    map[string]string
		want    string
		err     string
	}{
		"a path on the host":                   {command: "HOST/usr/bin/app", want: "HOST/usr/bin/app"},
		"a path on the host without its slash": {command: "RELATIVE/usr/bin/app", want: "HOST/usr/bin/app"},
		"a path that is not clean":             {command: "HOST/usr/../usr/bin/app", want: "HOST/usr/bin/app"},
		"a path in the task's directory": {
			command: "local/run",
			task:    map[string]string{"app/local/run": "x"},
			want:    "/local/run",
		},
		"the same with ${NOMAD_TASK_DIR}": {
			command: "/local/run",
			task:    map[string]string{"app/local/run": "x"},
			want:    "/local/run",
		},
		"a path in the task's local directory": {
			command: "bin/run",
			task:    map[string]string{"app/local/bin/run": "x"},
			want:    "/local/bin/run",
		},
		"a name in the task's local directory": {
			command: "run",
			task:    map[string]string{"app/local/run": "x"},
			want:    "/local/run",
		},
		"a path in the allocation's directory": {
			command: "/alloc/data/run",
			task:    map[string]string{"alloc/data/run": "x"},
			want:    "/alloc/data/run",
		},
		"a path in a volume": {command: "/v/bin/tool", want: "/v/bin/tool"},
		"a path above the task's directory": {
			command: "../../../../RELATIVE/etc/secret", err: "not the task's own file",
		},
		"nothing": {command: "", err: `config command "" not found`},
		"a name nobody has": {
			command: "no-such-program", err: `config command "no-such-program" not found: looked in`,
		},
		"a directory":                       {command: "HOST/usr/bin/dir", err: "not found"},
		"a file that the task does not see": {command: "HOST/opt/tool", err: "not found"},
		"a host's file that cannot be executed": {
			command: "HOST/etc/secret", err: "HOST/etc/secret is not the task's own file",
		},
		"a volume's file that cannot be executed": {command: "/v/key", err: "/v/key is not the task's own file"},
		"a link of the task's to a program": {
			command: "local/run",
			task:    map[string]string{"app/local/run": "->HOST/usr/bin/app"},
			want:    "/local/run",
		},
		"a link of the task's to a host's file": {
			command: "local/run",
			task:    map[string]string{"app/local/run": "->HOST/etc/secret"},
			err:     "not the task's own",
		},
		"a link of the task's in a program's way": {
			command: "HOST/usr/bin/app",
			task:    map[string]string{"app/localHOST/usr/bin/app": "->HOST/etc/secret"},
			err:     "not the task's own",
		},
		"a link out of the allocation": {
			command: "/alloc/data/run",
			task:    map[string]string{"alloc/data/run": "->HOST/etc/secret"},
			err:     "not the task's own",
		},
		"a link to another task's secret": {
			command: "local/run",
			task:    map[string]string{"db/secrets/s": "x", "app/local/run": "->../../db/secrets/s"},
			err:     "not the task's own",
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			place := strings.NewReplacer("HOST", host, "RELATIVE", host[1:]).Replace
			cfg := drivertest.Allocation(t, place(c.command))
			for name, content := range c.task {
				drivertest.Write(t, cfg.AllocDir, map[string]string{place(name): place(content)})
				if !strings.HasPrefix(content, "->") {
					must.NoError(t, os.Chmod(filepath.Join(cfg.AllocDir, name), 0o600)) // the executor's to change
				}
			}
			cfg.Mounts = []*drivers.MountConfig{{HostPath: host + "/srv/v", TaskPath: "/v"}}
			task, release, err := showing(t, host+"/usr", host+"/etc").Build(cfg)
			if c.err != "" {
				must.ErrorContains(t, err, place(c.err))
				must.Nil(t, task)
				return
			}
			must.NoError(t, err)
			defer release()
			must.Eq(t, place(c.want), commandOf(t, task))
		})
	}
}

func TestCommandByNameIsLookedForOnTheHost(t *testing.T) {
	task, release, err := showing(t, defaultPaths...).Build(drivertest.Allocation(t, "sh"))
	must.NoError(t, err)
	defer release()
	must.Eq(t, "/usr/bin/sh", commandOf(t, task))
}
