package wrapped

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// What a task, a sibling of its allocation or a user of the host does to have root write, make, open or mount what it
// may not.

// plants are what can be put in the place of a file that root opens.
var plants = map[string]func(t *testing.T, c drivertest.Canary, at string){
	"a link to a file": func(t *testing.T, c drivertest.Canary, at string) { must.NoError(t, os.Symlink(c.Path, at)) },
	"a link to no file": func(t *testing.T, c drivertest.Canary, at string) {
		must.NoError(t, os.Symlink(c.Path+"-new", at))
	},
	"a link to a parent": func(t *testing.T, c drivertest.Canary, at string) {
		must.NoError(t, os.Symlink(filepath.Dir(c.Path), at))
	},
	"a pipe":      func(t *testing.T, _ drivertest.Canary, at string) { must.NoError(t, unix.Mkfifo(at, 0o666)) },
	"a directory": func(t *testing.T, _ drivertest.Canary, at string) { must.NoError(t, os.MkdirAll(at+"/a/b", 0o777)) },
	"another name of a file": func(t *testing.T, c drivertest.Canary, at string) {
		must.NoError(t, os.WriteFile(at+"-linked", []byte(drivertest.CanarySays), 0o600))
		must.NoError(t, os.Link(at+"-linked", at))
	},
}

// TestRootOpensNothingThatIsNotItsOwn starts a task, and starts it again, with something in the place of what root
// opens by name.
func TestRootOpensNothingThatIsNotItsOwn(t *testing.T) {
	need.Root(t)
	for _, d := range []string{"exec", "raw_exec", "docker"} {
		t.Run(d, func(t *testing.T) {
			if d == "docker" {
				drivertest.RequireDocker(t)
			}
			for sentence, plant := range plants {
				if d != "docker" || sentence == "a link to a file" { // a container takes seconds, and the mend is the same
					t.Run(sentence, func(t *testing.T) { rootOpens(t, serve(t, d, ""), d, plant) })
				}
			}
		})
	}
}

func rootOpens(t *testing.T, h *testutils.DriverHarness, d string, plant func(*testing.T, drivertest.Canary, string)) {
	c := drivertest.NewCanary(t)
	cfg := drivertest.Shell(t, h, d, "exit 4")
	dir := cfg.TaskDir().Dir
	names := map[string][]string{
		"exec":     {"executor.out", "resolv.conf", "../alloc/container"},
		"raw_exec": {"executor.out"},
		"docker":   {"resolv.conf"},
	}[d]
	if d != "raw_exec" {
		cfg.DNS = &drivers.DNSConfig{Servers: []string{"192.0.2.53"}}
	}
	for range 2 { // a start, and one after the task has run
		for _, name := range names {
			at := filepath.Join(dir, name)
			must.NoError(t, os.RemoveAll(at))
			must.NoError(t, os.RemoveAll(at+"-linked"))
			plant(t, c, at)
		}
		_, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		must.Eq(t, 4, (<-drivertest.Result(t, h, cfg)).ExitCode)
		must.NoError(t, h.DestroyTask(cfg.ID, true))
		c.Lives(t)
		for _, name := range names {
			if linked, err := os.ReadFile(filepath.Join(dir, name+"-linked")); err == nil {
				must.Eq(t, drivertest.CanarySays, string(linked))
			}
		}
	}
}

// moves are what a task or a user of the host tries in a task's directories, which are $task and $alloc to it, to
// have root open something else at its next start, or the log collector at once.
const moves = `
try() { if "$@" 2>/dev/null; then echo "done: $*"; fi; }
try rm -f $task/executor.out
try mv $task/executor.out $task/mine
try ln -sfn /etc/passwd $task/executor.out
try mv $alloc/logs $alloc/mine
try mv $alloc/container $alloc/mine
try touch $alloc/logs/app.stdout.1
try ln -s /etc/passwd $alloc/logs/app.stdout.2
try rmdir $alloc/container
`

