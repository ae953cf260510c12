package template

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
)

// taskDir is a task's directory and an opened root of it.
func taskDir(t *testing.T) (string, *os.Root) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "task")
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "secrets"), 0o777))
	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, root.Close()) })
	return dir, root
}

func file(path, data string) File {
	return File{Path: path, Data: []byte(data), Perm: 0o640, UID: -1, GID: -1}
}

// tree lists what is below dir, with contents, so that a test sees leftovers.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	must.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			data, readErr := os.ReadFile(path)
			all[strings.TrimPrefix(path, dir+"/")], err = string(data), readErr
		}
		return err
	}))
	return all
}

func TestWriteChangesOnlyWhatDiffers(t *testing.T) {
	dir, root := taskDir(t)
	a, b := file("secrets/a", "one"), file("local/deep/er/b", "two")

	changed, err := Write(root, "web", []File{a, b})
	must.NoError(t, err)
	must.Eq(t, []string{a.Path, b.Path}, changed)
	must.Eq(t, map[string]string{"secrets/a": "one", "local/deep/er/b": "two"}, tree(t, dir))
	info, err := os.Stat(filepath.Join(dir, "local/deep"))
	must.NoError(t, err)
	must.Eq(t, 0o755, info.Mode().Perm())

	changed, err = Write(root, "web", []File{a, b})
	must.NoError(t, err)
	must.Len(t, 0, changed)

	a.Data = []byte("six")
	b.Perm = 0o600
	changed, err = Write(root, "web", []File{a, b, file("secrets/c", "")})
	must.NoError(t, err)
	must.Eq(t, []string{a.Path, b.Path, "secrets/c"}, changed)
	must.Eq(t, map[string]string{"secrets/a": "six", "local/deep/er/b": "two", "secrets/c": ""}, tree(t, dir))
	info, err = os.Stat(filepath.Join(dir, b.Path))
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode())
}

