package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/e2e/stack"
)

// operators is what a file of the operator's has in it.
const operators = "hvs.of-the-operator"

// inEtc makes a directory below /etc, for as long as the test runs, with files of those modes in it.
func inEtc(t *testing.T, mode os.FileMode, files map[string]os.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("/etc", "nomad-driver-vault-test-")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, os.Chmod(dir, mode))
	for name, mode := range files {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(operators), mode))
	}
	return dir
}

// everyones are the files of the host below dir that each of its users may read.
func everyones(t *testing.T, dir string) (files []string) {
	t.Helper()
	must.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		must.NoError(t, err)
		info, err := e.Info()
		must.NoError(t, err)
		switch {
		case e.IsDir() && info.Mode()&0o005 != 0o005:
			return fs.SkipDir
		case e.Type().IsRegular() && info.Mode()&0o004 != 0:
			files = append(files, path)
		}
		return nil
	}))
	slices.Sort(files)
	return files
}

// TestExecTaskReadsOfTheHostWhatEveryoneMay has a task try, with all that Nomad's exec gives it, to read the host's
// secrets.
func TestExecTaskReadsOfTheHostWhatEveryoneMay(t *testing.T) {
	t.Parallel()
	closed := inEtc(t, 0o700, map[string]os.FileMode{"secret": 0o600, "open": 0o644})
	open := inEtc(t, 0o755, map[string]os.FileMode{"token": 0o600, "group": 0o640, "open": 0o644, "replaced": 0o600})
	program, err := os.ReadFile("/usr/bin/id")
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(open+"/id", program, 0o755))
	must.NoError(t, os.Chmod(open+"/id", 0o755|os.ModeSetuid))
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec")}, Blocks: map[string]string{
		"roles": fmt.Sprintf("token_file = %q\n create_from_role = \"nomad-cluster\"\n", open+"/token")}})

	for name, task := range map[string]string{
		"one-mount": "",
		// which the host has no place for
		"a-mount-for-each-entry": "volume_mount {\n volume = \"app\"\n destination = \"" + open +
			"/volume\"\n read_only = true\n }",
	} {
		t.Run(name, func(t *testing.T) {
			j := job{Name: "host-" + name, Driver: "vault-exec", Task: task}
			_, alloc := register(t, s, shell(j, stay))
			must.NoError(t, alloc.Running(within(t, 2*time.Minute)))
			in := func(script string) string {
				stdout, stderr, _ := execute(t, alloc, j, false, "", script)
				return stdout + stderr
			}
			must.Eq(t, everyones(t, "/etc"), strings.Fields(in(`find /etc -type f ! -path '*/volume/*' 2>/dev/null | sort | while read f; do cat "$f" >/dev/null 2>&1 && echo $f; done`)))
			must.Eq(t, "", in(`ls `+closed+` 2>/dev/null`))
			for _, secret := range []string{"/etc/shadow", "/etc/gshadow", closed + "/secret", closed + "/open", open + "/token",
				open + "/group"} {
				refused(t, in, secret)
			}
			must.Eq(t, "65534\n", in(open+"/id -u"), must.Sprint("a set-user-ID program of the host's is one like any other"))

			// What still has to work.
			must.StrContains(t, in("getent passwd root"), "root:x:0:0")
			must.StrContains(t, in("getent hosts localhost"), "localhost")
			resolver, err := os.ReadFile("/etc/resolv.conf")
			must.NoError(t, err)
			must.Eq(t, string(resolver), in("cat /etc/resolv.conf"))
		})
	}
	t.Run("changes", func(t *testing.T) { seesChanges(t, s, open) })
}

// refusal is what a task is told that tries to read a file of the host's, or to make it readable.
var refusal = regexp.MustCompile(`Permission denied|not permitted|Read-only file system|Invalid (argument|cross-device link)|not mounted|wrong fs type|No such device`)

// refused tries to read a file of the host, as the task and as whoever it can make itself, there and by another way.
func refused(t *testing.T, in func(string) string, file string) {
	t.Helper()
	info, err := os.Stat(file)
	must.NoError(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	const ownNamespaces = "unshare --user --map-root-user --mount "
	scripts := []string{
		"cat " + file,
		"setpriv --reuid=0 --regid=0 --clear-groups cat " + file,
		fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups cat %s", owner.Uid, owner.Gid, file),
		"chroot / cat " + file,
		"chmod a+r " + file,
		"ln " + file + " /local/linked && cat /local/linked",
		"busybox umount /etc && cat " + file,
		fmt.Sprintf("rm -f /local/disk; mknod /local/disk b %d %d && head -c1 /local/disk", unix.Major(owner.Dev),
			unix.Minor(owner.Dev)),
		ownNamespaces + "umount /etc",
		ownNamespaces + "sh -c 'mount --bind /etc /tmp && cat /tmp" + strings.TrimPrefix(file, "/etc") + "'",
	}
	const end = " ends"
	said := strings.Split(in("exec 2>&1\n"+strings.Join(scripts, "\necho '"+end+"'\n")), end)
	must.SliceLen(t, len(scripts), said)
	for i, script := range scripts {
		must.RegexMatch(t, refusal, said[i], must.Sprint(script))
		must.StrNotContains(t, said[i], operators)
		must.StrNotContains(t, said[i], "root:", must.Sprint("a line of /etc/shadow"))
	}
}

// seesChanges: what the host writes while a task runs is there at once, as far as everyone may read it. Nearly all
// programs write a file by renaming another one over it.
func seesChanges(t *testing.T, s *stack.Stack, dir string) {
	j := job{Name: "host-changes", Driver: "vault-exec"}
	_, alloc := register(t, s, shell(j, stay))
	must.NoError(t, alloc.Running(within(t, 2*time.Minute)))
	for name, c := range map[string]struct {
		mode os.FileMode
		want string
	}{
		"new": {0o644, "new"}, "open": {0o644, "open"}, "late": {0o600, ""}, "replaced": {0o600, ""}, "group": {0o640, ""},
	} {
		must.NoError(t, os.WriteFile(dir+"/next", []byte(name), c.mode))
		must.NoError(t, os.Rename(dir+"/next", filepath.Join(dir, name)))
		stdout, stderr, _ := execute(t, alloc, j, false, "", "cat "+filepath.Join(dir, name))
		must.Eq(t, c.want, stdout, must.Sprint(name, stderr))
	}
}
