package plugin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// recorder is an exec driver that keeps the task it is asked to start.
type recorder struct {
	processDriver
	started *drivers.TaskConfig
}

func (d *recorder) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.started = cfg
	handle := drivers.NewTaskHandle(1)
	handle.Config = cfg
	return handle, nil, nil
}

// write makes files, with their directories, from their paths and contents. A path that ends in / is a directory, a
// content that starts with -> a symbolic link, and | alone a pipe.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		target, link := strings.CutPrefix(content, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			must.NoError(t, os.MkdirAll(path, 0o755))
		case link:
			must.NoError(t, os.Symlink(target, path))
		case content == "|":
			must.NoError(t, unix.Mkfifo(path, 0o755))
		default:
			must.NoError(t, os.WriteFile(path, []byte(content), 0o755))
		}
	}
}

// testTask is an allocation with the directories that Nomad makes.
func testTask(t *testing.T, command string) *drivers.TaskConfig {
	t.Helper()
	cfg := &drivers.TaskConfig{Name: "app", AllocDir: t.TempDir(), Env: map[string]string{"A": "task"}}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(map[string]any{"command": command, "args": []string{"-x"}}))
	write(t, cfg.AllocDir, map[string]string{"alloc/data/": "", "app/local/": "", "app/secrets/": ""})
	return cfg
}

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

// paths lists where mounts go, relative to a host directory where they are below it.
func paths(mounts []*drivers.MountConfig, host string) []string {
	var all []string
	for _, m := range mounts {
		all = append(all, strings.TrimPrefix(m.TaskPath, host))
	}
	return all
}

// bound is an exec driver that shows paths of the host to its tasks, which it does not start.
func bound(t *testing.T, inner *recorder, paths ...string) *execRoot {
	t.Helper()
	requireRoot(t)
	r := newExecRoot(hclog.NewNullLogger(), inner)
	r.execConfig, r.ownerless.stateDir = execConfig{Filesystem: "bind", Paths: paths}, t.TempDir()
	t.Cleanup(func() {
		left, err := os.ReadDir(r.ownerless.stateDir)
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	})
	return r
}

func TestExecRootAddsWhatAChrootHas(t *testing.T) {
	host := t.TempDir()
	write(t, host, map[string]string{"etc/passwd": "root", "usr/bin/app": "binary", "key": "k"})
	inner := &recorder{}
	r := bound(t, inner, host+"/etc", host+"/lib32", host+"/usr", host+"/key")
	for _, name := range []string{"A", "LANG", "PATH", "NOTIFY_SOCKET", "DENIED_BY_THE_OPERATOR"} {
		t.Setenv(name, "host")
	}
	r.HostEnv = []string{"A", "LANG", "NOT_SET"}
	cfg := testTask(t, host+"/usr/bin/app")
	cfg.Mounts = []*drivers.MountConfig{{HostPath: "/srv/data", TaskPath: "/data"}}
	before := cfg.Copy()

	handle, _, err := r.StartTask(cfg)
	must.NoError(t, err)
	must.EqOp(t, cfg, handle.Config)
	must.Eq(t, before, cfg)
	shown := strings.TrimSuffix(inner.started.Mounts[4].HostPath, host+"/etc")
	must.StrHasPrefix(t, r.ownerless.stateDir+"/", shown)
	must.Eq(t, []*drivers.MountConfig{
		{HostPath: shown + "/.task/root/executor.out", TaskPath: "/executor.out", Readonly: true},
		{HostPath: cfg.AllocDir + "/alloc", TaskPath: "/alloc"},
		{HostPath: shown + "/.task/logs", TaskPath: "/alloc/logs", Readonly: true},
		{HostPath: shown + "/.task/container", TaskPath: "/alloc/container", Readonly: true},
		{HostPath: shown + host + "/etc", TaskPath: host + "/etc", Readonly: true},
		{HostPath: shown + host + "/usr", TaskPath: host + "/usr", Readonly: true},
		{HostPath: host + "/key", TaskPath: host + "/key", Readonly: true},
		{HostPath: "/srv/data", TaskPath: "/data"},
	}, inner.started.Mounts)
	must.Eq(t, map[string]string{"A": "task", "LANG": "host", "PATH": defaultPath}, inner.started.Env)
	must.Eq(t, host+"/usr/bin/app", commandOf(t, inner.started))
}