func TestWriteSetsOwnerAndMode(t *testing.T) {
	need.Root(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir, root := taskDir(t)
	f := File{Path: "secrets/x", Data: []byte("v"), Perm: 0o444, UID: 1234, GID: 4321}
	for _, want := range []struct {
		uid, gid int
		f        File
	}{{1234, 4321, f}, {0, 0, file("secrets/x", "v")}} {
		changed, err := Write(root, "web", []File{want.f})
		must.NoError(t, err)
		must.Eq(t, []string{"secrets/x"}, changed)
		info, err := os.Stat(filepath.Join(dir, "secrets/x"))
		must.NoError(t, err)
		st := info.Sys().(*syscall.Stat_t)
		must.Eq(t, want.f.Perm, info.Mode())
		must.Eq(t, want.uid, int(st.Uid))
		must.Eq(t, want.gid, int(st.Gid))
	}
	must.NoError(t, os.Lchown(filepath.Join(dir, "secrets/x"), -1, 99))
	changed, err := Write(root, "web", []File{file("secrets/x", "v")})
	must.NoError(t, err)
	must.Len(t, 1, changed, must.Sprint("the task gave the file another group"))
}

func TestWriteFollowsNoLink(t *testing.T) {
	cases := map[string]struct {
		put  func(t *testing.T, dir string)
		want string
	}{
		"the destination is a link": {
			func(t *testing.T, dir string) {
				must.NoError(t, os.Symlink("../../host", filepath.Join(dir, "secrets/x")))
			},
			`destination "secrets/x" is a symbolic link, which is never written through or replaced: remove it, or choose another destination`},
		"a parent is a link within the directory": {
			func(t *testing.T, dir string) {
				must.NoError(t, os.Remove(filepath.Join(dir, "secrets")))
				must.NoError(t, os.Symlink(".", filepath.Join(dir, "secrets")))
			},
			`destination "secrets/x" has a parent "secrets" that is a symbolic link, not a directory: remove it, or choose another destination`},
		"a parent is a link to nowhere": {
			func(t *testing.T, dir string) {
				must.NoError(t, os.Remove(filepath.Join(dir, "secrets")))
				must.NoError(t, os.Symlink("../../made", filepath.Join(dir, "secrets")))
			},
			`destination "secrets/x" has a parent "secrets" that is a symbolic link`},
		"a parent is a file": {
			func(t *testing.T, dir string) {
				must.NoError(t, os.Remove(filepath.Join(dir, "secrets")))
				must.NoError(t, os.WriteFile(filepath.Join(dir, "secrets"), nil, 0o600))
			},
			`destination "secrets/x" has a parent "secrets" that is a regular file`},
		"the destination is a named pipe": {
			func(t *testing.T, dir string) {
				must.NoError(t, syscall.Mkfifo(filepath.Join(dir, "secrets/x"), 0o600))
			},
			`destination "secrets/x" is a named pipe`},
		"the destination is a directory": {
			func(t *testing.T, dir string) {
				must.NoError(t, os.Mkdir(filepath.Join(dir, "secrets/x"), 0o700))
			},
			`destination "secrets/x" is a directory`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir, root := taskDir(t)
			host := filepath.Join(dir, "../../host")
			must.NoError(t, os.WriteFile(host, []byte("untouched"), 0o600))
			t.Cleanup(func() { must.NoError(t, os.Remove(host)) })
			tc.put(t, dir)
			before := tree(t, dir)
			_, err := Write(root, "web", []File{file("local/first", "v"), file("secrets/x", "v")})
			must.ErrorContains(t, err, tc.want)
			must.Eq(t, before, tree(t, dir))
			data, err := os.ReadFile(host)
			must.NoError(t, err)
			must.Eq(t, "untouched", string(data))
			_, err = os.Stat(filepath.Join(dir, "../../made"))
			must.ErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

func TestWriteLeavesAHardLinkAlone(t *testing.T) {
	dir, root := taskDir(t)
	other := filepath.Join(dir, "other")
	must.NoError(t, os.WriteFile(other, []byte("old"), 0o600))
	must.NoError(t, os.Link(other, filepath.Join(dir, "secrets/x")))
	changed, err := Write(root, "web", []File{file("secrets/x", "new")})
	must.NoError(t, err)
	must.Eq(t, []string{"secrets/x"}, changed)
	must.Eq(t, map[string]string{"other": "old", "secrets/x": "new"}, tree(t, dir))
}

func TestWriteRefusesPathsThatAreNotBelowItsRoot(t *testing.T) {
	_, root := taskDir(t)
	for _, path := range []string{"", ".", "..", "../x", "/x", "a/../../x"} {
		_, err := Write(root, "web", []File{file(path, "v")})
		must.Error(t, err, must.Sprint(path))
	}
}

func TestWriteRefusesOneDestinationTwice(t *testing.T) {
	dir, root := taskDir(t)
	_, err := Write(root, "web", []File{file("secrets/x", "1"), file("secrets/x", "2")})
	must.EqError(t, err, `destination "secrets/x": two templates write it: change one destination`)
	must.MapEmpty(t, tree(t, dir))
}

func TestWriteToAFullDirectory(t *testing.T) {
	need.Root(t)
	dir, root := taskDir(t)
	secrets := filepath.Join(dir, "secrets")
	must.NoError(t, syscall.Mount("tmpfs", secrets, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must.NoError(t, syscall.Unmount(secrets, 0)) })

	_, err := Write(root, "web", []File{file("secrets/a", "old"), file("local/b", "old")})
	must.NoError(t, err)
	before := tree(t, dir)
	_, err = Write(root, "web", []File{file("local/b", "new"), file("secrets/a", "new"),
		file("secrets/big", strings.Repeat("x", 100<<10))})
	must.ErrorIs(t, err, syscall.ENOSPC)
	must.ErrorContains(t, err, `destination "secrets/big" cannot be written, its directory is full: `)
	must.ErrorContains(t, err, "resources { secrets = <MB> }")
	must.StrNotContains(t, err.Error(), tempPrefix)
	must.Eq(t, before, tree(t, dir))
}

// chattr adds attributes to a file as chattr(1) does, until the test ends. The others stay: ext4 refuses to lose some.
func chattr(t *testing.T, path string, add int) {
	t.Helper()
	file, err := os.Open(path)
	must.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	before, err := unix.IoctlGetInt(int(file.Fd()), unix.FS_IOC_GETFLAGS)
	must.NoError(t, err)
	set := func(flags int) { must.NoError(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags)) }
	set(before | add)
	t.Cleanup(func() { set(before) })
}

func TestWriteWhereAttributesForbidIt(t *testing.T) {
	need.Root(t)
	const appendOnly, immutable = 0x20, 0x10 // FS_APPEND_FL and FS_IMMUTABLE_FL of linux/fs.h
	for name, test := range map[string]struct {
		path  string
		flags int
		says  string
	}{
		"an immutable file": {"local/conf/b", immutable,
			`destination "local/conf/b" is immutable or append-only: run chattr -ia on it, or choose another destination`},
		"an append-only file": {"local/conf/b", appendOnly, `destination "local/conf/b" is immutable or append-only`},
		"an immutable directory": {"local/conf", immutable,
			`destination "local/conf/b" is in a directory that is immutable or append-only`},
		"an append-only directory": {"local/conf", appendOnly,
			`destination "local/conf/b" is in a directory that is immutable or append-only`},
	} {
		t.Run(name, func(t *testing.T) {
			dir, root := taskDir(t)
			files := func(data string) []File { return []File{file("secrets/a", data), file("local/conf/b", data)} }
			_, err := Write(root, "web", files("old"))
			must.NoError(t, err)
			chattr(t, filepath.Join(dir, test.path), test.flags)
			before := tree(t, dir)
			changed, err := Write(root, "web", files("new"))
			must.ErrorContains(t, err, test.says)
			must.SliceEmpty(t, changed)
			must.Eq(t, before, tree(t, dir), must.Sprint("neither half a generation nor a temporary file"))
			changed, err = Write(root, "web", files("old"))
			must.NoError(t, err, must.Sprint("what is there already need not be written"))
			must.SliceEmpty(t, changed)
		})
	}
}

func TestAFileThatIsNotRenamedLeavesNothing(t *testing.T) {
	dir, root := taskDir(t)
	n, err := prepare(root, "web", file("secrets/x", "v"))
	must.NoError(t, err)
	must.MapLen(t, 1, tree(t, dir))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "secrets/x"), 0o700))
	must.Error(t, n.dir.Rename(n.temp, n.name))
	n.discard()
	must.MapEmpty(t, tree(t, dir))
}

