package process

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
)

func TestASocketHasAnyPathAndItsOwner(t *testing.T) {
	need.Root(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "secrets"), 0o755))
	s := &Socket{Dir: dir, Name: "secrets/x.sock", UID: 1234, GID: 4321, Mode: 0o660}
	for range 2 { // the second takes the place of the first
		fd, err := s.listen()
		must.NoError(t, err)
		defer unix.Close(fd)
	}
	info, err := os.Lstat(filepath.Join(dir, s.Name))
	must.NoError(t, err)
	must.Eq(t, os.ModeSocket|0o660, info.Mode())
	must.Eq(t, 1234, info.Sys().(*unixStat).Uid)
	must.Eq(t, 4321, info.Sys().(*unixStat).Gid)
}

// What a task puts where its socket is to be is not followed, not opened, not given away and not removed.
func TestATaskLeadsRootNowhereElse(t *testing.T) {
	need.Root(t)
	outside, dir := t.TempDir(), t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(outside, "file"), []byte("text"), 0o600))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "secrets"), 0o755))
	at := filepath.Join(dir, "secrets/x.sock")
	s := &Socket{Dir: dir, Name: "secrets/x.sock", UID: 1234, GID: 4321, Mode: 0o666}
	for what, put := range map[string]func() error{
		"a symbolic link": func() error { return os.Symlink(filepath.Join(outside, "file"), at) },
		"a dangling link": func() error { return os.Symlink(filepath.Join(outside, "new.sock"), at) },
		"a regular file":  func() error { return os.WriteFile(at, nil, 0o600) },
		"a named pipe":    func() error { return unix.Mkfifo(at, 0o600) },
		"a directory":     func() error { return os.Mkdir(at, 0o700) },
	} {
		must.NoError(t, put(), must.Sprint(what))
		_, err := s.listen()
		must.Error(t, err, must.Sprint(what))
		must.NoError(t, Listen{Socket: s}.ignoringTypes(), must.Sprint(what))
		must.NoError(t, os.Remove(at), must.Sprint(what))
	}
	must.NoError(t, os.Remove(filepath.Join(dir, "secrets")))
	must.NoError(t, os.Symlink(outside, filepath.Join(dir, "secrets")))
	_, err := s.listen()
	must.Error(t, err)
	must.Len(t, 1, must1(os.ReadDir(outside)))
	info := must1(os.Lstat(filepath.Join(outside, "file")))
	must.Eq(t, 0o600, info.Mode())
	must.Eq(t, 0, info.Sys().(*unixStat).Uid)
}

// ignoringTypes removes the socket as Close does; what is no socket stays.
func (l Listen) ignoringTypes() error {
	if err := l.removeSocket(); err == nil {
		return fmt.Errorf("what is no socket was removed")
	}
	return nil
}

// A socket of others, of which the task has made a hard link in the moment after bind, is not given to it.
func TestASocketOfOthersIsNotGivenAway(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	others := filepath.Join(dir, "others.sock")
	l, err := net.Listen("unix", others)
	must.NoError(t, err)
	defer l.Close()
	must.NoError(t, os.Chmod(others, 0o600))
	must.NoError(t, os.Link(others, filepath.Join(dir, "x.sock")))
	file, err := os.OpenFile(filepath.Join(dir, "x.sock"), unix.O_PATH|unix.O_NOFOLLOW, 0)
	must.NoError(t, err)
	defer file.Close()
	must.EqError(t, (&Socket{UID: 1234, Mode: 0o666}).give(file), "something else has taken its place")
	must.Eq(t, 0, must1(os.Lstat(others)).Sys().(*unixStat).Uid)
}

// newNamespace makes a network namespace of which nothing is up, and returns its path. Only that mount holds it.
func newNamespace(t *testing.T) string {
	t.Helper()
	need.Root(t)
	at := filepath.Join(t.TempDir(), "netns")
	must.NoError(t, os.WriteFile(at, nil, 0o600))
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), at, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	must.NoError(t, <-made)
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

func dialIn(t *testing.T, namespace, address string) (answer string, err error) {
	t.Helper()
	must.NoError(t, ns.WithNetNSPath(namespace, func(ns.NetNS) error {
		c, failed := net.Dial("tcp", address)
		if err = failed; err == nil {
			answer, err = exchange(c, "x")
			c.Close()
		}
		return nil
	}))
	return answer, err
}