func TestExecRootKeepsTasksFromTheHostsProcesses(t *testing.T) {
	requireRoot(t)
	for sentence, c := range map[string]struct {
		asks, body string
		refused    bool
	}{
		"a task that asks for them is refused":              {asks: "host", refused: true},
		"unless the operator shows them to each":            {asks: "host", body: `default_pid_mode = "host"`},
		"one that does not ask starts":                      {},
		"so does one that asks for its own":                 {asks: "private"},
		"a chroot, where tasks read all anyway, is Nomad's": {asks: "host", body: `filesystem = "chroot"`},
	} {
		t.Run(sentence, func(t *testing.T) {
			p := newPlugin(t, "exec", "vault-exec")
			must.NoError(t, configure(t, p, c.body+"\n state_dir = \""+stateDir(t)+"\""))
			inner := &recorder{}
			r := p.inner.(*execRoot)
			r.processDriver = inner
			cfg := testTask(t, "")
			must.NoError(t, cfg.EncodeConcreteDriverConfig(map[string]any{"command": "sh", "pid_mode": c.asks}))
			_, _, err := r.StartTask(cfg)
			must.Eq(t, c.refused, inner.started == nil, must.Sprint(err))
			if c.refused {
				must.ErrorContains(t, err, `config pid_mode "host" is not allowed`)
			}
		})
	}
}

func TestExecRootLeavesAChrootToNomad(t *testing.T) {
	requireRoot(t)
	inner, log := &recorder{}, &strings.Builder{}
	r := newExecRoot(hclog.New(&hclog.LoggerOptions{Output: log}), inner)
	r.execConfig = execConfig{Filesystem: "chroot", Vault: map[string]*cluster{"a": {TokenFile: "/etc/token", KeyFile: "/opt/key"}, "b": {}}}
	cfg := testTask(t, "anything")
	key := newCanary(t)
	write(t, cfg.TaskDir().Dir, map[string]string{"etc/token": "t", "executor.out": "->" + key.path})
	_, _, err := r.StartTask(cfg)
	must.NoError(t, err)
	key.lives(t)
	info, err := os.Lstat(cfg.TaskDir().Dir + "/executor.out")
	must.NoError(t, err)
	must.True(t, isOwn(info), must.Sprint("what root opens is root's there, too"))
	must.EqOp(t, cfg, inner.started)
	must.StrContains(t, log.String(), "exec tasks can read this file: chroot_env puts it into their root; move it elsewhere: vault=a token_file=/etc/token\n")
	must.StrNotContains(t, log.String(), "key")
}

func TestLayout(t *testing.T) {
	etc := map[string]string{
		"etc/passwd": "root", "etc/ssl/ca.pem": "ca", "etc/localtime": "->../usr/zone", "etc/resolv.conf": "->/run/none",
	}
	single := []string{"/etc/passwd", "/etc/ssl"}
	for sentence, c := range map[string]struct {
		claims []string
		task   map[string]string // what is in the task's directory below the host directory's name
		want   []string
		link   string
	}{
		"a directory is one mount":                                {want: []string{"/etc"}},
		"a volume on a directory of the host leaves it one mount": {claims: []string{"/etc/ssl"}, want: []string{"/etc"}},
		"a volume over all of it leaves it one mount":             {claims: []string{"/etc"}, want: []string{"/etc"}},
		"a volume elsewhere leaves it one mount":                  {claims: []string{"/etcetera/x"}, want: []string{"/etc"}},
		"a volume where the host has nothing finds a place":       {claims: []string{"/etc/app"}, want: single, link: "../usr/zone"},
		"so does one further down":                                {claims: []string{"/etc/ssl/app"}, want: []string{"/etc/passwd", "/etc/ssl/ca.pem"}},
		"a dns block replaces a link that leads nowhere":          {claims: []string{"/etc/resolv.conf"}, want: single},
		"a file of the job's wins":                                {task: map[string]string{"etc/passwd": "mine"}, want: single[1:]},
		"a file of the job's has the host's beside it":            {task: map[string]string{"etc/app.conf": "mine"}, want: single},
		"a file of the job's replaces a directory":                {task: map[string]string{"etc/ssl": "mine"}, want: single[:1]},
		"a pipe of the task's in the place of all of it wins":     {task: map[string]string{"etc": "|"}},
		"so does a link": {task: map[string]string{"etc": "->/local"}},
		"a pipe of the task's wins in the place of a directory":    {task: map[string]string{"etc/ssl": "|"}, want: single[:1]},
		"a mount point of an earlier start is not the job's":       {task: map[string]string{"etc/": ""}, want: []string{"/etc"}},
		"nor are those of a directory that was mounted piece-wise": {task: map[string]string{"etc/passwd": "", "etc/ssl/": ""}, want: single},
	} {
		t.Run(sentence, func(t *testing.T) {
			host, dir := t.TempDir(), t.TempDir()
			write(t, host, etc)
			socket, err := net.Listen("unix", host+"/etc/socket")
			must.NoError(t, err)
			defer socket.Close()
			write(t, dir+host, c.task)
			for i, claim := range c.claims {
				c.claims[i] = host + claim
			}
			root, err := os.OpenRoot(dir)
			must.NoError(t, err)
			l := &layout{root: root, visible: []string{host + "/etc"}, claims: c.claims}
			must.NoError(t, l.add(host+"/etc"))
			must.Eq(t, c.want, paths(l.mounts, host))
			if c.link != "" {
				link, err := root.Readlink(host[1:] + "/etc/localtime")
				must.NoError(t, err)
				must.Eq(t, c.link, link)
			}
			_, err = root.Lstat(host[1:] + "/etc/resolv.conf")
			must.Eq(t, slices.Contains(c.claims, host+"/etc/resolv.conf") || len(c.want) == 0 || c.want[0] == "/etc", err != nil)
		})
	}
}