// TestNobodyReplacesWhatRootOpens tries it as each of them: a task with the capabilities of Nomad's exec, as root
// too; a container's root; a user of the host, which a raw_exec task can be.
func TestNobodyReplacesWhatRootOpens(t *testing.T) {
	need.Root(t)
	for _, d := range []string{"exec", "docker", "raw_exec"} {
		t.Run(d, func(t *testing.T) {
			if d == "docker" {
				drivertest.RequireDocker(t)
			}
			h := serve(t, d, "")
			cfg := drivertest.Shell(t, h, d, drivertest.Stays)
			t.Cleanup(func() { _ = h.DestroyTask(cfg.ID, true) })
			if d == "docker" {
				body := map[string]any{}
				must.NoError(t, cfg.DecodeDriverConfig(&body))
				body["volumes"] = []string{"../alloc:/also"}
				must.NoError(t, cfg.EncodeConcreteDriverConfig(body))
			}
			drivertest.StartReady(t, h, cfg)
			inside := func(prefix, task, alloc string) string {
				return drivertest.Exec(t, h, cfg, prefix+" sh -c 'task="+task+"; alloc="+alloc+"\n"+moves+"'")
			}
			switch d {
			case "exec":
				must.Eq(t, "", inside("", "", "/alloc"))
				must.Eq(t, "", inside("setpriv --reuid=0 --regid=0 --clear-groups", "", "/alloc"))
			case "docker":
				must.StrNotContains(t, inside("", "/none", "/alloc"), "/alloc")
				must.StrNotContains(t, inside("", "/none", "/also"), "/also")
			}
			must.Eq(t, "", asUser(t, cfg))
		})
	}
}

// asUser makes the moves as a user of the host who can enter the task's directories.
func asUser(t *testing.T, cfg *drivers.TaskConfig) string {
	t.Helper()
	for dir := cfg.AllocDir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		must.NoError(t, os.Chmod(dir, 0o755))
	}
	dirs := cfg.TaskDir()
	more := fmt.Sprintf("task=%s; alloc=%s\n%s\ntry mv $task/local $task/mine\ntry mv $task/private $task/mine\n",
		dirs.Dir, dirs.SharedAllocDir, moves)
	cmd := exec.Command("/bin/sh", "-c", more)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	must.NoError(t, err)
	return string(out)
}

// meanwhile is a wrapped driver that is told to start a task a moment too late.
type meanwhile struct {
	processDriver
	do func()
}

func (d meanwhile) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.do()
	return d.processDriver.StartTask(cfg)
}

// TestCommandIsNotAnotherFileLater exchanges a command that was found for a link to a key, where the executor would
// make the key executable for everyone.
func TestCommandIsNotAnotherFileLater(t *testing.T) {
	for name, at := range map[string]string{
		"local/run": "app/local/run", "/alloc/data/run": "alloc/data/run", "/local/run": "app/local/local/run",
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, "exec", "")
			c := drivertest.NewCanary(t)
			cfg := drivertest.Task(t, h, map[string]any{"command": name, "args": []string{}})
			file := filepath.Join(cfg.AllocDir, strings.Replace(at, "local/local", "local", 1))
			must.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\nexec sleep 600\n"), 0o600))
			d := h.Impl().(*execDriver)
			d.processDriver = meanwhile{d.processDriver, func() {
				info, err := os.Stat(file)
				must.NoError(t, err)
				must.Eq(t, 0o755, info.Mode().Perm())
				late := filepath.Join(cfg.AllocDir, at)
				must.NoError(t, os.MkdirAll(filepath.Dir(late), 0o777))
				must.NoError(t, os.Symlink(c.Path, late+"-link"))
				if late == file {
					must.NoError(t, unix.Renameat2(unix.AT_FDCWD, late, unix.AT_FDCWD, late+"-link", unix.RENAME_EXCHANGE))
				} else {
					must.NoError(t, os.Rename(late+"-link", late))
				}
			}}
			_, _, err := h.StartTask(cfg)
			t.Cleanup(func() { _ = h.DestroyTask(cfg.ID, true) })
			must.Eq(t, at == "app/local/local/run", err == nil, must.Sprint(err))
			c.Lives(t)
		})
	}
}

// TestCommandIsNoOtherNameOfAHostsFile: a hard link is as good as the file.
func TestCommandIsNoOtherNameOfAHostsFile(t *testing.T) {
	h := serve(t, "exec", "")
	c := drivertest.NewCanary(t)
	cfg := drivertest.Task(t, h, map[string]any{"command": "local/run"})
	must.NoError(t, os.Link(c.Path, filepath.Join(cfg.TaskDir().LocalDir, "run")))
	_, _, err := h.StartTask(cfg)
	must.ErrorContains(t, err, "not the task's own file")
	c.Lives(t)
}

