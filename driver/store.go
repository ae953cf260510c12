package driver

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// store is the directory where what must survive this process is kept: tokens, leases and secrets, so it is in memory and
// root's alone. One process at a time serves it.
type store struct {
	root   *os.Root
	lock   *os.File
	logger hclog.Logger
}

// recordVersion is that of the format of a record. Older ones are read as far as they go; newer ones are not ours to read.
const recordVersion = 1

// record is one task at rest.
type record struct {
	Version int
	Key     string // taskKey
	TaskID  string // of the run that the wrapped driver's handle belongs to

	InnerVersion int
	Inner        []byte // the wrapped driver's handle of the present process, nil before there is one
	Launching    bool   // the wrapped driver was asked for a process whose handle is not here: there may be one
	Unasked      bool   `json:"Unasked"` // the agent has not asked about the task since its start: it may not know of it
	Ended        bool   // the process has ended, for good

	Told     map[string]string       `json:"Told"`    // checksums of what the process was started with or told of
	Doubted  bool                    `json:"Doubted"` // a script failed since: the process may or may not use what is new
	Once     map[string][]byte       // output of blocks that are rendered once
	Sessions map[string]savedSession // by the vault block's name
	Kept     []savedSession          `json:",omitempty"` // which the plugin process could not adopt
	AllocDir string
	Files    []string // below AllocDir, to be removed in the end

	File  string `json:"-"` // in the state directory
	Aside bool   `json:"-"` // no run may claim it: its sessions are to be revoked
}

// Format keeps the sessions out of logs, errors and panics.
func (r record) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[record of %s]", r.Key) }

const (
	lockName   = "lock"
	liveSuffix = ".json"
	asideName  = ".revoke"
	tempSuffix = ".new"
	// recordMost bounds what one task takes of the directory, in bytes, so that none takes the place of another's.
	recordMost = 2 << 20
	// readMost is for records of a version that did not bound them.
	readMost = 64 << 20
)

// openStore makes the directory if need be, puts it into memory if it is not, and locks it. The error says why sessions
// cannot be kept.
func openStore(dir string, logger hclog.Logger) (*store, error) {
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
	s := &store{root: root, lock: lock, logger: logger}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.close()
		return nil, fmt.Errorf("lock state_dir, does another agent on this host use it?: %w", err)
	}
	return s, nil
}

// close lets another process serve the directory.
func (s *store) close() {
	s.root.Close()
	s.lock.Close()
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
	options := "mode=0700,size=25%" // of the memory, as far as it is used: a few hundred records of recordMost on a small host
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

// fileOf is where the record of a task is, which its next run may claim.
func fileOf(key string) string { return stem(key) + liveSuffix }

func stem(key string) string { return strings.ReplaceAll(key, "/", ".") }

// save replaces the record of its task as a whole or not at all.
func (s *store) save(r record) error { return s.write(fileOf(r.Key), r) }

// setAside keeps a record, which no run may claim any more, until what is in it has been revoked. It returns the file.
func (s *store) setAside(r record) (string, error) {
	name := stem(r.Key) + "." + rand.Text() + asideName
	if err := s.write(name, r); err != nil {
		return "", err
	}
	return name, nil
}

// encode returns the record as a file has it. The error names the bound where there is too much of it.
func (r record) encode() ([]byte, error) {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	if len(data) > recordMost {
		return nil, fmt.Errorf("what must be kept of the task for the plugin's next process takes %d KiB, and %d KiB is the most: "+
			"make what its blocks read of Vault, or what its blocks with once = true make, smaller", len(data)>>10, recordMost>>10)
	}
	return data, nil
}

func (s *store) write(name string, r record) error {
	data, err := r.encode()
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
func (s *store) read(name string) (r record, err error) {
	info, err := s.root.Lstat(name) // os.Root follows links within the directory
	if err != nil {
		return record{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Nlink != 1 {
		return record{}, errors.New("it is not a regular file that only we can read")
	}
	f, err := s.root.Open(name)
	if err != nil {
		return record{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, readMost))
	if err != nil {
		return record{}, err
	}
	return decodeRecord(name, data)
}

// decodeRecord reads what is in a file of that name.
func decodeRecord(name string, data []byte) (r record, err error) {
	if json.Unmarshal(data, &r) != nil { // whose error may quote a part of it
		return record{}, errors.New("it is not a whole record")
	}
	r.File, r.Aside = name, path.Ext(name) == asideName
	switch {
	case r.Version < 1 || r.Version > recordVersion:
		return record{}, fmt.Errorf("its version %d is not one this plugin reads", r.Version)
	case !r.Aside && name != fileOf(r.Key), !strings.HasPrefix(name, stem(r.Key)+"."), !strings.Contains(r.Key, "/"):
		return record{}, errors.New("it belongs to another task")
	}
	return r, nil
}

// remove forgets a record.
func (s *store) remove(name string) {
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Warn("cannot remove state", "file", name, "error", err)
	}
}

// all returns every record that can be believed. Of the others the log says why they cannot: their sessions are lost.
func (s *store) all() []record {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		s.logger.Warn("state is not usable, the sessions count as lost", "error", err)
	}
	var records []record
	for _, entry := range entries {
		switch name := entry.Name(); path.Ext(name) {
		case tempSuffix: // of a write that a crash cut short
			s.remove(name)
		case liveSuffix, asideName:
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

// savedSession is a session at rest.
type savedSession struct {
	Name  string `json:",omitempty"` // of the vault block, where it is not a key of the record's
	Login login
	State []byte // of the session, as it encodes itself

	Seen time.Time `json:"-"` // when this process first read it
}

// Format keeps the session out of logs, errors and panics.
func (s savedSession) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[saved session of %+v]", s.Login)
}

// login is what a session stands for: a task that asks for something else must not be served by it.
type login struct {
	Cluster, Role, Namespace, Identity, IdentityFile string
	Policies                                         string // with commas
}