// One destination in a directory such as /usr/share/doc, or a file of the job's there, is not to cost every task on the node its start.
func TestLayoutHasABoundOnMounts(t *testing.T) {
	for sentence, c := range map[string]struct {
		claims []string
		task   map[string]string
		says   string
	}{
		"a volume":          {claims: []string{"/usr/doc/mine"}, says: `destination "HOST/usr/doc/mine" would take a mount for each of the 1001 entries of HOST/usr/doc`},
		"a file of the job": {task: map[string]string{"usr/doc/mine": "x"}, says: `what the job has in "HOST/usr/doc" of its own directory would take`},
		"nothing":           {},
	} {
		t.Run(sentence, func(t *testing.T) {
			host, dir := t.TempDir(), t.TempDir()
			for i := range 1001 {
				write(t, host, map[string]string{fmt.Sprintf("usr/doc/%d", i): "x"})
			}
			write(t, dir+host, c.task)
			root, err := os.OpenRoot(dir)
			must.NoError(t, err)
			l := &layout{root: root, visible: []string{host + "/usr"}}
			for _, claim := range c.claims {
				l.claims = append(l.claims, host+claim)
			}
			if err = l.add(host + "/usr"); c.says == "" {
				must.NoError(t, err)
				must.SliceLen(t, 1, l.mounts)
			} else {
				must.ErrorContains(t, err, strings.ReplaceAll(c.says, "HOST", host))
			}
		})
	}
}

func TestLayoutShowsWhatIsMountedBelow(t *testing.T) {
	host := t.TempDir()
	write(t, host, map[string]string{"usr/bin/": "", "usr/share/": "", "bin": "->usr/bin", "usr/hosts": "h", "usr/secret": "s"})
	root, err := os.OpenRoot(t.TempDir())
	must.NoError(t, err)
	must.NoError(t, os.Chmod(host+"/usr/secret", 0o640))
	l := &layout{root: root, ownerless: "/shown", submounts: []string{
		host, host + "/usr", host + "/usr/bin", host + "/usr/hosts", host + "/usr/secret", host + "/usrlocal"}}
	must.NoError(t, l.add(host+"/usr"))
	must.NoError(t, l.add(host+"/bin"))
	must.Eq(t, []string{"/usr", "/usr/bin", "/usr/hosts", "/usr/secret", "/bin"}, paths(l.mounts, host))
	var from []string
	for _, m := range l.mounts {
		from = append(from, strings.Replace(m.HostPath, host, "HOST", 1))
	}
	must.Eq(t, []string{"/shownHOST/usr", "/shownHOST/usr/bin", "HOST/usr/hosts", "/shownHOST/usr/secret", "/shownHOST/usr/bin"}, from,
		must.Sprint("a file on a mount of its own is the only thing that is not taken from where nobody owns anything"))
}

func TestLayoutDoesNotFollowTheTasksLinks(t *testing.T) {
	host, dir, outside := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, host, map[string]string{"etc/a": "->b"})
	write(t, outside, map[string]string{"etc/x": "not ours"})
	must.NoError(t, os.MkdirAll(dir+filepath.Dir(host), 0o755))
	must.NoError(t, os.Symlink(outside, dir+host))
	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	must.Error(t, (&layout{root: root, claims: []string{host + "/etc/new"}}).add(host+"/etc"))
	entries, err := os.ReadDir(outside + "/etc")
	must.NoError(t, err)
	must.Len(t, 1, entries)
}