func TestADoorListensInTheTasksNetwork(t *testing.T) {
	namespace := newNamespace(t)
	d, dir := newDoors(t)
	r := request1("a", dir, &source{})
	r.Listen.Port, r.Listen.Namespace = 4000, namespace
	o, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	for _, address := range []string{"127.0.0.1:4000", "[::1]:4000"} {
		must.Eq(t, "1 x", must1(dialIn(t, namespace, address)), must.Sprint(address))
	}
	_, err = net.Dial("tcp", "127.0.0.1:4000") // of the node
	must.Error(t, err)
	must.NoError(t, unix.Kill(pidIn(t, dir), unix.SIGKILL))
	must.Eq(t, "1 x", must1(dialIn(t, namespace, "127.0.0.1:4000")))

	var before unix.Stat_t
	must.NoError(t, unix.Stat(namespace, &before))
	must.True(t, namespaceLives(t, before.Ino))
	must.NoError(t, unix.Unmount(namespace, unix.MNT_DETACH))
	o.Close(t.Context())
	eventually(t, "the namespace ends", func() bool { return !namespaceLives(t, before.Ino) })
}

// namespaceLives reports whether a socket of that network namespace is held by this process or by the doors process.
func namespaceLives(t *testing.T, inode uint64) bool {
	t.Helper()
	found := must1(exec.Command("pgrep", "-u", fmt.Sprint(testUID)).CombinedOutput())
	for _, pid := range append(strings.Fields(string(found)), "self") {
		entries, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			continue
		}
		for _, e := range entries {
			if holds(pid, e.Name(), inode) {
				return true
			}
		}
	}
	return false
}

// holds reports whether a descriptor is of a socket in the namespace.
func holds(pid, fd string, inode uint64) bool {
	n, f := 0, 0
	if _, err := fmt.Sscan(fd, &f); err != nil {
		return false
	}
	if pid == "self" {
		n = os.Getpid()
	} else if _, err := fmt.Sscan(pid, &n); err != nil {
		return false
	}
	pidfd, err := unix.PidfdOpen(n, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pidfd)
	got, err := unix.PidfdGetfd(pidfd, f, 0)
	if err != nil {
		return false
	}
	defer unix.Close(got)
	space, err := unix.IoctlRetInt(got, unix.SIOCGSKNS)
	if err != nil {
		return false
	}
	defer unix.Close(space)
	var stat unix.Stat_t
	return unix.Fstat(space, &stat) == nil && stat.Ino == inode
}

func TestAPortInUseIsNamed(t *testing.T) {
	namespace := newNamespace(t)
	files, err := listenLoopback(namespace, 4000)
	must.NoError(t, err)
	defer closeAll(files)
	_, err = Listen{Port: 4000, Namespace: namespace}.listen()
	must.EqError(t, err,
		"listen: port 4000 of the task's network: another process of the group uses it: choose another port")
}

func TestANetworkThatIsGoneIsNamed(t *testing.T) {
	namespace := newNamespace(t)
	must.NoError(t, unix.Unmount(namespace, unix.MNT_DETACH))
	for _, at := range []string{namespace, namespace + "x"} {
		_, err := Listen{Port: 4000, Namespace: at}.listen()
		must.EqError(t, err, "listen: port 4000 of the task's network: the network is gone")
	}
}

// TestASocketHasAnotherName: clients of PostgreSQL look for one that ends in the port.
func TestASocketHasAnotherName(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(filepath.Join(dir, "secrets"), 0o755))
	at := filepath.Join(dir, "secrets/.s.PGSQL.5432")
	l := Listen{Socket: &Socket{Dir: dir, Name: "secrets/db.sock", UID: -1, GID: -1, Mode: 0o600, Link: ".s.PGSQL.5432"}}
	for range 2 { // the second has a link already
		files, err := l.listen()
		must.NoError(t, err)
		defer closeAll(files)
		c, err := net.Dial("unix", at)
		must.NoError(t, err)
		c.Close()
	}
	must.NoError(t, l.removeSocket())
	must.SliceEmpty(t, must1(os.ReadDir(filepath.Join(dir, "secrets"))))

	must.NoError(t, os.Symlink("other.sock", at))
	_, err := l.listen()
	must.EqError(t, err, "listen on secrets/db.sock: link .s.PGSQL.5432 to it: file exists")
	must.NoError(t, l.removeSocket())
	must.Eq(t, "other.sock", must1(os.Readlink(at)))
}
