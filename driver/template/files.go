package template

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"nomad-driver-vault/internal/inode"

	"golang.org/x/sys/unix"
)

// File is one rendered file of a generation.
type File struct {
	// Path is relative to the root that Write is given, with slashes.
	Path string

	// Name is the destination as the job's author wrote it, for messages; Path
	// when empty.
	Name string

	Data []byte

	// Perm is the file's mode, whatever the plugin's umask.
	Perm fs.FileMode

	// UID and GID own the file. -1 is the plugin's own, which is root.
	UID, GID int
}

// Format keeps the data out of logs, errors and panics.
func (f File) Format(to fmt.State, _ rune) { fmt.Fprintf(to, "[file %q]", f.Path) }

// tempPrefix begins the name of a file that is not complete yet.
const tempPrefix = ".nomad-driver-vault-"

// tempName is the name of a task's file until it is complete. It is the same
// each time, so that the next Write or Remove of the file finds what a crash has
// left, and another for each task, since alloc/ is there for all of a group.
func tempName(task, path string) string {
	sum := sha256.Sum256([]byte(task + "\x00" + path))
	return tempPrefix + hex.EncodeToString(sum[:16])
}

// Write puts one generation of files below root and returns the paths of those
// whose bytes, mode or owner it changed. Every file is complete under a
// temporary name before the first one appears under its own, so an error leaves
// the old generation as it was and nothing else behind; only a rename that
// fails, because the task put a directory in its way at that moment, can leave
// a part, which is then returned together with the error. The files appear in
// their order here, so that who finds the last one new finds all of them new.
// Generations of one task are written one after the other.
//
// The task owns these directories, and the plugin is root: no symbolic link is
// ever followed, and what is not a regular file is an error that names the
// destination. Missing parent directories are made with mode 0755, as Nomad
// does. Nothing is synced to disk: after a crash of the host, Nomad starts the
// task anew, and it is rendered anew.
func Write(root *os.Root, task string, files []File) (changed []string, err error) {
	var ready []*newFile
	defer func() {
		for _, n := range ready {
			n.discard()
		}
	}()
	seen := make(map[string]bool)
	for _, f := range files {
		if seen[f.Path] {
			return nil, fmt.Errorf("destination %q: two templates write it: change one destination", f.Path)
		}
		seen[f.Path] = true
		n, err := prepare(root, task, f)
		if err != nil {
			return nil, fmt.Errorf("destination %q %w", cmp.Or(f.Name, f.Path), err)
		}
		if n != nil {
			ready = append(ready, n)
		}
	}
	for _, n := range ready {
		if err := n.dir.Rename(n.temp, n.name); err != nil {
			return changed, fmt.Errorf("destination %q cannot be replaced: %w", n.as, inode.Cause(err))
		}
		n.temp = ""
		changed = append(changed, n.path)
	}
	return changed, nil
}

// Remove deletes files that Write made for the task, or was about to make when
// the plugin died, and whatever file the task put in their place. What is gone
// already is no error. It goes on after an error and returns all of them.
func Remove(root *os.Root, task string, paths []string) error {
	var all []error
	for _, p := range paths {
		if err := remove(root, task, p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, fmt.Errorf("remove %q: it %w", p, err))
		}
	}
	return errors.Join(all...)
}

func remove(root *os.Root, task, name string) error {
	dir, err := openDir(root, path.Dir(name), false)
	if err != nil {
		return err
	}
	defer dir.Close()
	_ = dir.Remove(tempName(task, name)) // where it cannot be, it is not ours, or the file itself says so
	info, err := dir.Lstat(path.Base(name))
	if err != nil {
		return unreachable(err)
	}
	if info.IsDir() {
		return errors.New("is a directory")
	}
	return unreachable(dir.Remove(path.Base(name)))
}

// newFile is a file that is complete under its temporary name.
type newFile struct {
	path, as   string // File.Path, and what messages call it
	dir        *os.Root
	name, temp string // in dir; no temp once it has been renamed
}

func (n *newFile) discard() {
	if n.temp != "" {
		// The error that matters is the one that made us discard it.
		_ = n.dir.Remove(n.temp)
	}
	n.dir.Close()
}

// prepare writes f under a temporary name. It returns nil when the file is
// already there as it should be. Errors continue "destination X ...".
func prepare(root *os.Root, task string, f File) (n *newFile, err error) {
	dir, err := openDir(root, path.Dir(f.Path), true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if n == nil {
			dir.Close()
		}
	}()
	f.UID, f.GID = owner(f)
	name, temp := path.Base(f.Path), tempName(task, f.Path)
	_ = dir.Remove(temp) // where it cannot be, it cannot be made either
	if same, err := unchanged(dir, name, f); same || err != nil {
		return nil, err
	}
	if err := frozen(dir, name); err != nil {
		return nil, err
	}
	if err := writeTemp(dir, temp, f); err != nil {
		return nil, notWritten(err)
	}
	return &newFile{path: f.Path, as: cmp.Or(f.Name, f.Path), dir: dir, name: name, temp: temp}, nil
}

func owner(f File) (uid, gid int) {
	uid, gid = f.UID, f.GID
	if uid < 0 {
		uid = os.Geteuid()
	}
	if gid < 0 {
		gid = os.Getegid()
	}
	return uid, gid
}

