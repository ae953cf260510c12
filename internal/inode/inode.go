// Package inode opens files in directories that a task can write to.
//
// The plugin is root and to open is to act: a named pipe waits for its other end, a tape rewinds, a watchdog reboots
// the host when it is closed again, and containers may make devices (CAP_MKNOD is among those that Docker gives). So
// a name is first looked up without opening anything (O_PATH, open(2)), and what was looked at is what is opened,
// whatever the task has put in its place since.
package inode

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrLarge is the error for a file that has more bytes than are allowed.
var ErrLarge = errors.New("it is too large")

// A TypeError says that something of another type has the name.
type TypeError struct{ Found, Wanted fs.FileMode }

func (e *TypeError) Error() string {
	return fmt.Sprintf("it is %s, not %s", Kind(e.Found), Kind(e.Wanted))
}

// linksMost is how many links are followed, as the kernel does (path_resolution(7)).
const linksMost = 40

// Read returns all of the regular file of that name below root, and what it was before it was read. The last element
// of name may not be a link. More than most bytes are ErrLarge, anything but a file is a *TypeError; no error tells a
// path.
func Read(root *os.Root, name string, most int64) ([]byte, fs.FileInfo, error) {
	file, info, err := Open(root, name)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, nil, Cause(err)
	}
	if int64(len(data)) > most {
		return nil, nil, fmt.Errorf("%w: more than %d bytes", ErrLarge, most)
	}
	return data, info, nil
}

// Open opens the regular file of that name below root for reading, like Read.
func Open(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	at, info, err := look(root, name, 0)
	if err != nil {
		return nil, nil, err
	}
	defer at.Close()
	file, err := os.OpenFile(Path(at), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	return file, info, Cause(err)
}

// Pipe returns a descriptor that is good for naming the named pipe of that name below root, and for nothing else.
func Pipe(root *os.Root, name string) (*os.File, error) {
	at, _, err := look(root, name, fs.ModeNamedPipe)
	return at, err
}

// OpenPipe opens for writing what Pipe has returned, without waiting for a reader: where there is none, the error is
// ENXIO.
func OpenPipe(pipe *os.File) (*os.File, error) {
	file, err := os.OpenFile(Path(pipe), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	return file, Cause(err)
}

// Socket returns a descriptor that is good for naming the socket of that name below root, and for nothing else.
func Socket(root *os.Root, name string) (*os.File, error) {
	at, _, err := look(root, name, fs.ModeSocket)
	return at, err
}

func look(root *os.Root, name string, wanted fs.FileMode) (*os.File, fs.FileInfo, error) {
	at, info, err := OpenName(root, name)
	if err == nil && info.Mode().Type() != wanted {
		at.Close()
		err = &TypeError{Found: info.Mode().Type(), Wanted: wanted}
	}
	if err != nil {
		return nil, nil, Cause(err)
	}
	return at, info, nil
}

// OpenName returns a descriptor that is good for naming what has that name below root, and what that is. Nothing is
// done to it: a link is not followed, a pipe is not opened.
func OpenName(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	at, err := root.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := at.Stat()
	if err != nil {
		at.Close()
		return nil, nil, err
	}
	return at, info, nil
}

// Bind mounts the file or directory that is open, for its name alone or not, with what is mounted below it, at a path
// where nothing is yet.
func Bind(file *os.File, at string) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount(Path(file), at, "", unix.MS_BIND|unix.MS_REC, ""))
}

// Within reports whether path is dir or below it. Both are clean; links are not looked at.
func Within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// Path is a name for what is open, which no rename changes.
func Path(file *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", file.Fd()) }

// Follow returns the name below root at which the links end that name leads to. Where nothing is, or a link leads out
// of root, it is an error.
func Follow(root *os.Root, name string) (string, error) {
	if _, err := root.Stat(name); err != nil { // refuses what leads out
		return "", Cause(err)
	}
	for range linksMost {
		to, err := root.Readlink(name)
		if errors.Is(err, syscall.EINVAL) { // readlink(2): no link
			return name, nil
		}
		if err != nil {
			return "", Cause(err)
		}
		name = path.Dir(name) + "/" + to // not cleaned: a directory before ".." may be a link
	}
	return "", syscall.ELOOP
}

// Kind names a type for a job's author.
func Kind(mode fs.FileMode) string {
	switch mode.Type() {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a named pipe"
	case fs.ModeSocket:
		return "a socket"
	default:
		return "a device"
	}
}

// Cause strips the system call and the paths of this host, which a job's author does not know, from an error of the
// file system.
func Cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}
