package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/e2e/stack"
)

// Files that a task reads when it likes: each is whole at every moment, they belong together as far as files can, and
// what the task does to their places is its own loss.

// A placed is a file of a task with everything that a reader can see of it but the content.
type placed struct {
	name     string // secrets/a
	mode     fs.FileMode
	uid, gid uint32
}

// gens are the files of the test below, in the order of their blocks.
var gens = []placed{
	{"secrets/first", 0o644, 0, 0},
	{"local/conf/nobodys", 0o600, 65534, 65534},
	{"secrets/ones", 0o440, 1000, 1001},
	{"secrets/last", 0o600, 0, 0},
}

// lines is how long they are: it takes many pages, and so many writes to memory, to fill one.
const lines = 5000

// TestFilesAreWholeAtEveryMoment has two witnesses of five rotations: a reader that hardly rests, where the task sees
// its files, and the kernel, which tells every step that is taken in the directories.
func TestFilesAreWholeAtEveryMoment(t *testing.T) {
	const rotations = 5
	each(t, "whole", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		for _, f := range gens {
			j.Config += file(f.name, fmt.Sprintf(`{{ with secret "kv/data/default/%s/config" }}{{ $n := .Data.data.n }}{{ range loop %d }}{{ $n }}
{{ end }}{{ end }}`, j.Name, lines), fmt.Sprintf("%s\n perms = \"%o\"\n uid = %d\n gid = %d", onNoop, f.mode, f.uid, f.gid))
		}
		j.Args = []string{"show"}
		put(t, s, j, map[string]any{"n": "0"})
		alloc := run(t, s, j)
		must.NoError(t, alloc.Running(ctx))
		root := fmt.Sprintf("/proc/%d/root", application(t, alloc))
		steps := watchSteps(t, alloc.Path(j.Name, "secrets"), alloc.Path(j.Name, "local/conf"))

		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		looks, pairs, written := 0, 0, 0
		for seen := -1; seen < rotations; looks++ {
			<-pace.C
			must.NoError(t, ctx.Err(), must.Sprintf("%d looks, %d seen, %d written", looks, seen, written))
			// From the last to the first: they are replaced from the first to the last.
			var ns []int
			for _, f := range slices.Backward(gens) {
				ns = append(ns, f.read(t, root))
			}
			if ns[0] == ns[len(ns)-1] {
				pairs++
				must.Eq(t, ns[0], slices.Min(ns), must.Sprintf("the last and the first are of one generation, and so is what is "+
					"between them: %v", ns))
				must.Eq(t, ns[0], slices.Max(ns))
			}
			if seen = ns[0]; seen == written {
				written++
				put(t, s, j, map[string]any{"n": strconv.Itoa(written)})
			}
		}
		t.Logf("%d looks, %d of them between two changes", looks, pairs)
		must.Eq(t, rotations, generations(t, steps()))
	})
}

// read returns the number that all lines of the file have.
func (f placed) read(t *testing.T, root string) int {
	t.Helper()
	file, err := os.Open(filepath.Join(root, f.name))
	must.NoError(t, err, must.Sprint("it is there at every moment"))
	defer file.Close()
	info, err := file.Stat()
	must.NoError(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	must.Eq(t, f, placed{f.name, info.Mode(), owner.Uid, owner.Gid})
	content := make([]byte, info.Size()+1)
	n, err := file.Read(content)
	must.NoError(t, err)
	number, _, _ := bytes.Cut(content[:n], []byte("\n"))
	must.True(t, bytes.Equal(bytes.Repeat(append(number, '\n'), lines), content[:n]),
		must.Sprintf("%s: %d bytes that begin with %.20q", f.name, n, content))
	value, err := strconv.Atoi(string(number))
	must.NoError(t, err)
	return value
}

// A step is what the kernel tells of a directory (inotify(7)).
type step struct {
	mask uint32
	name string
}

// watchSteps returns a function that returns all that has happened in the directories since, in its order.
func watchSteps(t *testing.T, dirs ...string) func() []step {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	for _, dir := range dirs {
		_, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE|
			unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO)
		must.NoError(t, err)
	}
	return func() (steps []step) {
		buffer := make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, buffer)
			if errors.Is(err, unix.EAGAIN) {
				return steps
			}
			must.NoError(t, err)
			for b := buffer[:n]; len(b) > 0; {
				size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
				steps = append(steps, step{binary.NativeEndian.Uint32(b[4:]),
					string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00"))})
				must.Zero(t, steps[len(steps)-1].mask&unix.IN_Q_OVERFLOW)
				b = b[size:]
			}
		}
	}
}

