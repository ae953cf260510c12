package logpipe

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/logpipe/logpipetest"
)

// opened returns pipes that are open, the path of that for stdout, and the collector of stderr.
func opened(t *testing.T) (p *Pipes, stdout string, collector *logpipetest.Collector) {
	dir := t.TempDir()
	stdout, stderr := logpipetest.FIFOs(t, dir)
	out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
	p = New("[x] ", dir, stdout, stderr)
	must.NoError(t, p.Open())
	t.Cleanup(func() { p.Close(); err.Close(); out.Close() })
	return p, stdout, err
}

func TestLineThatThePipeHasNoRoomForIsDropped(t *testing.T) {
	p, _, err := opened(t)
	for range 100 {
		p.Say(strings.Repeat("long ", 1000)) // does not return if it waits
	}
	lines := strings.Split(strings.TrimSuffix(err.Read(), "\n"), "\n")
	must.Between(t, 10, len(lines), 99)
	for _, line := range lines {
		must.StrHasPrefix(t, "[x] long ", line)
		must.LessEq(t, 4096, len(line)+1)
	}
	p.Say("two\nlines")
	must.Eq(t, "[x] two lines\n", err.Read())
}

func TestCollectorThatReadsNoLongerIsFound(t *testing.T) {
	p, _, err := opened(t)
	go func() {
		for !strings.Contains(err.Read(), "two") {
		}
	}()
	must.False(t, p.Stalled("two", time.Minute))
	must.True(t, p.Stalled("three", 20*time.Millisecond))
	must.False(t, New("", t.TempDir(), os.DevNull, os.DevNull).Stalled("nothing to read", time.Minute))
}

func TestStartWaitsAMomentForTheLogCollector(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := logpipetest.FIFOs(t, dir)
	p := New("", dir, stdout, stderr)
	defer p.Close()
	must.ErrorIs(t, p.OpenWait(), ErrNoReader)
	reading := make(chan [2]*logpipetest.Collector)
	go func() {
		for !strings.Contains(stacks(), "OpenWait") { // it has begun to wait
		}
		reading <- [2]*logpipetest.Collector{logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)}
	}()
	must.NoError(t, p.OpenWait())
	for _, c := range <-reading {
		c.Close()
	}
}

// stacks are those of all goroutines.
func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

func TestPipesAreHeldOnceAndGivenUp(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := logpipetest.FIFOs(t, dir)
	before := openFiles(t) + 2 // of the collectors
	p := New("", dir, stdout, stderr)
	must.ErrorIs(t, p.Open(), ErrNoReader)
	p.Say("nobody reads this")
	out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
	must.NoError(t, p.Open())
	must.NoError(t, p.Open())
	must.Eq(t, before+4, openFiles(t), must.Sprint("of each pipe an end and a name"))
	p.Close()
	must.Eq(t, before, openFiles(t))
	p.Say("too late")
	must.NoError(t, p.Open())
	must.Eq(t, before, openFiles(t))
	must.True(t, err.Ended())
	out.Close()
	err.Close()
	p.Close()
}

func TestDisabledLogsAreNothingToHold(t *testing.T) {
	for _, path := range []string{"", os.DevNull} {
		p := New("", t.TempDir(), path, path)
		must.NoError(t, p.Open())
		p.Say("x")
		must.Nil(t, p.stderr.file)
	}
}

// What a task puts in the place of its log is root's to write to otherwise.
func TestLogPipeIsAPipeOfTheAllocation(t *testing.T) {
	outside, _ := logpipetest.FIFOs(t, t.TempDir())
	defer logpipetest.Collect(t, outside).Close()
	for what, put := range map[string]func(dir string) error{
		"a link to a file": func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/file", nil, 0o600), os.Symlink("file", dir+"/logs/pipe"))
		},
		"a file":                   func(dir string) error { return os.WriteFile(dir+"/logs/pipe", nil, 0o600) },
		"a link to a pipe outside": func(dir string) error { return os.Symlink(outside, dir+"/logs/pipe") },
		"a directory of pipes outside": func(dir string) error {
			return errors.Join(os.Remove(dir+"/logs"), os.Link(outside, filepath.Dir(outside)+"/pipe"),
				os.Symlink(filepath.Dir(outside), dir+"/logs"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			must.NoError(t, os.Mkdir(dir+"/logs", 0o700))
			must.NoError(t, put(dir))
			p := New("", dir, dir+"/logs/pipe", dir+"/logs/pipe")
			must.ErrorContains(t, p.Open(), "open log pipe")
			p.Say("x")
			must.Nil(t, p.stderr.file)
			for _, file := range []string{"/file", "/logs/pipe"} {
				if info, err := os.Lstat(dir + file); err == nil && info.Mode().IsRegular() {
					must.Zero(t, info.Size())
				}
			}
		})
	}
}

// A sibling task replaces the pipe, after it was looked up and before the process starts, by one that nobody reads. The
// process still gets the first.
func TestPipeThatWasLookedAtIsTheOneThatIsOpened(t *testing.T) {
	p, stdout, _ := opened(t)
	looked, failed := os.Stat(stdout)
	must.NoError(t, failed)
	must.NoError(t, os.Rename(stdout, stdout+".away"))
	must.NoError(t, unix.Mkfifo(stdout, 0o600))
	given, _, failed := p.Paths()
	must.NoError(t, failed)
	led, failed := os.Stat(given)
	must.NoError(t, failed)
	must.True(t, os.SameFile(looked, led))
	must.NoError(t, p.Open(), must.Sprint("there is somebody who reads it"))
}

// openFiles counts the open files of this process.
func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(entries)
}
