package driver

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// told is what our own lines begin with.
var told = regexp.MustCompile(`(?m)^(\[[\w-]+\]) \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ `)

// collector is Nomad's log collector of one FIFO.
type collector struct {
	testing.TB
	fd int
}

func collect(t testing.TB, path string) *collector {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	return &collector{t, fd}
}

func (c *collector) close() { must.NoError(c, unix.Close(c.fd)) }

// read returns what has been written. The end of the log, which is that of its last writer, is an error.
func (c *collector) read() string {
	c.Helper()
	data := make([]byte, 1<<20)
	n, err := unix.Read(c.fd, data)
	if err == unix.EAGAIN {
		return ""
	}
	must.NoError(c, err)
	must.Positive(c, n, must.Sprint("the end of the log"))
	return told.ReplaceAllString(string(data[:n]), "$1 ")
}

// over reports whether the log has ended.
func (c *collector) over() bool {
	n, err := unix.Read(c.fd, make([]byte, 1))
	return n == 0 && err == nil
}

// fifos makes a task's two.
func fifos(t *testing.T, dir string) (stdout, stderr string) {
	stdout, stderr = filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")
	must.NoError(t, unix.Mkfifo(stdout, 0o600))
	must.NoError(t, unix.Mkfifo(stderr, 0o600))
	return stdout, stderr
}

func TestLogGoesOnWhenAStartTakesThePlaceOfAnother(t *testing.T) {
	bubble(t, func(h *host) {
		h.stderr = filepath.Join(h.alloc, "stderr")
		must.NoError(t, unix.Mkfifo(h.stderr, 0o600))
		log := collect(t, h.stderr)
		h.unasked(h.job(asApp))
		h.inner.slow("destroy", time.Minute)
		go func() { _, _, _ = h.StartTask(h.job(asApp)) }()
		after(30 * time.Second)
		must.Eq(t, "[vault-fake] ended: the agent has asked for another start of the task\n", log.read())
		must.False(t, log.over(), must.Sprint("the new one holds it before the old one lets go"))
		after(time.Minute)
		must.False(t, log.over())
		log.close()
	})
}

func TestLogGoesOnOverARestartInTheDriver(t *testing.T) {
	bubble(t, func(h *host) {
		stdout, stderr := fifos(t, h.alloc)
		out, err := collect(t, stdout), collect(t, stderr)
		h.write("green")
		cfg := h.job(several(""))
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		_, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		must.StrHasPrefix(t, "[vault-fake] secrets ready after 0s: templates rendered: 1, vault \"default\" token accessor-", err.read())
		h.inner.slow("start", time.Minute) // between the two processes nobody but us holds the pipes
		h.write("blue")
		for len(h.machine.running()) > 0 {
			after(time.Second)
		}
		must.Eq(t, "", out.read())
		must.Eq(t, "", err.read())
		after(2 * time.Minute)
		must.Eq(t, "[vault-fake] local/0 changed; restarted\n", err.read())
		r := &run{host: h, cfg: cfg}
		r.exit(0)
		after(0)
		must.True(t, out.over(), must.Sprint("the collector must see the end, or it is waited for"))
		must.True(t, err.over())
		out.close()
		err.close()
	})
}

// The new process would hang at its first lines.
func TestRestartWaitsForALogCollector(t *testing.T) {
	for how, after3h := range map[string]bool{"that comes soon": false, "that comes after hours": true} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				stdout, stderr := fifos(t, h.alloc)
				out, err := collect(t, stdout), collect(t, stderr)
				h.write("green")
				cfg := h.job(several(""))
				cfg.StdoutPath, cfg.StderrPath = stdout, stderr
				_, _, failed := h.StartTask(cfg)
				must.NoError(t, failed)
				r := &run{host: h, cfg: cfg}
				r.did()
				out.close()
				err.close()
				h.write("blue")
				after(noticed)
				must.SliceEmpty(t, r.did())
				if after3h { // a task that runs well is not ended for it
					after(3 * time.Hour)
					must.SliceEmpty(t, r.did())
					must.Len(t, 1, h.machine.running())
				}
				told := h.events()[1:] // of the start is the first
				must.Eq(t, after3h, len(told) == 1 && strings.Contains(told[0], "the restart waits: no log collector reads the task's output"))
				out, err = collect(t, stdout), collect(t, stderr)
				after(2 * time.Second)
				must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
				must.Len(t, 1, h.events())
				out.close()
				err.close()
			})
		})
	}
}

// Each restart has its own minute: one that was not needed any more leaves nothing of its for the next.
func TestRestartThatWasTakenBackWaitsAnewForALogCollector(t *testing.T) {
	bubble(t, func(h *host) {
		stdout, stderr := fifos(t, h.alloc)
		out, err := collect(t, stdout), collect(t, stderr)
		h.write("green")
		cfg := h.job(several("poll_interval = \"5s\""))
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		_, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		r := &run{host: h, cfg: cfg}
		r.did()
		out.close()
		err.close()
		h.write("blue")
		after(10 * time.Second)
		h.write("green")
		after(time.Hour)
		h.write("red")
		after(30 * time.Second)
		must.True(t, r.alive())
		must.SliceEmpty(t, r.did())
		out, err = collect(t, stdout), collect(t, stderr)
		after(2 * time.Second)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		out.close()
		err.close()
	})
}