// unchanged says whether name is f already. Anything but a regular file in its
// place is an error: the task, not an earlier generation, put it there.
func unchanged(dir *os.Root, name string, f File) (bool, error) {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, unreachable(err)
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("is %s, which is never written through or replaced: remove it, or choose another "+
			"destination", inode.Kind(info.Mode()))
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode() != f.Perm.Perm() || int(st.Uid) != f.UID || int(st.Gid) != f.GID ||
		info.Size() != int64(len(f.Data)) {
		return false, nil
	}
	return sameBytes(dir, name, info, f.Data), nil
}

// sameBytes compares the file that info describes with data.
func sameBytes(dir *os.Root, name string, info fs.FileInfo, data []byte) bool {
	old, opened, err := inode.Read(dir, name, int64(len(data)))
	return err == nil && os.SameFile(info, opened) && bytes.Equal(old, data)
}

// frozen is an error where an attribute of the old file, or of its directory,
// will make the rename fail (rename(2): EPERM, also for root): in time to leave
// all other files of the generation as they are.
func frozen(dir *os.Root, name string) error {
	at, err := dir.Open(".")
	if err != nil {
		return unreachable(err)
	}
	defer at.Close()
	for _, look := range []struct{ path, says string }{{".", "is in a directory that is"}, {name, "is"}} {
		var st unix.Statx_t
		err := unix.Statx(int(at.Fd()), look.path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
		if err == nil && st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
			return fmt.Errorf("%s immutable or append-only: run chattr -ia on it, or choose another destination", look.says)
		}
	}
	return nil
}

// writeTemp makes the file with its owner and mode, so that it has them when it
// appears under its name. On an error nothing is left.
func writeTemp(dir *os.Root, temp string, f File) (err error) {
	file, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			_ = dir.Remove(temp)
		}
	}()
	if _, err := file.Write(f.Data); err != nil {
		return err
	}
	if err := file.Chown(f.UID, f.GID); err != nil {
		return err
	}
	return file.Chmod(f.Perm.Perm())
}

// openDir opens a directory below root, one component at a time. Each must be a
// directory itself, and the one that was looked at is the one that is opened:
// everything done in the result happens in root's own tree, even while the task
// renames and links as it likes.
func openDir(root *os.Root, dir string, create bool) (*os.Root, error) {
	at, err := root.OpenRoot(".")
	if err != nil {
		return nil, unreachable(err)
	}
	if dir == "." {
		return at, nil
	}
	for _, name := range strings.Split(dir, "/") {
		next, err := enter(at, name, create)
		at.Close()
		if err != nil {
			return nil, fmt.Errorf("has a parent %q that %w", name, err)
		}
		at = next
	}
	return at, nil
}

func enter(parent *os.Root, name string, create bool) (*os.Root, error) {
	info, err := parent.Lstat(name)
	if create && errors.Is(err, fs.ErrNotExist) {
		if err := parent.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, notWritten(err)
		}
		info, err = parent.Lstat(name)
	}
	if err != nil {
		return nil, unreachable(err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("is %s, not a directory: remove it, or choose another destination", inode.Kind(info.Mode()))
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return nil, unreachable(err)
	}
	if opened, err := dir.Stat("."); err != nil || !os.SameFile(info, opened) {
		dir.Close()
		return nil, errors.New("was replaced while it was opened")
	}
	return dir, nil
}

// notWritten explains an error of a write. Old and new files are there at the
// same time, because a generation appears as a whole or not at all.
func notWritten(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("cannot be written, its directory is full: old and new files need room side by side; "+
			"for secrets/ raise resources { secrets = <MB> } (Nomad's default is 1), elsewhere free disk space: %w",
			inode.Cause(err))
	}
	return fmt.Errorf("cannot be written: %w", inode.Cause(err))
}

// unreachable is nil for nil.
func unreachable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot be reached: %w", inode.Cause(err))
}

// taskDirs are the directories that Nomad gives every task: the variable that
// holds the path as the task sees it, and the name in the task's directory.
var taskDirs = []struct{ variable, name string }{
	{"NOMAD_TASK_DIR", "local"},
	{"NOMAD_SECRETS_DIR", "secrets"},
	{"NOMAD_ALLOC_DIR", "alloc"},
}

// TaskPath maps a path that a job author wrote to a slash path relative to the
// task's directory: "local/x", "/local/x" and "${NOMAD_TASK_DIR}/x" are
// "local/x", whatever the wrapped driver makes of that directory. A result that
// begins with "alloc/" is below the allocation's shared directory, which is not
// part of the task's but beside it, so that "../alloc/x" is the same. The error
// means that the path leads outside.
func TaskPath(name string, env map[string]string) (string, error) {
	in := path.Clean(name)
	for _, d := range taskDirs {
		dir := env[d.variable]
		if rest, ok := strings.CutPrefix(in, dir); dir != "" && ok && (rest == "" || rest[0] == '/') {
			in = d.name + rest
			break
		}
	}
	in = path.Clean(strings.TrimLeft(in, "/"))
	if strings.HasPrefix(in, "../alloc/") {
		in = strings.TrimPrefix(in, "../")
	}
	if in == "." || in == ".." || strings.HasPrefix(in, "../") {
		return "", fmt.Errorf("path %q is not below the task's directory: use local/, secrets/ or alloc/", name)
	}
	return in, nil
}
