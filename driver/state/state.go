// Package state keeps what must survive the plugin process: one record per task in state_dir. A record is replaced as
// a whole or not at all, and believed only if nobody but us can have written it. It holds tokens, leases and secrets,
// so the directory is in memory and root's alone. The package knows neither Nomad nor Vault: the state of a session
// is bytes to it.
package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Store is an open state directory, locked for this process.
type Store struct {
	root   *os.Root
	lock   *os.File
	logger hclog.Logger

	mu     sync.Mutex // guards what follows
	socket *socket    // nil until Listen
	closed bool
}

// socket is one that this process listens at.
type socket struct {
	net.Listener
	name string
}

// recordVersion is that of the format of a record. Older ones are read as far as they go; newer ones are not ours to
// read.
const recordVersion = 1

// Record is what is kept of one task.
type Record struct {
	Version int
	Key     string // of the task, see Key
	TaskID  string // of the run that the wrapped driver's handle belongs to

	InnerVersion   int
	Inner          []byte // the wrapped driver's handle of the present process, nil before there is one
	Launching      bool   // the wrapped driver was asked for a process whose handle is not here: there may be one
	Unacknowledged bool   `json:"Unasked"` // the agent has not asked about the task since its start: it may not know of it
	Ended          bool   // the process has ended, for good
	Held           []byte `json:",omitempty"` // nil unless other tasks use what it has left: its handle as Nomad has it

	Delivered  map[string]string  `json:"Told"`       // checksums of what the process was started with or told of
	Unverified bool               `json:"Doubted"`    // a script failed since: the process may or may not use what is new
	Generation int                `json:",omitempty"` // how many generations this run of the task has used
	Since      time.Time          `json:",omitzero"`  // of the last one
	Once       map[string][]byte  // output of blocks that are rendered once
	Sessions   map[string]Session // by the vault block's name
	Kept       []Session          `json:",omitempty"` // which the plugin process could not adopt
	Owner      []int              `json:",omitempty"` // user and group of the task, where the wrapped driver told them
	// DoorSecrets are what clients of doors show over TCP, by the doors' names: the environment of the process has them.
	DoorSecrets map[string]string `json:",omitempty"`
	AllocDir    string
	Files       []string // below AllocDir, to be removed in the end

	File  string `json:"-"` // in the state directory
	Aside bool   `json:"-"` // no run may claim it: its sessions are to be revoked
}

// Format keeps the sessions out of logs, errors and panics.
func (r Record) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[record of %s]", r.Key) }

const (
	lockName    = "lock"
	liveSuffix  = ".json"
	asideSuffix = ".revoke"
	tempSuffix  = ".new"
	// MaxRecord bounds what one task takes of the directory, in bytes, so that no task takes the place of another.
	MaxRecord = 2 << 20
	// maxRead is for records of a version that did not bound them.
	maxRead = 64 << 20
)

// Open creates dir if need be, mounts a tmpfs there if it is on a disk, and locks it. The error says why nothing can be
// kept; it is unix.EWOULDBLOCK where another process has the directory.
func Open(dir string, logger hclog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state_dir: %w", err)
	}
	if err := ours(dir); err != nil {
		return nil, err
	}
	if err := inMemory(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open state_dir: %w", err)
	}
	lock, err := root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("lock state_dir: %w", err)
	}
	s := &Store{root: root, lock: lock, logger: logger}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.Close()
		return nil, fmt.Errorf("lock state_dir, does another agent on this host use it?: %w", err)
	}
	return s, nil
}

// Close unlocks the directory for another process, after its socket was removed. It may be called again.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket != nil && !s.closed {
		s.socket.Close()
		s.Remove(s.socket.name)
	}
	s.closed = true
	s.root.Close()
	s.lock.Close()
}

// Listen listens at a socket of that name in the directory, until Close, in place of one that a process before this one
// has left.
func (s *Store) Listen(name string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, err := s.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("open state_dir: %w", err)
	}
	defer dir.Close()
	s.Remove(name)
	// The path of the directory may be longer than the address of a socket.
	at := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}
	listener, err := net.ListenUnix("unix", at)
	if err != nil {
		return nil, fmt.Errorf("listen in state_dir: %w", err)
	}
	listener.SetUnlinkOnClose(false) // its address is good for as long as dir is open
	s.socket = &socket{listener, name}
	if err := s.root.Chmod(name, 0o600); err != nil {
		return nil, fmt.Errorf("protect the socket in state_dir: %w", err)
	}
	return listener, nil
}

// ours refuses a directory that others could have prepared, and takes the others' rights from one that is ours.
func ours(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at state_dir: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("state_dir is not a directory of user %d", os.Geteuid())
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("protect state_dir: %w", err)
	}
	return nil
}