// generations counts those that were put in place in these steps: every file is complete, with its owner and mode,
// under another name before the first one gets its own, they get them in the order of their blocks, and nothing is done
// to any of them under its own name.
func generations(t *testing.T, steps []step) (n int) {
	t.Helper()
	replaced := 0 // of the generation
	for i, s := range steps {
		ours := slices.ContainsFunc(gens, func(f placed) bool { return filepath.Base(f.name) == s.name })
		temporary := strings.HasPrefix(s.name, ".nomad-driver-vault-")
		switch {
		case ours:
			must.Eq(t, unix.IN_MOVED_TO, s.mask, must.Sprintf("step %d of %v", i, steps))
			must.Eq(t, filepath.Base(gens[replaced].name), s.name, must.Sprintf("step %d of %v", i, steps))
			replaced++
		case temporary && s.mask != unix.IN_MOVED_FROM:
			must.Zero(t, replaced, must.Sprintf("step %d of %v: all are written before the first is replaced", i, steps))
		}
		if replaced == len(gens) {
			replaced = 0
			n++
		}
	}
	return n
}

// TestAFullDirectoryOfARunningTaskKeepsTheOldGeneration: the task has filled secrets/ itself.
func TestAFullDirectoryOfARunningTaskKeepsTheOldGeneration(t *testing.T) {
	each(t, "full", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		w := watched(s, j)
		names := []string{"local/color", "secrets/color", "secrets/large"}
		j.Config = file(names[0], inJob(j, "color"), onSignal) + file(names[1], inJob(j, "color"), onSignal) +
			file(names[2], inJob(j, "color")+`{{ range loop 20000 }}0123456789{{ end }}`, onSignal)
		j.Args = []string{"show", "/local/color", "/secrets/color"}
		put(t, s, j, map[string]any{"color": "green"})
		alloc := run(t, s, j)
		shown(t, ctx, alloc, j, "/secrets/color", 1)
		before := untouched(t, ctx, alloc, j, names...)
		_, _, code := execute(t, alloc, j, false, "", "cat /dev/zero > /secrets/filler")
		must.NotEq(t, 0, code)

		for _, color := range []string{"blue", "red"} { // The same trouble twice is told once.
			polls := w.granted(t, "kv/data/default/"+j.Name+"/config")
			put(t, s, j, map[string]any{"color": color})
			message, err := alloc.Event(ctx, j.Name, "Secrets not updated: ")
			must.NoError(t, err)
			must.StrContains(t, message, `destination "secrets/`)
			must.StrContains(t, message, "its directory is full")
			must.StrContains(t, message, "raise resources { secrets = <MB> }")
			eventually(t, time.Minute, func() error {
				if n := w.granted(t, "kv/data/default/"+j.Name+"/config") - polls; n < 4 {
					return fmt.Errorf("the secret was read %d times, not yet 4", n)
				}
				return nil
			})
			must.Eq(t, before, untouched(t, ctx, alloc, j, names...))
		}
		must.SliceEmpty(t, temporary(t, alloc))

		_, stderr, code := execute(t, alloc, j, false, "", "rm -f /secrets/filler")
		must.Zero(t, code, must.Sprint(stderr))
		must.Eq(t, []string{"green", "red"}, shown(t, ctx, alloc, j, "/secrets/color", 2))
		must.Eq(t, []string{"green", "red"}, shown(t, ctx, alloc, j, "/local/color", 2))
		must.SliceLen(t, 1, changed(t, ctx, alloc, j, 1))
		must.Eq(t, 1, events(t, ctx, alloc, j, "Secrets not updated"))
		unnoticed(t, ctx, alloc, j)
	})
}

// events counts those of the task whose message has the text.
func events(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, text string) (n int) {
	t.Helper()
	for _, e := range state(t, ctx, alloc, j).Events {
		if strings.Contains(e.DisplayMessage, text) {
			n++
		}
	}
	return n
}

