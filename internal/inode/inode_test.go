package inode

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// directory is one of a task with something of every type.
func directory(t *testing.T) *os.Root {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must.NoError(t, os.MkdirAll(at("sub/deep"), 0o700))
	must.NoError(t, os.WriteFile(at("file"), []byte("text"), 0o600))
	must.NoError(t, os.WriteFile(at("sub/file"), []byte("other"), 0o600))
	must.NoError(t, unix.Mkfifo(at("pipe"), 0o600))
	socket, err := net.Listen("unix", at("socket"))
	must.NoError(t, err)
	t.Cleanup(func() { socket.Close() })
	for link, to := range map[string]string{
		"link": "file", "linked": "sub/deep", "sub/deep/up": "../file", "out": "../file", "host": "/etc/hosts",
		"round": "round", "sub/again": "deep/up", "to-pipe": "pipe"} {
		must.NoError(t, os.Symlink(to, at(link)))
	}
	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

func TestReadReadsFilesOnly(t *testing.T) {
	root := directory(t)
	data, info, err := Read(root, "file", 4)
	must.NoError(t, err)
	must.Eq(t, "text", string(data))
	must.Eq(t, "file", filepath.Base(info.Name()))
	must.Eq(t, 4, info.Size())

	_, _, err = Read(root, "file", 3)
	must.ErrorIs(t, err, ErrLarge)
	must.EqError(t, err, "it is too large: more than 3 bytes")
	_, _, err = Read(root, "none", 4)
	must.ErrorIs(t, err, fs.ErrNotExist)
	must.EqError(t, err, "no such file or directory")
	for name, says := range map[string]string{
		"link":   "it is a symbolic link, not a regular file",
		"pipe":   "it is a named pipe, not a regular file",
		"sub":    "it is a directory, not a regular file",
		"socket": "it is a socket, not a regular file",
	} {
		_, _, err := Read(root, name, 4)
		must.EqError(t, err, says)
		var other *TypeError
		must.True(t, errors.As(err, &other))
	}
}

func TestOpenPipeAndSocketTakeNothingElse(t *testing.T) {
	root := directory(t)
	pipe, err := Pipe(root, "pipe")
	must.NoError(t, err)
	defer pipe.Close()
	_, err = OpenPipe(pipe)
	must.ErrorIs(t, err, syscall.ENXIO)
	_, err = Pipe(root, "file")
	must.EqError(t, err, "it is a regular file, not a named pipe")
	_, err = Socket(root, "file")
	must.EqError(t, err, "it is a regular file, not a socket")
	at, err := Socket(root, "socket")
	must.NoError(t, err)
	defer at.Close()
	must.NoError(t, root.Rename("socket", "elsewhere"))
	conn, err := net.Dial("unix", Path(at))
	must.NoError(t, err)
	must.NoError(t, conn.Close())
}

func TestFollowStaysBelowRoot(t *testing.T) {
	root := directory(t)
	for name, holds := range map[string]string{
		"file": "text", "link": "text", "linked/up": "other", "sub/again": "other",
	} {
		target, err := Follow(root, name)
		must.NoError(t, err)
		data, _, err := Read(root, target, 10)
		must.NoError(t, err, must.Sprint(name, " is ", target))
		must.Eq(t, holds, string(data))
	}
	for _, name := range []string{"out", "host", "round", "none", "../file", "/etc/hosts"} {
		_, err := Follow(root, name)
		must.Error(t, err, must.Sprint(name))
		must.StrNotContains(t, err.Error(), root.Name())
	}
	target, err := Follow(root, "to-pipe")
	must.NoError(t, err)
	_, _, err = Read(root, target, 4)
	must.ErrorContains(t, err, "a named pipe")
}

// A task changes what has the name as fast as it can. A pipe in its place is never opened, not even without waiting.
func TestWhatIsNoFileIsNeverOpened(t *testing.T) {
	root := directory(t)
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must.NoError(t, err)
	defer unix.Close(watch)
	_, err = unix.InotifyAddWatch(watch, filepath.Join(root.Name(), "pipe"), unix.IN_OPEN)
	must.NoError(t, err)

	done := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		file, pipe := filepath.Join(root.Name(), "file"), filepath.Join(root.Name(), "pipe")
		for {
			select {
			case <-done:
				return
			default: // each name has the one, then the other
				_ = unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, pipe, unix.RENAME_EXCHANGE)
			}
		}
	})
	files, others := 0, 0
	for files < 1000 || others < 1000 {
		data, _, err := Read(root, "file", 10)
		var other *TypeError
		switch {
		case err == nil:
			must.Eq(t, "text", string(data))
			files++
		case errors.As(err, &other):
			others++
		default:
			must.NoError(t, err)
		}
	}
	close(done)
	swapping.Wait()
	_, err = unix.Read(watch, make([]byte, 4096))
	must.ErrorIs(t, err, syscall.EAGAIN, must.Sprint("the pipe was opened"))
}
