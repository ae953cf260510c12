package process

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// openMost is how many file descriptors the process may have, where the plugin may have as many. A connection of a task
// takes two.
const openMost = 1 << 16

// readable are the directories whose files the process may read: those that names are resolved with, and authorities'
// certificates. They are directories because their files are replaced. /proc is for the cgroups of peers.
var readable = []string{"/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager",
	"/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki", "/var/lib/ca-certificates",
	"/proc"}

// confine takes from this process what it does not need, and checks that start, which began it, has done its part. An
// error says which step has failed; the process must end then.
func confine(l limits) error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"check what the process may do", checkPrivileges},
		{"forbid core dumps and ptrace", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
		{"limit resources", l.set},
		{"change to /", func() error { return os.Chdir("/") }},
		{"restrict files, sockets and signals", restrict},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	syscall.Umask(0o077)
	signal.Ignore(syscall.SIGXFSZ)      // a write beyond the limit is an error
	net.DefaultResolver.PreferGo = true // NSS would load libraries and speak with daemons
	return nil
}

// privileges are the lines of /proc/self/status that say that a process may do nothing that is not everybody's.
var privileges = map[string]string{"NoNewPrivs": "1", "Groups": "", "CapInh": "0000000000000000",
	"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000"}

func checkPrivileges() error {
	if os.Getuid() == 0 || os.Getgid() == 0 || os.Geteuid() != os.Getuid() || os.Getegid() != os.Getgid() {
		return errors.New("it is root: only the plugin starts this process")
	}
	file, err := os.Open("/proc/thread-self/status")
	if err != nil {
		return err
	}
	defer file.Close()
	seen := 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		wanted, ok := privileges[key]
		if !ok {
			continue
		}
		if seen++; strings.TrimSpace(value) != wanted {
			return fmt.Errorf("%s is %q, not %q", key, strings.TrimSpace(value), wanted)
		}
	}
	if seen != len(privileges) {
		return fmt.Errorf("/proc/self/status has %d of %d lines", seen, len(privileges))
	}
	return nil
}

// limits are what the process may use.
type limits struct {
	data int64 // bytes of memory that it may write to
	file int64 // bytes of the record's file
}

func (l limits) set() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	most := min(files.Max, openMost)
	for resource, value := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: most,
		unix.RLIMIT_DATA: uint64(l.data), unix.RLIMIT_FSIZE: uint64(l.file)} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return err
		}
	}
	return nil
}

// restrict has the kernel refuse the process all files but those to read, the sockets of others and signals to others.
// What an old kernel does not know, it does not refuse. Ports are not restricted: Landlock does not see Multipath TCP.
func restrict() error {
	version, err := ll.LandlockGetABIVersion()
	if err != nil || version < 1 {
		fmt.Fprintln(os.Stderr, "this kernel has no Landlock: the doors process can read what every user can")
		return nil
	}
	newest, err := landlock.NewConfig(landlock.AccessFSSet(1<<16-1),
		landlock.ScopedSet(ll.ScopeAbstractUnixSocket|ll.ScopeSignal))
	if err != nil {
		return err
	}
	const read = ll.AccessFSReadFile | ll.AccessFSReadDir
	return newest.BestEffort().Restrict(landlock.PathAccess(read, readable...).IgnoreIfMissing())
}
