// Package logpipe holds the write ends of a task's log pipes, the FIFOs that Nomad's log collector (logmon) reads.
//
// One write end of each stays open for the task's whole life. Without it the log collector sees the end of the log when
// the first process ends. It then never reads again but keeps its end open, so that the second process opens the pipe
// and blocks after 60 KiB of output. The stderr end is also where the driver writes to the task's log.
package logpipe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"nomad-driver-vault/internal/inode"

	"golang.org/x/sys/unix"
)

// Pipes are the two log pipes of one task. Its methods may be called by several goroutines.
type Pipes struct {
	prefix string

	mu             sync.Mutex // guards what follows
	stdout, stderr pipe
	closed         bool
}

type pipe struct {
	dir, path string   // the allocation's directory, and the path of the pipe below it
	file      *os.File // the write end, nil while it is not open
	node      *os.File // the pipe itself (O_PATH), whatever is put in its place later; nil until it was looked up
}

// ErrNoReader means that the task has no log collector. Nomad starts a new one with the next start of the task.
var ErrNoReader = errors.New("no log collector reads the task's output")

// ErrStalled means that the log collector has the pipes open but does not read any more. Nomad starts a new one with
// the next start of the task.
var ErrStalled = errors.New("the log collector stopped reading the task's output when the plugin died")

// ReaderTimeout is how long a log collector may take to open the pipes, or to read a line.
const ReaderTimeout = time.Second

// New returns the pipes below the directory of an allocation, none of which is open yet. Each line that Say writes
// begins with prefix. Where the job disabled its logs the paths are /dev/null, and nothing is ever opened.
func New(prefix, dir, stdout, stderr string) *Pipes {
	return &Pipes{prefix: prefix, stdout: pipe{dir: dir, path: stdout}, stderr: pipe{dir: dir, path: stderr}}
}

// Open opens both write ends, or checks those that are open already. It does not wait: the error is ErrNoReader when
// there is no log collector. After Close it does nothing.
func (p *Pipes) Open() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, end := range []*pipe{&p.stdout, &p.stderr} {
		if err := end.open(p.closed); err != nil {
			return err
		}
	}
	return nil
}

// OpenWait is Open for the start of a task. It waits up to ReaderTimeout for the log collector, which opens the pipes
// while Nomad goes on (client/logmon/logmon.go, Start).
func (p *Pipes) OpenWait() error {
	err := p.Open()
	for end := time.Now().Add(ReaderTimeout); errors.Is(err, ErrNoReader) && time.Now().Before(end); err = p.Open() {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// open opens the write end. One that is open already stays, and opening it once more shows that there is a reader.
func (e *pipe) open(closed bool) error {
	if closed || e.path == "" || e.path == os.DevNull {
		return nil
	}
	file, err := e.openWrite()
	switch {
	case errors.Is(err, unix.ENXIO):
		return ErrNoReader
	case err != nil:
		return fmt.Errorf("open log pipe %s: %w", e.path, err)
	case e.file != nil:
		return file.Close()
	}
	e.file = file
	return nil
}

// openWrite opens the pipe for writing.
func (e *pipe) openWrite() (*os.File, error) {
	if err := e.lookup(); err != nil {
		return nil, err
	}
	return inode.OpenPipe(e.node)
}

// lookup finds the pipe below the allocation's directory, where the task can replace any file. It does so once: Nomad's
// log collectors use the same pipe for as long as the task runs (client/lib/fifo/fifo_unix.go, CreateAndRead).
func (e *pipe) lookup() error {
	if e.node != nil {
		return nil
	}
	name, err := filepath.Rel(e.dir, e.path)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(e.dir)
	if err != nil {
		return inode.Cause(err)
	}
	defer root.Close()
	e.node, err = inode.Pipe(root, name)
	return err
}

// Paths returns paths by which any process of this host opens the pipes until Close is called. Nomad's own paths lead
// through a directory that the task can write to, and may lead elsewhere by the time they are opened. Where an error
// says that a path leads to no pipe, /dev/null is returned for it.
func (p *Pipes) Paths() (stdout, stderr string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stdout, errOut := p.stdout.name()
	stderr, errErr := p.stderr.name()
	return stdout, stderr, errors.Join(errOut, errErr)
}

func (e *pipe) name() (string, error) {
	if e.path == "" || e.path == os.DevNull {
		return e.path, nil
	}
	if err := e.lookup(); err != nil {
		return os.DevNull, fmt.Errorf("open log pipe %s: %w", e.path, err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), e.node.Fd()), nil
}

// Say writes one line, with the time, to the task's stderr log. It never waits: a line is dropped when the pipe has no
// room or no reader. A line is at most PIPE_BUF bytes long, so that it does not mix with the task's own output.
func (p *Pipes) Say(text string) {
	const most = 4000
	line := p.prefix + time.Now().UTC().Format(time.RFC3339) + " " + strings.ReplaceAll(text, "\n", " ")
	if len(line) > most {
		line = line[:most] + "..."
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stderr.file == nil && p.stderr.open(p.closed) != nil || p.stderr.file == nil {
		return
	}
	conn, err := p.stderr.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Write(func(fd uintptr) bool {
		_, _ = unix.Write(int(fd), []byte(line+"\n"))
		return true // never wait for room
	})
}

// Stalled reports whether the log collector has the pipes open but does not read any more. It stops for good when
// nobody holds a write end, as after the death of a plugin process while the task had no process. Stalled writes a
// line and waits up to patience until it is read.
func (p *Pipes) Stalled(text string, patience time.Duration) bool {
	p.Say(text)
	for end := time.Now().Add(patience); p.unread(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return true
		}
	}
	return false
}

// unread reports whether the stderr pipe holds bytes that nobody has read yet.
func (p *Pipes) unread() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stderr.file == nil {
		return false
	}
	conn, err := p.stderr.file.SyscallConn()
	if err != nil {
		return false
	}
	unread := 0
	err = conn.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && unread > 0
}

// Close closes both ends for good. The log collector sees the end of the log when the task's processes are gone too.
func (p *Pipes) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, end := range []*pipe{&p.stdout, &p.stderr} {
		if end.file != nil {
			_ = end.file.Close()
			end.file = nil
		}
		if end.node != nil {
			_ = end.node.Close()
			end.node = nil
		}
	}
	p.closed = true
}
