package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/state/statetest"
	"nomad-driver-vault/internal/need"
)

// full is a record with something in every field.
var full = Record{Version: recordVersion, Key: "alloc-1/web", TaskID: "alloc-1/web/1", InnerVersion: 2,
	Inner:     []byte("inner"),
	Delivered: map[string]string{"local/x": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"},
	Once:      map[string][]byte{"local/once": {0xff, 0}}, AllocDir: "/alloc", Files: []string{"web/local/x"},
	Sessions: map[string]Session{"default": {Login: Login{"default", "app", "", "vault", "", ""}, State: []byte("{}")}}}

// opened is a store in memory, and its log.
func opened(t testing.TB, dir string) (*Store, *bytes.Buffer) {
	var log bytes.Buffer
	s, err := Open(dir, hclog.New(&hclog.LoggerOptions{Output: &log}))
	must.NoError(t, err)
	t.Cleanup(s.Close)
	return s, &log
}

func TestRecordsAreReadAsTheyWereWritten(t *testing.T) {
	dir := statetest.Memory(t)
	s, log := opened(t, dir)
	must.NoError(t, s.Save(full))
	aside := full
	name, err := s.SetAside(full)
	must.NoError(t, err)
	live := full
	live.File, aside.File, aside.Aside = FileOf(full.Key), name, true
	must.True(t, same(s.All(), live, aside))
	s.Remove(name)
	s.Remove(name)
	must.True(t, same(s.All(), live))
	must.Eq(t, "", log.String())
	info, err := os.Stat(filepath.Join(dir, live.File))
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode())
}

// same ignores the order.
func same(have []Record, want ...Record) bool {
	slices.SortFunc(have, func(a, b Record) int { return cmp.Compare(len(a.File), len(b.File)) })
	return reflect.DeepEqual(have, want)
}

func TestRecordThatCannotBeBelievedIsIgnoredWithOneWarning(t *testing.T) {
	good, err := json.Marshal(full)
	must.NoError(t, err)
	name := FileOf(full.Key)
	write := func(data string, mode os.FileMode) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
				return err
			}
			return os.Chmod(path, mode)
		}
	}
	for how, test := range map[string]struct {
		make func(dir string) error
		says string
	}{
		"empty":            {write("", 0o600), "it is not a whole record"},
		"garbage":          {write("\x00\xff\xfe", 0o600), "it is not a whole record"},
		"cut short":        {write(string(good[:len(good)/2]), 0o600), "it is not a whole record"},
		"with more behind": {write(string(good)+"{}", 0o600), "it is not a whole record"},
		"of other types":   {write(`{"Version":1,"Key":7}`, 0o600), "it is not a whole record"},
		"of a newer plugin": {write(strings.Replace(string(good), `"Version":1`, `"Version":2`, 1), 0o600),
			"its version 2 is not one this plugin reads"},
		"without a version": {write(`{}`, 0o600), "its version 0 is not one"},
		"of another task": {write(strings.Replace(string(good), "alloc-1/web", "alloc-1/db", 1), 0o600),
			"it belongs to another task"},
		"world-readable": {write(string(good), 0o644), "it is not a regular file that only we can read"},
		"group-writable": {write(string(good), 0o620), "it is not a regular file that only we can read"},
		"a link": {func(dir string) error {
			if err := write(string(good), 0o600)(dir); err != nil {
				return err
			}
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, "other")); err != nil {
				return err
			}
			return os.Symlink("other", filepath.Join(dir, name))
		}, "it is not a regular file that only we can read"},
		"a hard link": {func(dir string) error {
			if err := write(string(good), 0o600)(dir); err != nil {
				return err
			}
			return os.Link(filepath.Join(dir, name), filepath.Join(dir, "other"))
		}, "it is not a regular file that only we can read"},
		"a directory": {func(dir string) error { return os.Mkdir(filepath.Join(dir, name), 0o700) },
			"it is not a regular file"},
		"a pipe": {func(dir string) error { return unix.Mkfifo(filepath.Join(dir, name), 0o600) },
			"it is not a regular file"},
		"another user's": {func(dir string) error {
			if err := write(string(good), 0o600)(dir); err != nil {
				return err
			}
			need.Root(t)
			return os.Chown(filepath.Join(dir, name), 65534, 65534)
		}, "it is not a regular file that only we can read"},
	} {
		t.Run(how, func(t *testing.T) {
			dir := statetest.Memory(t)
			s, log := opened(t, dir)
			must.NoError(t, test.make(dir))
			must.SliceEmpty(t, s.All())
			must.Eq(t, 1, strings.Count(log.String(), "\n"), must.Sprint(log.String()))
			must.StrContains(t, log.String(), "state is not usable, the session counts as lost: file="+name)
			must.StrContains(t, log.String(), test.says)
		})
	}
}

func TestOthersFilesAreLeftAloneAndHalfWrittenOnesRemoved(t *testing.T) {
	dir := statetest.Memory(t)
	s, log := opened(t, dir)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "README"), nil, 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, FileOf("a/b")+tempSuffix), []byte("{"), 0o600))
	must.SliceEmpty(t, s.All())
	must.Eq(t, "", log.String())
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 2, entries)
}

