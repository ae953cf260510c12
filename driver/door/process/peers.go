package process

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/door"
)

// cgroupMost is how many bytes of /proc/<pid>/cgroup are read.
const cgroupMost = 16 << 10

// A peerListener accepts the connections of processes that may use a door, and hangs up on others.
type peerListener struct {
	*net.UnixListener
	cgroups []string // none: all may
	refused atomic.Int64
	refuse  func(door.Peer, error) // is told of those that may not
}

// Accept waits for a process that may use the door.
func (l *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := judge(conn, l.cgroups)
		if err == nil {
			return &peerConn{UnixConn: conn, peer: peer}, nil
		}
		_ = conn.Close()
		l.refused.Add(1)
		l.refuse(peer, err)
	}
}

// A peerConn is a connection whose other end is known: door.PeerOf tells it.
type peerConn struct {
	*net.UnixConn
	peer door.Peer
}

// Peer is who has connected.
func (c *peerConn) Peer() door.Peer { return c.peer }

var (
	errPeer     = errors.New("the process is not in the task's cgroup")
	errPeerGone = errors.New("the process that has connected has ended")
)

// judge returns who has made a connection, with an error if it is in none of the cgroups.
//
// A process ID is used again when its process has ended: another process could hold the connection of a dead one until
// a process of the task gets its ID. The kernel keeps a descriptor of the process that connected (SO_PEERPIDFD, Linux
// 6.5): while that process lives, what /proc says of its ID is said of it. Before 6.5 nothing closes that gap.
func judge(conn *net.UnixConn, cgroups []string) (peer door.Peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer, err
	}
	var cred *unix.Ucred
	pidfd := -1
	failed := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil && len(cgroups) > 0 {
			pidfd, err = peerPidfd(int(fd))
		}
	})
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if err := errors.Join(failed, err); err != nil {
		return peer, err
	}
	peer = door.Peer{PID: int(cred.Pid), UID: int(cred.Uid)}
	if len(cgroups) == 0 {
		return peer, nil
	}
	if err := inCgroup(peer.PID, cgroups); err != nil {
		return peer, err
	}
	if pidfd >= 0 && hasEnded(pidfd) {
		return peer, errPeerGone
	}
	return peer, nil
}

// peerPidfd returns a descriptor of the process that has connected, or -1 where the kernel knows no such thing.
func peerPidfd(fd int) (int, error) {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return -1, nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODATA):
		return -1, errPeerGone
	case err != nil:
		return -1, err
	}
	return pidfd, nil
}

// hasEnded reports whether the process has: only then is its descriptor readable (pidfd_open(2)).
func hasEnded(pidfd int) bool {
	polled := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(polled, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}

// inCgroup returns nil if a process is in one of the cgroups or below it.
func inCgroup(pid int, cgroups []string) error {
	file, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return errPeerGone
	}
	defer file.Close()
	text := make([]byte, cgroupMost)
	n, err := file.Read(text)
	if err != nil {
		return errPeerGone
	}
	if n == cgroupMost {
		return errPeer // the last line may be cut off, and look like another path
	}
	return matchCgroups(text[:n], cgroups)
}

// matchCgroups looks for the cgroups in the text of /proc/<pid>/cgroup: lines of hierarchy:controllers:path
// (cgroups(7)).
func matchCgroups(text []byte, cgroups []string) error {
	for line := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		for _, allowed := range cgroups {
			if len(fields) == 3 && (fields[2] == allowed || strings.HasPrefix(fields[2], allowed+"/")) {
				return nil
			}
		}
	}
	return errPeer
}