func TestSubmountsAreInOrderAndUnescaped(t *testing.T) {
	all, err := submounts()
	must.NoError(t, err)
	must.SliceContains(t, all, "/proc")
	must.True(t, slices.IsSorted(all))
	must.Eq(t, `/a b\c"d`, unescape(`/a\040b\134c"d`))
}

func TestCommand(t *testing.T) {
	host := t.TempDir()
	write(t, host, map[string]string{
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
		"a path on the host":                      {command: "HOST/usr/bin/app", want: "HOST/usr/bin/app"},
		"a path on the host without its slash":    {command: "RELATIVE/usr/bin/app", want: "HOST/usr/bin/app"},
		"a path that is not clean":                {command: "HOST/usr/../usr/bin/app", want: "HOST/usr/bin/app"},
		"a path in the task's directory":          {command: "local/run", task: map[string]string{"app/local/run": "x"}, want: "/local/run"},
		"the same with ${NOMAD_TASK_DIR}":         {command: "/local/run", task: map[string]string{"app/local/run": "x"}, want: "/local/run"},
		"a path in the task's local directory":    {command: "bin/run", task: map[string]string{"app/local/bin/run": "x"}, want: "/local/bin/run"},
		"a name in the task's local directory":    {command: "run", task: map[string]string{"app/local/run": "x"}, want: "/local/run"},
		"a path in the allocation's directory":    {command: "/alloc/data/run", task: map[string]string{"alloc/data/run": "x"}, want: "/alloc/data/run"},
		"a path in a volume":                      {command: "/v/bin/tool", want: "/v/bin/tool"},
		"a path above the task's directory":       {command: "../../../../RELATIVE/etc/secret", err: "not the task's own file"},
		"nothing":                                 {command: "", err: `config command "" not found`},
		"a name nobody has":                       {command: "no-such-program", err: `config command "no-such-program" not found: looked in`},
		"a directory":                             {command: "HOST/usr/bin/dir", err: "not found"},
		"a file that the task does not see":       {command: "HOST/opt/tool", err: "not found"},
		"a host's file that cannot be executed":   {command: "HOST/etc/secret", err: "HOST/etc/secret is not the task's own file"},
		"a volume's file that cannot be executed": {command: "/v/key", err: "/v/key is not the task's own file"},
		"a link of the task's to a program":       {command: "local/run", task: map[string]string{"app/local/run": "->HOST/usr/bin/app"}, want: "/local/run"},
		"a link of the task's to a host's file":   {command: "local/run", task: map[string]string{"app/local/run": "->HOST/etc/secret"}, err: "not the task's own"},
		"a link of the task's in a program's way": {command: "HOST/usr/bin/app", task: map[string]string{"app/localHOST/usr/bin/app": "->HOST/etc/secret"}, err: "not the task's own"},
		"a link out of the allocation":            {command: "/alloc/data/run", task: map[string]string{"alloc/data/run": "->HOST/etc/secret"}, err: "not the task's own"},
		"a link to another task's secret":         {command: "local/run", task: map[string]string{"db/secrets/s": "x", "app/local/run": "->../../db/secrets/s"}, err: "not the task's own"},
	} {
		t.Run(sentence, func(t *testing.T) {
			place := strings.NewReplacer("HOST", host, "RELATIVE", host[1:]).Replace
			cfg := testTask(t, place(c.command))
			for name, content := range c.task {
				write(t, cfg.AllocDir, map[string]string{place(name): place(content)})
				if !strings.HasPrefix(content, "->") {
					must.NoError(t, os.Chmod(filepath.Join(cfg.AllocDir, name), 0o600)) // the executor's to change
				}
			}
			cfg.Mounts = []*drivers.MountConfig{{HostPath: host + "/srv/v", TaskPath: "/v"}}
			inner := &recorder{}
			_, _, err := bound(t, inner, host+"/usr", host+"/etc").StartTask(cfg)
			if c.err != "" {
				must.ErrorContains(t, err, place(c.err))
				must.Nil(t, inner.started)
				return
			}
			must.NoError(t, err)
			must.Eq(t, place(c.want), commandOf(t, inner.started))
		})
	}
}

func TestCommandByNameIsLookedForOnTheHost(t *testing.T) {
	inner := &recorder{}
	_, _, err := bound(t, inner, execPaths...).StartTask(testTask(t, "sh"))
	must.NoError(t, err)
	must.Eq(t, "/usr/bin/sh", commandOf(t, inner.started))
}
