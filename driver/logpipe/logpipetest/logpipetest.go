// Package logpipetest reads a task's log pipes in tests, as Nomad's log collector does.
package logpipetest

import (
	"path/filepath"
	"regexp"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// stamp is what our own lines begin with.
var stamp = regexp.MustCompile(`(?m)^(\[[\w-]+\]) \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ `)

// Collector stands for Nomad's log collector of one FIFO.
type Collector struct {
	testing.TB
	fd int
}

// Collect opens the FIFO for reading.
func Collect(t testing.TB, path string) *Collector {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	return &Collector{t, fd}
}

// Close ends the collector.
func (c *Collector) Close() { must.NoError(c, unix.Close(c.fd)) }

// Read returns what has been written. The end of the log, which is that of its last writer, is an error.
func (c *Collector) Read() string {
	c.Helper()
	data := make([]byte, 1<<20)
	n, err := unix.Read(c.fd, data)
	if err == unix.EAGAIN {
		return ""
	}
	must.NoError(c, err)
	must.Positive(c, n, must.Sprint("the end of the log"))
	return stamp.ReplaceAllString(string(data[:n]), "$1 ")
}

// Ended reports whether the log has ended.
func (c *Collector) Ended() bool {
	n, err := unix.Read(c.fd, make([]byte, 1))
	return n == 0 && err == nil
}

// FIFOs makes a task's two.
func FIFOs(t *testing.T, dir string) (stdout, stderr string) {
	stdout, stderr = filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")
	must.NoError(t, unix.Mkfifo(stdout, 0o600))
	must.NoError(t, unix.Mkfifo(stderr, 0o600))
	return stdout, stderr
}
