package process

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestADoorAnswersWithItsCredential(t *testing.T) {
	d, dir := newDoors(t)
	o, s := mustOpen(t, d, dir, "a")
	at := filepath.Join(dir, "a.sock")
	must.Eq(t, "1 hello", say(t, at, "hello"))
	o.Use(credential(2))
	eventually(t, "use", func() bool { return say(t, at, "x") == "2 x" })
	must.Eq(t, "<nil> 3", say(t, at, "reread"))
	must.Eq(t, 1, s.rereads())
	say(t, at, "unused 1")
	say(t, at, "unused 3") // the current one
	eventually(t, "unused", func() bool { return s.told() == 1 })
	must.Greater(t, 3, d.Status(t.Context()).Doors["a"].Calls)
	o.Close(t.Context())
	_, err := os.Lstat(at)
	must.ErrorIs(t, err, os.ErrNotExist)
}

func TestTheProcessMayDoNothing(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "a")
	at := filepath.Join(dir, "a.sock")
	status := say(t, at, "status")
	for _, has := range []string{
		fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d|", testUID), fmt.Sprintf("Gid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d|", testUID),
		"Groups:\t |", "CapInh:\t0000000000000000|", "CapPrm:\t0000000000000000|", "CapEff:\t0000000000000000|",
		"CapBnd:\t0000000000000000|", "CapAmb:\t0000000000000000|", "NoNewPrivs:\t1|"} {
		must.StrContains(t, status, has)
	}
	open := filepath.Join(t.TempDir(), "everybody's")
	must.NoError(t, os.WriteFile(open, []byte("text"), 0o644))
	for path := filepath.Dir(open); path != "/tmp" && path != "/"; path = filepath.Dir(path) {
		must.NoError(t, os.Chmod(path, 0o777))
	}
	inside, err := net.Listen("unix", "@nomad-driver-vault-test")
	must.NoError(t, err)
	defer inside.Close()
	for line, says := range map[string]string{
		"read " + open:                       "permission denied",
		"read /etc/shadow":                   "permission denied",
		"read /usr/bin/env":                  "permission denied",
		"read /etc/hosts":                    "<nil>",
		"read /proc/1/cgroup":                "<nil>",
		"read /proc/1/environ":               "permission denied",
		"write " + open:                      "permission denied",
		"write /etc/x":                       "permission denied",
		"write " + filepath.Dir(open) + "/x": "permission denied",
		"dial @nomad-driver-vault-test":      "operation not permitted",
		fmt.Sprint("signal ", os.Getpid()):   "operation not permitted",
	} {
		must.StrContains(t, say(t, at, line), says, must.Sprint(line))
	}
}

func TestNobodySeesIntoTheProcess(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "a")
	pid := pidIn(t, dir)
	for _, name := range []string{"mem", "environ", "fd"} { // what is not dumpable is root's
		info, err := os.Stat(fmt.Sprintf("/proc/%d/%s", pid, name))
		must.NoError(t, err)
		must.Eq(t, 0, info.Sys().(*unixStat).Uid, must.Sprint(name))
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	must.NoError(t, err)
	must.RegexMatch(t, mustCompile(`Max core file size +0 +0`), string(limits))
	for _, name := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		must.NoError(t, err)
		must.StrNotContains(t, string(text), "secret")
		must.StrNotContains(t, string(text), dir)
	}
	must.Eq(t, "/", must1(os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))))
	session, err := unix.Getsid(pid)
	must.NoError(t, err)
	must.Eq(t, pid, session)
}

// The program that root starts by hand serves nothing.
func TestMainRefusesToBeRoot(t *testing.T) {
	out, err := runSelf(Argument, "1000000", "1000000")
	must.Error(t, err)
	must.Eq(t, "start doors process: check what the process may do: it is root: only the plugin starts this process",
		strings.TrimSpace(out))
}

func TestABadDoorIsRefusedWithItsField(t *testing.T) {
	d, dir := newDoors(t)
	_, err := d.Open(t.Context(), request1("bad", dir, &source{}))
	must.EqError(t, err, "url: there is none")
	_, err = os.Lstat(filepath.Join(dir, "bad.sock"))
	must.ErrorIs(t, err, os.ErrNotExist)
}
