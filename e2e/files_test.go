package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// Files that a task reads when it likes: each is whole at every moment, they belong together as far as files can, and what the task does
// to their places is its own loss.

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

// TestFilesAreWholeAtEveryMoment has two witnesses of five rotations: a reader that hardly rests, where the task sees its files, and the kernel,
// which tells every step that is taken in the directories.
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
				must.Eq(t, ns[0], slices.Min(ns), must.Sprintf("the last and the first are of one generation, and so is what is between them: %v", ns))
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
	must.True(t, bytes.Equal(bytes.Repeat(append(number, '\n'), lines), content[:n]), must.Sprintf("%s: %d bytes that begin with %.20q", f.name, n, content))
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
		_, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO)
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
				steps = append(steps, step{binary.NativeEndian.Uint32(b[4:]), string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00"))})
				must.Zero(t, steps[len(steps)-1].mask&unix.IN_Q_OVERFLOW)
				b = b[size:]
			}
		}
	}
}

// generations counts those that were put in place in these steps: every file is complete, with its owner and mode, under another name before
// the first one gets its own, they get them in the order of their blocks, and nothing is done to any of them under its own name.
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