// TestWriteAgainstATaskThatSwapsItsDirectory has the task exchange secrets/ for
// a link to another of its directories, again and again, while files are written.
func TestWriteAgainstATaskThatSwapsItsDirectory(t *testing.T) {
	dir, root := taskDir(t)
	secrets, aside := filepath.Join(dir, "secrets"), filepath.Join(dir, "aside")
	must.NoError(t, os.Mkdir(filepath.Join(dir, "public"), 0o777))
	must.NoError(t, os.Symlink("public", aside))
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				err = unix.Renameat2(unix.AT_FDCWD, secrets, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
			}
		}
		stopped <- err
	}()
	written := 0
	for i := range 3000 {
		if _, err := Write(root, "web", []File{file("secrets/x", strconv.Itoa(i))}); err == nil {
			written++
		}
	}
	close(stop)
	must.NoError(t, <-stopped)
	must.Greater(t, 0, written)
	must.MapEmpty(t, tree(t, filepath.Join(dir, "public")))
}

// TestWhatACrashHasLeftHalfWayIsFound plants what a plugin leaves that dies between the writing of a file and its
// renaming.
func TestWhatACrashHasLeftHalfWayIsFound(t *testing.T) {
	same, other := file("alloc/same", "v"), file("alloc/other", "v")
	for how, find := range map[string]func(*os.Root) error{
		"when it is written again": func(root *os.Root) error {
			_, err := Write(root, "web", []File{same, other})
			return err
		},
		"when it is removed": func(root *os.Root) error { return Remove(root, "web", []string{same.Path, other.Path}) },
	} {
		t.Run(how, func(t *testing.T) {
			dir, root := taskDir(t)
			for _, task := range []string{"web", "db"} {
				_, err := Write(root, task, []File{same})
				must.NoError(t, err)
			}
			crash := func(task string, f File) {
				f.Data = []byte("the secret of " + task)
				n, err := prepare(root, task, f)
				must.NoError(t, err)
				must.NoError(t, n.dir.Close())
			}
			crash("web", same)
			crash("web", other)
			crash("db", other)
			must.NoError(t, find(root))
			var left []string
			for name, data := range tree(t, dir) {
				if strings.Contains(name, tempPrefix) {
					left = append(left, data)
				}
			}
			must.Eq(t, []string{"the secret of db"}, left, must.Sprint("another task may be about to put its file in place"))
		})
	}
}