// temporary returns the files of the allocation that were begun and not put in place.
func temporary(t *testing.T, alloc *stack.Alloc) []string {
	t.Helper()
	return slices.DeleteFunc(rendered(t, alloc), func(name string) bool {
		return !strings.HasPrefix(filepath.Base(name), ".nomad-driver-vault-")
	})
}

// An obstacle is what a task, or somebody else on the host, puts where a file of the next generation should be.
type obstacle struct {
	name   string
	put    string // a script: VICTIM is a directory of the host with a file "file", both writable for everybody
	chattr string // what is immutable on the host
	take   string // removes it again
	says   string
}

// The file is local/conf/color, the last of three.
var obstacles = []obstacle{
	{"a link to a file of the host", "rm conf/color && ln -s VICTIM/file conf/color", "", "rm conf/color",
		`destination "local/conf/color" is a symbolic link, which is never written through or replaced`},
	{"a directory", "rm conf/color && mkdir conf/color", "", "rmdir conf/color",
		`destination "local/conf/color" is a directory, which is never written through or replaced`},
	{"a named pipe", "rm conf/color && mkfifo conf/color", "", "rm conf/color",
		`destination "local/conf/color" is a named pipe, which is never written through or replaced`},
	{"a device", "rm conf/color && mknod conf/color c 1 3", "", "rm conf/color",
		`destination "local/conf/color" is a device, which is never written through or replaced`},
	{"an immutable file", "true", "local/conf/color", "true",
		`destination "local/conf/color" is immutable or append-only: run chattr -ia on it`},
	{"a parent that is a link to a directory of the host", "mv conf aside && ln -s VICTIM conf", "",
		"rm conf && mv aside conf",
		`destination "local/conf/color" has a parent "conf" that is a symbolic link, not a directory`},
	{"a parent that is a link to a directory of its own", "mv conf aside && ln -s aside conf", "",
		"rm conf && mv aside conf",
		`destination "local/conf/color" has a parent "conf" that is a symbolic link, not a directory`},
	{"a parent that is a file", "mv conf aside && touch conf", "", "rm conf && mv aside conf",
		`destination "local/conf/color" has a parent "conf" that is a regular file, not a directory`},
	{"a parent that is a named pipe", "mv conf aside && mkfifo conf", "", "rm conf && mv aside conf",
		`destination "local/conf/color" has a parent "conf" that is a named pipe, not a directory`},
	{"an immutable parent", "true", "local/conf", "true",
		`destination "local/conf/color" is in a directory that is immutable or append-only: run chattr -ia on it`},
}

// TestWhatIsInTheWayOfAFileHarmsNobodyElse: each obstacle has a task of its own, and all of them a neighbour, which
// must not notice.
func TestWhatIsInTheWayOfAFileHarmsNobodyElse(t *testing.T) {
	each(t, "way", func(t *testing.T, s *stack.Stack, neighbour job) {
		ctx := within(t, 3*time.Minute)
		neighbour.Args, neighbour.Config = []string{"show", "/secrets/color"}, file("secrets/color",
			inJob(neighbour, "color"), onSignal)
		put(t, s, neighbour, map[string]any{"color": "green"})
		beside := run(t, s, neighbour)
		shown(t, ctx, beside, neighbour, "/secrets/color", 1)

		var all []*obstructed
		for i, o := range obstacles {
			all = append(all, obstruct(t, s, o, job{Name: fmt.Sprintf("%s-%d", neighbour.Name, i), Driver: neighbour.Driver}))
		}
		for _, a := range all {
			a.block(t, ctx)
			put(t, s, a.job, map[string]any{"color": "blue"})
		}
		for _, a := range all {
			a.stays(t, ctx)
		}
		put(t, s, neighbour, map[string]any{"color": "blue"})
		must.Eq(t, "blue", shown(t, ctx, beside, neighbour, "/secrets/color", 2)[1])
		for _, a := range all {
			a.unblock(t)
		}
		for _, a := range all {
			a.recovers(t, ctx)
		}
		must.SliceLen(t, 1, changes(t, ctx, beside, neighbour))
		unnoticed(t, ctx, beside, neighbour)
	})
}