func TestStateDirThatIsNotOursIsRefused(t *testing.T) {
	for how, test := range map[string]struct {
		make func(t *testing.T, dir string)
		says string
	}{
		"a link": {func(t *testing.T, dir string) { must.NoError(t, os.Symlink(statetest.Memory(t), dir)) },
			"state_dir is not a directory of user"},
		"a file": {func(t *testing.T, dir string) { must.NoError(t, os.WriteFile(dir, nil, 0o600)) }, "create state_dir: "},
		"another user's": {func(t *testing.T, dir string) {
			need.Root(t)
			must.NoError(t, os.Mkdir(dir, 0o700))
			must.NoError(t, os.Chown(dir, 65534, 65534))
		}, "state_dir is not a directory of user"},
		"in use": {func(t *testing.T, dir string) { opened(t, dir) },
			"lock state_dir, does another agent on this host use it?"},
	} {
		t.Run(how, func(t *testing.T) {
			dir := filepath.Join(statetest.Memory(t), "state")
			test.make(t, dir)
			before := openFiles(t)
			_, err := Open(dir, hclog.NewNullLogger())
			must.ErrorContains(t, err, test.says)
			must.Eq(t, before, openFiles(t))
		})
	}
}

func TestStateDirIsMadeOurs(t *testing.T) {
	dir := filepath.Join(statetest.Memory(t), "a/b")
	must.NoError(t, os.MkdirAll(dir, 0o777))
	must.NoError(t, os.Chmod(dir, 0o777))
	s, _ := opened(t, dir)
	info, err := os.Stat(dir)
	must.NoError(t, err)
	must.Eq(t, 0o700, info.Mode().Perm())
	s.Close()
	opened(t, dir) // it is free again
}

func TestStateDirOnADiskGetsATmpfs(t *testing.T) {
	need.Root(t)
	dir := filepath.Join(t.TempDir(), "state")
	var fs unix.Statfs_t
	must.NoError(t, unix.Statfs(filepath.Dir(dir), &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		need.Skip(t, "a temporary directory on a disk")
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	for range 2 { // the second time it is there
		s, err := Open(dir, hclog.NewNullLogger())
		must.NoError(t, err)
		must.NoError(t, s.Save(full))
		must.NoError(t, unix.Statfs(dir, &fs))
		must.Eq(t, unix.TMPFS_MAGIC, int(fs.Type))
		must.Len(t, 1, s.All())
		s.Close()
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	must.NoError(t, err)
	_, options, _ := strings.Cut(string(mounts), " "+dir+" tmpfs ")
	options, _, _ = strings.Cut(options, "\n")
	other := t.TempDir()
	never := unix.Mount("test", other, "tmpfs", 0, "noswap") == nil // from Linux 6.4 on
	t.Cleanup(func() { _ = unix.Unmount(other, 0) })
	must.Eq(t, never, strings.Contains(options, "noswap"), must.Sprint(options))
	must.NoError(t, unix.Unmount(dir, 0))
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, entries, must.Sprint("nothing was written to the disk"))
}

func FuzzDecodeRecord(f *testing.F) {
	good, err := json.Marshal(full)
	must.NoError(f, err)
	name := FileOf(full.Key)
	for _, seed := range [][]byte{good, nil, []byte("{}"), []byte("null"), good[:100],
		bytes.Replace(good, []byte("alloc"), []byte("../.."), 1)} {
		f.Add(name, seed)
	}
	f.Add(stem(full.Key)+".x"+asideSuffix, good)
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		r, err := DecodeRecord(name, data)
		if err != nil {
			must.True(t, reflect.DeepEqual(Record{}, r))
			return
		}
		again, err := json.Marshal(r)
		must.NoError(t, err)
		same, err := DecodeRecord(name, again)
		must.NoError(t, err)
		twice, err := json.Marshal(same)
		must.NoError(t, err)
		must.Eq(t, string(again), string(twice))
	})
}

// openFiles counts the open files of this process.
func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(entries)
}

// The socket is there as long as the directory is locked, whatever a process before has left.
func TestSocket(t *testing.T) {
	dir := filepath.Join(statetest.Memory(t), strings.Repeat("long/", 30))
	for _, ends := range []string{"by a crash", "by itself"} {
		s, err := Open(dir, hclog.NewNullLogger())
		must.NoError(t, err)
		at, err := s.Listen("test.sock")
		must.NoError(t, err)
		defer at.Close()
		info, err := os.Stat(filepath.Join(dir, "test.sock"))
		must.NoError(t, err)
		must.Eq(t, os.ModeSocket|0o600, info.Mode())
		if ends == "by a crash" {
			s.lock.Close()
			continue
		}
		s.Close()
		_, err = at.Accept()
		must.ErrorIs(t, err, net.ErrClosed)
		_, err = os.Stat(filepath.Join(dir, "test.sock"))
		must.ErrorIs(t, err, os.ErrNotExist)
		s.Close()
		_, err = s.Listen("test.sock")
		must.Error(t, err)
	}
}