func TestWhatIsInThePlaceOfATemporaryFileIsNotFollowed(t *testing.T) {
	dir, root := taskDir(t)
	temp := filepath.Join(dir, "secrets", tempName("web", "secrets/x"))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "target"), []byte("kept"), 0o600))
	must.NoError(t, os.Symlink("../target", temp))
	_, err := Write(root, "web", []File{file("secrets/x", "v")})
	must.NoError(t, err)
	must.Eq(t, map[string]string{"target": "kept", "secrets/x": "v"}, tree(t, dir))
	must.NoError(t, os.MkdirAll(filepath.Join(temp, "full"), 0o700))
	_, err = Write(root, "web", []File{file("secrets/x", "new")})
	must.ErrorContains(t, err, `destination "secrets/x" cannot be written: file exists`)
	must.NoError(t, Remove(root, "web", []string{"secrets/x"}))
	must.Eq(t, map[string]string{"target": "kept"}, tree(t, dir))
}

func TestRemove(t *testing.T) {
	dir, root := taskDir(t)
	_, err := Write(root, "web", []File{file("secrets/a", "1"), file("local/b", "2")})
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "target"), []byte("kept"), 0o600))
	must.NoError(t, os.Symlink("../target", filepath.Join(dir, "secrets/link")))
	must.NoError(t, os.Symlink("local", filepath.Join(dir, "elsewhere")))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "secrets/dir"), 0o700))

	err = Remove(root, "web", []string{"elsewhere/b", "secrets/dir", "secrets/link", "secrets/a", "secrets/gone",
		"gone/x"})
	must.EqError(t, err, `remove "elsewhere/b": it has a parent "elsewhere" that is a symbolic link, not a directory: remove it, or choose another destination
remove "secrets/dir": it is a directory`)
	must.Eq(t, map[string]string{"target": "kept", "local/b": "2"}, tree(t, dir))
	_, err = os.Lstat(filepath.Join(dir, "secrets/link"))
	must.ErrorIs(t, err, fs.ErrNotExist)
	must.NoError(t, Remove(root, "web", []string{"local/b", "secrets/a"}))
}

func TestTaskPath(t *testing.T) {
	docker := map[string]string{"NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets", "NOMAD_ALLOC_DIR": "/alloc"}
	raw := map[string]string{"NOMAD_TASK_DIR": "/n/id/task/local", "NOMAD_SECRETS_DIR": "/n/id/task/secrets",
		"NOMAD_ALLOC_DIR": "/n/id/alloc"}
	cases := map[string]struct {
		path string
		env  map[string]string
		want string // empty: an error
	}{
		"a relative path is the task directory's":     {"local/x", docker, "local/x"},
		"a path as the task sees it":                  {"/secrets/a/b", docker, "secrets/a/b"},
		"a host path without isolation":               {"/n/id/task/secrets/x", raw, "secrets/x"},
		"the shared directory":                        {"/alloc/data/x", docker, "alloc/data/x"},
		"the shared directory without isolation":      {"/n/id/alloc/data/x", raw, "alloc/data/x"},
		"the shared directory beside the task's":      {"../alloc/data/x", docker, "alloc/data/x"},
		"the same from a directory of the task's":     {"local/../../alloc/x", docker, "alloc/x"},
		"another task's directory":                    {"../other/secrets/x", docker, ""},
		"beside the shared directory":                 {"../alloc/../x", docker, ""},
		"the shared directory itself":                 {"../alloc", docker, ""},
		"a path is cleaned":                           {"./local//a/../x", docker, "local/x"},
		"a directory whose name only begins the same": {"/n/id/task/localhost/x", raw, "n/id/task/localhost/x"},
		"without an environment":                      {"/local/x", nil, "local/x"},
		"a directory itself":                          {"/n/id/task/local/", raw, "local"},
		"a path that leads out":                       {"local/../../x", docker, ""},
		"a path that leads out by the variable":       {"/n/id/task/local/../../x", raw, "n/id/x"},
		"the parent":                                  {"..", docker, ""},
		"the task directory itself":                   {"/", docker, ""},
		"nothing":                                     {"", docker, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := TaskPath(tc.path, tc.env)
			must.Eq(t, tc.want, got)
			if tc.want == "" {
				must.EqError(t, err, `path "`+tc.path+`" is not below the task's directory: use local/, secrets/ or alloc/`)
			}
		})
	}
}