// An obstructed is a task with an obstacle.
type obstructed struct {
	obstacle
	job    job
	alloc  *stack.Alloc
	victim string // the directory that must not change
	before string
}

func obstruct(t *testing.T, s *stack.Stack, o obstacle, j job) *obstructed {
	t.Helper()
	a := &obstructed{obstacle: o, job: j, victim: t.TempDir()}
	a.job.Args = []string{"show", "/secrets/color", "/local/color", "/local/conf/color"}
	for _, name := range a.job.Args[1:] {
		a.job.Config += file(name[1:], inJob(j, "color"), onSignal)
	}
	must.NoError(t, os.Chmod(a.victim, 0o777))
	must.NoError(t, os.WriteFile(filepath.Join(a.victim, "file"), []byte("the host's"), 0o600))
	must.NoError(t, os.Chmod(filepath.Join(a.victim, "file"), 0o666))
	put(t, s, a.job, map[string]any{"color": "green"})
	a.alloc = run(t, s, a.job)
	return a
}

// sh runs a script in local/ of the task, where the task could do the same.
func (a *obstructed) sh(t *testing.T, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", strings.ReplaceAll(script, "VICTIM", a.victim))
	cmd.Dir = a.alloc.Path(a.job.Name, "local")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s: %s", a.name, out))
}

// chattrs makes what it is about immutable, or not. Its other attributes stay: ext4 refuses to lose some.
func (a *obstructed) chattrs(t *testing.T, immutable bool) {
	t.Helper()
	if a.chattr == "" {
		return
	}
	file, err := os.Open(a.alloc.Path(a.job.Name, a.chattr))
	must.NoError(t, err)
	defer file.Close()
	flags, err := unix.IoctlGetInt(int(file.Fd()), unix.FS_IOC_GETFLAGS)
	must.NoError(t, err)
	const is = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
	if flags &^= is; immutable {
		flags |= is
	}
	must.NoError(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags))
}

func (a *obstructed) block(t *testing.T, ctx context.Context) {
	t.Helper()
	must.Eq(t, "green", shown(t, ctx, a.alloc, a.job, "/local/conf/color", 1)[0])
	a.before = untouched(t, ctx, a.alloc, a.job, "secrets/color", "local/color")
	a.sh(t, a.put)
	a.chattrs(t, true)
	t.Cleanup(func() { a.chattrs(t, false) }) // Or nobody could remove the directory.
}

// stays waits until the trouble is told, and checks that nothing has changed, in the task or outside.
func (a *obstructed) stays(t *testing.T, ctx context.Context) {
	t.Helper()
	_, err := a.alloc.Event(within(t, 30*time.Second), a.job.Name, "Secrets not updated: "+a.says)
	must.NoError(t, err, must.Sprint(a.name))
	must.Eq(t, a.before, untouched(t, ctx, a.alloc, a.job, "secrets/color", "local/color"), must.Sprint(a.name))
	must.SliceEmpty(t, temporary(t, a.alloc), must.Sprint(a.name))
	harmed := map[string]string{}
	must.NoError(t, eachFile(a.victim, func(name string,
		content []byte) {
		harmed[filepath.Base(name)] = string(content)
	}))
	must.Eq(t, map[string]string{"file": "the host's"}, harmed, must.Sprint(a.name))
}

func (a *obstructed) unblock(t *testing.T) {
	t.Helper()
	a.chattrs(t, false)
	a.sh(t, a.take)
}

// recovers waits for the change, which the process is told once.
func (a *obstructed) recovers(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, name := range a.job.Args[1:] {
		must.Eq(t, []string{"green", "blue"}, shown(t, ctx, a.alloc, a.job, name, 2), must.Sprint(a.name))
	}
	must.SliceLen(t, 1, changed(t, ctx, a.alloc, a.job, 1), must.Sprint(a.name))
	must.Eq(t, 1, events(t, ctx, a.alloc, a.job, "Secrets not updated"), must.Sprint(a.name))
	info, err := os.Lstat(a.alloc.Path(a.job.Name, "local/conf/color"))
	must.NoError(t, err)
	must.True(t, info.Mode().IsRegular(), must.Sprint(a.name))
	unnoticed(t, ctx, a.alloc, a.job)
}
