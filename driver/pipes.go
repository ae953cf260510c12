package driver

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

// pipes holds one write end of each of a task's log FIFOs for the task's whole life. Without it the agent's log collector
// sees the end of the log when the first process ends, and blocks the second one after 60 KiB
// (research: nomad-plumbing §5). The stderr end is also where the driver speaks to whoever reads the task's log.
type pipes struct {
	prefix string

	mu             sync.Mutex // guards what follows
	stdout, stderr pipe
	closed         bool
}

type pipe struct {
	dir, path string   // that of the allocation, and one below it
	file      *os.File // nil while the end is not held
	at        *os.File // names the pipe whatever is put in its place (O_PATH); nil until it was asked for
}

// errNoReader means that Nomad's log collector of the task is gone. Nomad starts a new one with the next start.
var errNoReader = errors.New("no log collector reads the task's output")

// errNotRead means that the log collector is there and reads no more. Nomad starts a new one with the next start.
var errNotRead = errors.New("the log collector stopped reading the task's output when the plugin died")

// unreadWithin is how long a log collector may take to read a line, until it counts as one that does not read.
const unreadWithin = time.Second

// newPipes holds nothing yet of the pipes in the directory of an allocation. Logs that the job disabled are /dev/null, and nothing is ever
// held of them.
func newPipes(prefix, dir, stdout, stderr string) *pipes {
	return &pipes{prefix: prefix, stdout: pipe{dir: dir, path: stdout}, stderr: pipe{dir: dir, path: stderr}}
}

// hold makes sure that both ends are held and that somebody reads them. It does not wait: the error is errNoReader when
// nobody does.
func (p *pipes) hold() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, end := range []*pipe{&p.stdout, &p.stderr} {
		if err := end.open(p.closed); err != nil {
			return err
		}
	}
	return nil
}

// holdSoon is hold for a start: the log collector has been told to read and may not have got there yet, since it opens the
// pipes beside its answer (client/logmon/logmon.go, Start).
func (p *pipes) holdSoon() error {
	err := p.hold()
	for end := time.Now().Add(unreadWithin); errors.Is(err, errNoReader) && time.Now().Before(end); err = p.hold() {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// open opens the end. One that is held already stays, and the second opening has shown that there is a reader.
func (e *pipe) open(closed bool) error {
	if closed || e.path == "" || e.path == os.DevNull {
		return nil
	}
	file, err := e.write()
	switch {
	case errors.Is(err, unix.ENXIO):
		return errNoReader
	case err != nil:
		return fmt.Errorf("open log pipe %s: %w", e.path, err)
	case e.file != nil:
		return file.Close()
	}
	e.file = file
	return nil
}

// write opens the pipe for writing.
func (e *pipe) write() (*os.File, error) {
	if err := e.look(); err != nil {
		return nil, err
	}
	return inode.OpenPipe(e.at)
}

// look finds the pipe within the allocation's directory, where a task may make anything of it. It does so once: Nomad's log collectors use the
// same pipe for as long as the task runs (client/lib/fifo/fifo_unix.go, CreateAndRead).
func (e *pipe) look() error {
	if e.at != nil {
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
	e.at, err = inode.Pipe(root, name)
	return err
}

// paths are what the pipes can be opened by from any process of this host, for as long as the pipes are not closed: a name in an allocation's
// directory may lead anywhere by the time at which it is opened. After an error the path of what is no pipe is that of /dev/null.
func (p *pipes) paths() (stdout, stderr string, err error) {
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
	if err := e.look(); err != nil {
		return os.DevNull, fmt.Errorf("open log pipe %s: %w", e.path, err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), e.at.Fd()), nil
}

// say writes one line to the task's stderr log. A line that the pipe has no room or no reader for is dropped: no task waits
// for our words. At most PIPE_BUF bytes are written at once, so that the line is never mixed with the task's own.
func (p *pipes) say(text string) {
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

// unread reports that the log collector reads no longer, though it is there: it stops for good when nobody holds the other
// end, as after the death of a plugin process while the task had no process. A line of text is the test; a collector that has
// not taken it after patience does not read.
func (p *pipes) unread(text string, patience time.Duration) bool {
	p.say(text)
	for end := time.Now().Add(patience); p.waiting(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return true
		}
	}
	return false
}

// waiting reports that the pipe of stderr holds what nobody has read yet.
func (p *pipes) waiting() bool {
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

// close lets the log collector see the end of the log once the task's processes are gone too.
func (p *pipes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, end := range []*pipe{&p.stdout, &p.stderr} {
		if end.file != nil {
			_ = end.file.Close()
			end.file = nil
		}
		if end.at != nil {
			_ = end.at.Close()
			end.at = nil
		}
	}
	p.closed = true
}