func TestLineThatThePipeHasNoRoomForIsDropped(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := fifos(t, dir)
	out, err := collect(t, stdout), collect(t, stderr)
	defer out.close()
	defer err.close()
	p := newPipes("[x] ", dir, stdout, stderr)
	must.NoError(t, p.hold())
	defer p.close()
	for range 100 {
		p.say(strings.Repeat("long ", 1000)) // does not return if it waits
	}
	lines := strings.Split(strings.TrimSuffix(err.read(), "\n"), "\n")
	must.Between(t, 10, len(lines), 99)
	for _, line := range lines {
		must.StrHasPrefix(t, "[x] long ", line)
		must.LessEq(t, 4096, len(line)+1)
	}
	p.say("two\nlines")
	must.Eq(t, "[x] two lines\n", err.read())
}

func TestCollectorThatReadsNoLongerIsFound(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := fifos(t, dir)
	out, err := collect(t, stdout), collect(t, stderr)
	defer out.close()
	defer err.close()
	p := newPipes("[x] ", dir, stdout, stderr)
	must.NoError(t, p.hold())
	defer p.close()
	go func() {
		for !strings.Contains(err.read(), "two") {
		}
	}()
	must.False(t, p.unread("two", time.Minute))
	must.True(t, p.unread("three", 20*time.Millisecond))
	must.False(t, newPipes("", t.TempDir(), os.DevNull, os.DevNull).unread("nothing to read", time.Minute))
}

func TestStartWaitsAMomentForTheLogCollector(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := fifos(t, dir)
	p := newPipes("", dir, stdout, stderr)
	defer p.close()
	must.ErrorIs(t, p.holdSoon(), errNoReader)
	reading := make(chan [2]*collector)
	go func() {
		for !strings.Contains(stacks(), "holdSoon") { // it has begun to wait
		}
		reading <- [2]*collector{collect(t, stdout), collect(t, stderr)}
	}()
	must.NoError(t, p.holdSoon())
	for _, c := range <-reading {
		c.close()
	}
}

// stacks are those of all goroutines.
func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

func TestPipesAreHeldOnceAndGivenUp(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := fifos(t, dir)
	before := descriptors(t) + 2 // of the collectors
	p := newPipes("", dir, stdout, stderr)
	must.ErrorIs(t, p.hold(), errNoReader)
	p.say("nobody reads this")
	out, err := collect(t, stdout), collect(t, stderr)
	must.NoError(t, p.hold())
	must.NoError(t, p.hold())
	must.Eq(t, before+4, descriptors(t), must.Sprint("of each pipe an end and a name"))
	p.close()
	must.Eq(t, before, descriptors(t))
	p.say("too late")
	must.NoError(t, p.hold())
	must.Eq(t, before, descriptors(t))
	must.True(t, err.over())
	out.close()
	err.close()
	p.close()
}

func TestDisabledLogsAreNothingToHold(t *testing.T) {
	for _, path := range []string{"", os.DevNull} {
		p := newPipes("", t.TempDir(), path, path)
		must.NoError(t, p.hold())
		p.say("x")
		must.Nil(t, p.stderr.file)
	}
}

// What a task puts in the place of its log is root's to write to otherwise.
func TestLogPipeIsAPipeOfTheAllocation(t *testing.T) {
	outside, _ := fifos(t, t.TempDir())
	defer collect(t, outside).close()
	for what, put := range map[string]func(dir string) error{
		"a link to a file": func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/file", nil, 0o600), os.Symlink("file", dir+"/logs/pipe"))
		},
		"a file":                   func(dir string) error { return os.WriteFile(dir+"/logs/pipe", nil, 0o600) },
		"a link to a pipe outside": func(dir string) error { return os.Symlink(outside, dir+"/logs/pipe") },
		"a directory of pipes outside": func(dir string) error {
			return errors.Join(os.Remove(dir+"/logs"), os.Link(outside, filepath.Dir(outside)+"/pipe"), os.Symlink(filepath.Dir(outside), dir+"/logs"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			must.NoError(t, os.Mkdir(dir+"/logs", 0o700))
			must.NoError(t, put(dir))
			p := newPipes("", dir, dir+"/logs/pipe", dir+"/logs/pipe")
			must.ErrorContains(t, p.hold(), "open log pipe")
			p.say("x")
			must.Nil(t, p.stderr.file)
			for _, file := range []string{"/file", "/logs/pipe"} {
				if info, err := os.Lstat(dir + file); err == nil && info.Mode().IsRegular() {
					must.Zero(t, info.Size())
				}
			}
		})
	}
}

// descriptors counts the open files of this process.
func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(entries)
}