// TestRawExecTaskOfAUserOpensNoFileOfOthers: root changes the mode of what the job names, for a user who could not.
func TestRawExecTaskOfAUserOpensNoFileOfOthers(t *testing.T) {
	need.Root(t)
	for sentence, c := range map[string]struct {
		user    string
		command func(key drivertest.Canary, cfg *drivers.TaskConfig) string
		err     string
	}{
		"a key":               {"nobody", itself, "not the task's own file"},
		"a key, by a number":  {"65534", itself, "not the task's own file"},
		"a link to a key":     {"nobody", linked(os.Symlink), "not the task's own file"},
		"another name of one": {"nobody", linked(os.Link), "not the task's own file"},
		"a program":           {"nobody", func(drivertest.Canary, *drivers.TaskConfig) string { return "/bin/true" }, ""},
		"a program by name":   {"nobody", func(drivertest.Canary, *drivers.TaskConfig) string { return "true" }, ""},
		"the task's own":      {"nobody", own(0), ""},
		"the user's own":      {"nobody", own(65534), ""},
		"root":                {"root", own(0), ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			h, key := serve(t, "raw_exec", ""), drivertest.NewCanary(t)
			cfg := drivertest.Command(t, h, "raw_exec", "true")
			cfg.User = c.user
			options := map[string]any{}
			must.NoError(t, cfg.DecodeDriverConfig(&options))
			options["command"] = c.command(key, cfg)
			must.NoError(t, cfg.EncodeConcreteDriverConfig(options))
			for dir := cfg.AllocDir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
				must.NoError(t, os.Chmod(dir, 0o755))
			}
			_, _, err := h.StartTask(cfg)
			if c.err != "" {
				must.ErrorContains(t, err, c.err)
			} else {
				must.NoError(t, err)
				must.Zero(t, (<-drivertest.Result(t, h, cfg)).ExitCode)
				must.NoError(t, h.DestroyTask(cfg.ID, true))
			}
			info, err := os.Stat(key.Path)
			must.NoError(t, err)
			must.Eq(t, 0o600, info.Mode())
		})
	}
}

// itself has the key for a command.
func itself(key drivertest.Canary, _ *drivers.TaskConfig) string { return key.Path }

// linked makes the command another name of a key.
func linked(link func(string, string) error) func(drivertest.Canary, *drivers.TaskConfig) string {
	return func(key drivertest.Canary, cfg *drivers.TaskConfig) string {
		if err := link(key.Path, filepath.Join(cfg.TaskDir().LocalDir, "run")); err != nil {
			panic(err) // Not in a directory of the test's own.
		}
		return "run"
	}
}

// own makes the command a file in the task's directory, of that user's.
func own(uid int) func(drivertest.Canary, *drivers.TaskConfig) string {
	return func(_ drivertest.Canary, cfg *drivers.TaskConfig) string {
		file := filepath.Join(cfg.TaskDir().LocalDir, "run")
		err := errors.Join(os.WriteFile(file, []byte("#!/bin/sh\nexit 0\n"), 0o600), os.Chown(file, uid, uid))
		if err != nil {
			panic(err) // Not in a directory of the test's own.
		}
		return "run"
	}
}

