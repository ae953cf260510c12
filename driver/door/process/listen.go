package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/inode"
)

// A Listen says where a task finds a door.
type Listen struct {
	Socket    *Socket
	Port      int    // on the loopback addresses of Namespace; zero: none
	Namespace string // path of a network namespace, which is the task's own
}

// A Socket is a file in a directory that the task may write to.
type Socket struct {
	Dir      string // no part of it is the task's
	Name     string // path below Dir. No link in it leads out of Dir
	UID, GID int    // of the owner
	Mode     fs.FileMode
	Link     string // another name in the same directory, of a symbolic link; "": none
}

// listen makes the listeners. They do not block, and whoever has a copy of one can accept.
func (l Listen) listen() (files []int, err error) {
	if l.Socket != nil {
		fd, err := l.Socket.listen()
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", l.Socket.Name, err)
		}
		files = append(files, fd)
	}
	if l.Port != 0 {
		ports, err := listenLoopback(l.Namespace, l.Port)
		files = append(files, ports...)
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			err = errors.New("another process of the group uses it: choose another port")
		case errors.As(err, new(ns.NSPathNotExistErr)), errors.As(err, new(ns.NSPathNotNSErr)):
			err = errors.New("the network is gone")
		}
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("listen: port %d of the task's network: %w", l.Port, err)
		}
	}
	return files, nil
}

// listen makes the socket, in the place of an older one. Only then is it the owner's: what has the name is not touched
// unless it is the new socket.
func (s *Socket) listen() (fd int, err error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	if err := s.remove(root); err != nil {
		return -1, err
	}
	dir, err := root.OpenFile(path.Dir(s.Name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = s.bind(fd, dir); err == nil {
		err = s.link(root)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// link gives the socket its other name. What has that name and is not such a link is not touched.
func (s *Socket) link(root *os.Root) error {
	if s.Link == "" || s.isLinked(root) {
		return nil
	}
	if err := root.Symlink(path.Base(s.Name), s.linkName()); err != nil {
		return fmt.Errorf("link %s to it: %w", s.Link, inode.Cause(err))
	}
	return nil
}

func (s *Socket) isLinked(root *os.Root) bool {
	to, err := root.Readlink(s.linkName())
	return err == nil && to == path.Base(s.Name)
}

func (s *Socket) linkName() string { return path.Join(path.Dir(s.Name), s.Link) }

// bind gives the socket its name, by the directory's descriptor: its path may be longer than an address. Until it has
// its owner, nobody but root can connect: a file is made with the mode that the socket has (unix_bind_bsd in
// net/unix/af_unix.c).
func (s *Socket) bind(fd int, dir *os.File) error {
	at := inode.Path(dir)
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	name := at + "/" + path.Base(s.Name)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	file, err := os.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return inode.Cause(err)
	}
	defer file.Close()
	if err := s.give(file); err != nil {
		return err
	}
	return os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN))
}

// give gives the new socket to its owner. The task may have put something else in its place: a socket of others, by a
// hard link, has another owner or a second name.
func (s *Socket) give(file *os.File) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK || stat.Nlink != 1 || int(stat.Uid) != os.Geteuid() {
		return errors.New("something else has taken its place")
	}
	if err := unix.Fchownat(int(file.Fd()), "", s.UID, s.GID, unix.AT_EMPTY_PATH); err != nil {
		return os.NewSyscallError("chown", err)
	}
	return inode.Cause(os.Chmod(inode.Path(file), s.Mode.Perm()))
}

// removeSocket takes away the socket, if there is one.
func (l Listen) removeSocket() error {
	if l.Socket == nil {
		return nil
	}
	root, err := os.OpenRoot(l.Socket.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // with all that the task had
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return l.Socket.remove(root)
}

// remove takes away the socket that has the name and the link to it, and nothing else.
func (s *Socket) remove(root *os.Root) error {
	if s.Link != "" && s.isLinked(root) {
		if err := root.Remove(s.linkName()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return inode.Cause(err)
		}
	}
	old, err := inode.Socket(root, s.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	old.Close()
	if err := root.Remove(s.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return inode.Cause(err)
	}
	return nil
}

// listenLoopback listens on 127.0.0.1 and, where there is IPv6, on ::1 of a network namespace. The thread that enters
// it leaves it again or ends (package ns).
func listenLoopback(namespace string, port int) (files []int, err error) {
	err = ns.WithNetNSPath(namespace, func(ns.NetNS) error {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring its lo up: %w", err)
		}
		fd, err := listenTCP(unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if err != nil {
			return err
		}
		files = append(files, fd)
		fd, err = listenTCP(unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}})
		switch {
		case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
			return nil
		case err != nil:
			return err
		}
		files = append(files, fd)
		return nil
	})
	return files, err
}

func listenTCP(family int, at unix.Sockaddr) (fd int, err error) {
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, at))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// loopbackUp brings lo up, which is down in a namespace that nobody has set up: that of the network mode "none".
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// isListener reports whether a file descriptor, which the process has handed back, is a socket that listens.
func isListener(fd int) bool {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listens == 1
}