// inMemory mounts a tmpfs on a directory that is on disk, as Nomad does for secrets/.
func inMemory(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at the filesystem of state_dir: %w", err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return nil
	}
	// A quarter of the memory, as far as it is used: a few hundred records of MaxRecord on a small host.
	options := "mode=0700,size=25%"
	mount := func(options string) error {
		return unix.Mount("nomad-driver-vault", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, options)
	}
	err := mount(options + ",noswap")
	if errors.Is(err, unix.EINVAL) { // before Linux 6.4
		err = mount(options)
	}
	if err != nil {
		return fmt.Errorf("state_dir is on a disk and no tmpfs can be mounted there: %w", err)
	}
	return nil
}

// Key returns the key of a task's record: it is the same for all runs of the task.
func Key(allocID, task string) string { return allocID + "/" + task }

// FileOf returns the name of the file of a task's record, which the next run of the task may claim.
func FileOf(key string) string { return stem(key) + liveSuffix }

func stem(key string) string { return strings.ReplaceAll(key, "/", ".") }

// Save replaces the record of its task, as a whole or not at all.
func (s *Store) Save(r Record) error { return s.write(FileOf(r.Key), r) }

// SetAside writes a record that no run may claim any more, and that is kept until what is in it was revoked. It
// returns the name of the file, for Remove.
func (s *Store) SetAside(r Record) (string, error) {
	name := stem(r.Key) + "." + rand.Text() + asideSuffix
	if err := s.write(name, r); err != nil {
		return "", err
	}
	return name, nil
}

// Encode returns the contents of the record's file. The error names the bound when the record is larger than MaxRecord.
func (r Record) Encode() ([]byte, error) {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	if len(data) > MaxRecord {
		return nil, fmt.Errorf("what must be kept of the task for the plugin's next process takes %d KiB, and "+
			"%d KiB is the most: make what its blocks read of Vault, or what its blocks with once = true make, smaller",
			len(data)>>10, MaxRecord>>10)
	}
	return data, nil
}

func (s *Store) write(name string, r Record) error {
	data, err := r.Encode()
	if err != nil {
		return err
	}
	temp := name + tempSuffix
	if err = s.root.WriteFile(temp, data, 0o600); err == nil {
		err = s.root.Rename(temp, name)
	}
	if err != nil {
		_ = s.root.Remove(temp) // the error that matters is the one that made us remove it
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// read returns one record, which is believed only if it is a regular file that nobody but us can have written.
func (s *Store) read(name string) (r Record, err error) {
	info, err := s.root.Lstat(name) // os.Root follows links within the directory
	if err != nil {
		return Record{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Nlink != 1 {
		return Record{}, errors.New("it is not a regular file that only we can read")
	}
	f, err := s.root.Open(name)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRead))
	if err != nil {
		return Record{}, err
	}
	return DecodeRecord(name, data)
}

// DecodeRecord decodes the contents of the file of that name, and checks that the record belongs there.
func DecodeRecord(name string, data []byte) (r Record, err error) {
	if json.Unmarshal(data, &r) != nil { // whose error may quote a part of it
		return Record{}, errors.New("it is not a whole record")
	}
	r.File, r.Aside = name, path.Ext(name) == asideSuffix
	switch {
	case r.Version < 1 || r.Version > recordVersion:
		return Record{}, fmt.Errorf("its version %d is not one this plugin reads", r.Version)
	case !r.Aside && name != FileOf(r.Key), !strings.HasPrefix(name, stem(r.Key)+"."), !strings.Contains(r.Key, "/"):
		return Record{}, errors.New("it belongs to another task")
	}
	return r, nil
}

// Remove removes the file of a record. The log has the error.
func (s *Store) Remove(name string) {
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Warn("cannot remove state", "file", name, "error", err)
	}
}

// All returns every record that can be believed. The log says why the others cannot: their sessions are lost.
func (s *Store) All() []Record {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		s.logger.Warn("state is not usable, the sessions count as lost", "error", err)
	}
	var records []Record
	for _, entry := range entries {
		switch name := entry.Name(); path.Ext(name) {
		case tempSuffix: // of a write that a crash cut short
			s.Remove(name)
		case liveSuffix, asideSuffix:
			r, err := s.read(name)
			if err != nil {
				s.logger.Warn("state is not usable, the session counts as lost", "file", name, "error", err)
				continue
			}
			records = append(records, r)
		}
	}
	return records
}

// Session is a session with Vault, saved.
type Session struct {
	Name  string `json:",omitempty"` // of the vault block, where it is not a key of the record's
	Login Login
	State []byte // of the session, as it encodes itself

	Seen time.Time `json:"-"` // when this process first read it
}

// Format keeps the session out of logs, errors and panics.
func (s Session) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[saved session of %+v]", s.Login)
}

// Login is what a session was opened for. A task whose vault block says something else must not use it.
type Login struct {
	Cluster, Role, Namespace, Identity, IdentityFile string
	Policies                                         string // with commas
}