// TestDockerMountsOfAnAllocation is about what a job mounts of its allocation, where an earlier container of it has
// left links.
func TestDockerMountsOfAnAllocation(t *testing.T) {
	need.Root(t)
	drivertest.RequireDocker(t)
	for sentence, c := range map[string]struct {
		volume string // source and mode
		hides  bool   // an empty directory is in the place of private/
		err    string
		shows  string // what /v has
	}{
		"a file of the task's":            {volume: "local/file:/v", shows: "mine"},
		"a directory of the task's":       {volume: "local/dir:/v", shows: "file"},
		"one that is not there":           {volume: "local/new/dir:/v"},
		"one by a link in the allocation": {volume: "local/inside:/v", shows: "file"},
		"the allocation's data":           {volume: "../alloc/data:/v", shows: "shared"},
		"the logs, to be read":            {volume: "../alloc/logs:/v:ro"},
		"the logs": {
			volume: "../alloc/logs:/v",
			err:    "tasks only read alloc/logs: mount it read-only",
		},
		"the whole task":                    {volume: ".:/v", err: "the directory of a whole task or allocation"},
		"another task":                      {volume: "../db:/v", err: "the directory of a whole task or allocation"},
		"all of the allocation":             {volume: "..:/v", err: "the directory of a whole task or allocation"},
		"all of it by a link":               {volume: "local/up:/v", err: "the directory of a whole task or allocation"},
		"a link to the host":                {volume: "local/out:/v", err: "no link may lead out of it"},
		"a path through a link":             {volume: "local/out/canary:/v", err: "no link may lead out of it"},
		"the host, without volumes.enabled": {volume: "/etc:/v", err: "volumes are not enabled"},
		"the task's identities":             {volume: "private:/v:ro", err: "would show the container private/"},
		"another task's identities":         {volume: "../db/private/a:/v:ro", err: "would show the container private/"},
		"identities by a link":              {volume: "local/hidden:/v:ro", err: "would show the container private/"},
		"the whole task with a door":        {volume: ".:/v:ro", hides: true, err: "would show the container private/"},
		"data that is called private":       {volume: "../alloc/private:/v:ro", hides: true},
	} {
		t.Run(sentence, func(t *testing.T) {
			key, h := drivertest.NewCanary(t), serve(t, "docker", "")
			cfg := drivertest.Shell(t, h, "docker", "(cat /v || ls -A /v) > /local/seen")
			must.NoError(t, os.Mkdir(filepath.Join(cfg.AllocDir, "db"), 0o755))
			local := cfg.TaskDir().LocalDir
			drivertest.Write(t, local, map[string]string{"file": "mine", "dir/file": "mine",
				"inside": "->dir", "up": "->../..", "hidden": "->../private", "out": "->" + filepath.Dir(key.Path)})
			drivertest.Write(t, cfg.TaskDir().SharedAllocDir, map[string]string{"data/shared": "ours"})
			source, mode, _ := strings.Cut(c.volume, ":/v")
			for option, value := range map[string]any{
				"volumes": []string{c.volume},
				"mount":   []map[string]any{{"type": "bind", "source": source, "target": "/v", "readonly": mode == ":ro"}},
			} {
				task := cfg.Copy()
				if c.hides {
					task.Mounts = append(task.Mounts, &drivers.MountConfig{TaskPath: "/private", HostPath: t.TempDir()})
				}
				options := map[string]any{}
				must.NoError(t, cfg.DecodeDriverConfig(&options))
				options[option] = value
				must.NoError(t, task.EncodeConcreteDriverConfig(options))
				_, _, err := h.StartTask(task)
				if c.err != "" {
					must.ErrorContains(t, err, c.err)
				} else {
					must.NoError(t, err)
					must.Zero(t, (<-drivertest.Result(t, h, task)).ExitCode)
					must.Eq(t, c.shows, strings.TrimSpace(drivertest.Read(t, local+"/seen")))
					must.NoError(t, h.DestroyTask(task.ID, true))
				}
				key.Lives(t)
				must.SliceEmpty(t, glob(t, filepath.Join(cfg.AllocDir, allocMountsPrefix+"*")))
			}
		})
	}
}

// meanwhileDocker is meanwhile for docker.
type meanwhileDocker struct {
	containerDriver
	do func()
}

func (d meanwhileDocker) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.do()
	return d.containerDriver.StartTask(cfg)
}

// TestMountsAreNotOtherDirectoriesLater exchanges what was looked at for links to a directory of root's, as a sibling
// of Nomad's own docker or exec does it that is root in the allocation's directory.
func TestMountsAreNotOtherDirectoriesLater(t *testing.T) {
	need.Root(t)
	for _, wraps := range []string{"exec", "docker"} {
		t.Run(wraps, func(t *testing.T) {
			if wraps == "docker" {
				drivertest.RequireDocker(t)
			}
			var exchange func()
			d, want := newDriver(t, wraps), ""
			switch inner := d.(type) {
			case *execDriver:
				inner.processDriver = meanwhile{inner.processDriver, func() { exchange() }}
			case *dockerDriver:
				inner.containerDriver = meanwhileDocker{inner.containerDriver, func() { exchange() }}
				want = "file"
			}
			h, key := serveDriver(t, wraps, d, ""), drivertest.NewCanary(t)
			cfg := drivertest.Shell(t, h, wraps, "(cd /v && ls -A; cd /alloc/logs && ls -A) > /local/seen 2>/dev/null; :")
			if wraps == "docker" {
				drivertest.SetOptions(t, cfg, map[string]any{"volumes": []string{"local/dir:/v"}})
			}
			local := cfg.TaskDir().LocalDir
			drivertest.Write(t, local, map[string]string{"dir/file": "mine"})
			exchange = func() {
				for _, dir := range []string{filepath.Join(local, "dir"), filepath.Join(cfg.TaskDir().SharedAllocDir, "logs")} {
					must.NoError(t, os.Symlink(filepath.Dir(key.Path), dir+"-link"))
					must.NoError(t, unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, dir+"-link", unix.RENAME_EXCHANGE))
				}
			}
			if _, _, err := h.StartTask(cfg); err == nil {
				must.NotNil(t, <-drivertest.Result(t, h, cfg))
				must.NoError(t, h.DestroyTask(cfg.ID, true))
				must.Eq(t, want, strings.TrimSpace(drivertest.Read(t, local+"/seen")))
			}
			key.Lives(t)
		})
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	must.NoError(t, err)
	return found
}
