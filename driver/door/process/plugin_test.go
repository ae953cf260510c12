package process

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// pluginOfTest is a plugin in a process of its own, which can be killed. It opens the door a and says how.
func pluginOfTest(dir string) {
	d := New(context.Background(), configIn(dir))
	s := &source{}
	r := request1("a", dir, s)
	if len(os.Args) > 1 && os.Args[1] == "claim" {
		r.Credential = nil
	}
	o, err := d.Open(context.Background(), r)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s.mu.Lock()
	s.door = o
	s.mu.Unlock()
	for { // until the next one would find it
		if _, err := os.Stat(filepath.Join(dir, pidFile)); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("open with generation", o.Generation())
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// startPlugin starts a plugin of a directory, of this program or of a copy of it.
func startPlugin(t *testing.T, program, dir string, args ...string) (kill func()) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "PLUGIN_OF_TEST="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must.NoError(t, err)
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		in.Close()
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	must.NoError(t, err)
	must.Eq(t, "open with generation 1\n", line)
	return kill
}

func dialDoor(t *testing.T, socket string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	must.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCallsSurviveThePluginsDeath(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	at := filepath.Join(dir, "a.sock")
	kill := startPlugin(t, "/proc/self/exe", dir)
	pid := pidIn(t, dir)
	c := dialDoor(t, at)
	must.Eq(t, "1 before", must1(exchange(c, "before")))
	for range 3 {
		kill()
		must.Eq(t, "1 while away", must1(exchange(c, "while away")))
		must.Eq(t, "1 new", say(t, at, "new"))
		must.StrNotContains(t, must1(exchange(c, "reread")), "<nil>") // nobody answers, and nobody waits
		must1(exchange(c, "unused 0"))                                // is told to the next
		kill = startPlugin(t, "/proc/self/exe", dir, "claim")
		must.Eq(t, pid, pidIn(t, dir))
		must.Eq(t, "1 after", must1(exchange(c, "after")))
	}
	must.Eq(t, "<nil> 2", must1(exchange(c, "reread"))) // by the plugin that has come back
}

func TestADoorIsHandedToTheNextPlugin(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	at := filepath.Join(dir, "a.sock")
	kill := startPlugin(t, "/proc/self/exe", dir)
	pid := pidIn(t, dir)
	kill()
	say(t, at, "unused 0")
	c := configIn(dir)
	d := New(t.Context(), c)
	defer d.Shutdown()
	s := &source{}
	r := request1("a", dir, s)
	r.Credential = nil
	o, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	must.Eq(t, 1, o.Generation())
	eventually(t, "told", func() bool { return s.told() >= 1 })
	// Now both hold the listener: the process dies, and the door is there again with what it had.
	must.NoError(t, unix.Kill(pid, unix.SIGKILL))
	must.Eq(t, "1 x", say(t, at, "x"))
}

// TestConnectsAreRefusedOnlyWhileBothAreDead: nobody is left who holds the listener, and the next plugin makes another.
func TestConnectsAreRefusedOnlyWhileBothAreDead(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	at := filepath.Join(dir, "a.sock")
	kill := startPlugin(t, "/proc/self/exe", dir)
	pid := pidIn(t, dir)
	kill()
	must.NoError(t, unix.Kill(pid, unix.SIGKILL))
	eventually(t, "the process has ended", func() bool { return ended(pid) })
	_, err := net.Dial("unix", at)
	must.ErrorIs(t, err, unix.ECONNREFUSED)
	startPlugin(t, "/proc/self/exe", dir)
	must.Eq(t, "1 x", say(t, at, "x"))
}

// TestConnectsWaitForTheFirstCredential: a plugin that opens a door anew for a task that runs must read it first.
func TestConnectsWaitForTheFirstCredential(t *testing.T) {
	d, dir := newDoors(t)
	r := request1("a", dir, &source{})
	r.Credential = nil
	o, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	answer := make(chan string)
	go func() { answer <- must1(trySay(filepath.Join(dir, "a.sock"), "x")) }()
	select {
	case early := <-answer:
		t.Fatal("answered without a credential: ", early)
	case <-time.After(readyWithin / 10):
	}
	o.Use(credential(7))
	must.Eq(t, "7 x", <-answer)
}

func TestADoorOfAnotherSpecIsOpenedAnew(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	startPlugin(t, "/proc/self/exe", dir)()
	d := New(t.Context(), configIn(dir))
	defer d.Shutdown()
	r := request1("a", dir, &source{})
	r.Spec.MaxConns, r.Credential = 7, credential(5)
	_, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	must.Eq(t, "5 x", say(t, filepath.Join(dir, "a.sock"), "x"))
}

func TestDoorsThatNobodyClaimsAreClosed(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	startPlugin(t, "/proc/self/exe", dir)()
	c := configIn(dir)
	c.Claim = 0
	d := New(t.Context(), c)
	defer d.Shutdown()
	d.closeUnclaimed(time.Now())
	eventually(t, "closed", func() bool {
		_, err := net.Dial("unix", filepath.Join(dir, "a.sock"))
		return err != nil
	})
}

// Another build of the program takes over without a refused connect; the calls in flight end in the old process, which
// ends with them.
func TestAnUpgradeKeepsCallsAndConnects(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	at := filepath.Join(dir, "a.sock")
	kill := startPlugin(t, "/proc/self/exe", dir)
	old := pidIn(t, dir)
	c := dialDoor(t, at)
	must.Eq(t, "1 before", must1(exchange(c, "before")))
	kill()

	stop, refused := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				refused <- nil
				return
			default:
			}
			if _, err := trySay(at, "x"); err != nil {
				refused <- err
				return
			}
		}
	}()
	newer := filepath.Join(t.TempDir(), "newer")
	must.NoError(t, exec.Command("cp", must1(os.Executable()), newer).Run())
	startPlugin(t, newer, dir, "claim")
	must.NotEq(t, old, pidIn(t, dir))
	for range 20 { // the old process does not end while it has a call
		must.Eq(t, "1 after", must1(exchange(c, "after")))
		must.Eq(t, "1 y", say(t, at, "y"))
		must.False(t, ended(old))
		<-time.After(5 * time.Millisecond)
	}
	close(stop)
	must.NoError(t, <-refused)
	must.StrContains(t, must1(os.Readlink(fmt.Sprintf("/proc/%d/exe", pidIn(t, dir)))), "newer")
	c.Close()
	eventually(t, "the old process ends", func() bool { return ended(old) })
	must.Eq(t, "1 x", say(t, at, "x"))
}

// ended reports whether a process has: it may be a zombie of this test.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(fieldsAfterName(string(text))[0], "Z")
}

func TestNothingIsLeftAfterTheLastDoorWithoutAPlugin(t *testing.T) {
	d, dir := newDoors(t)
	o, _ := mustOpen(t, d, dir, "a")
	pid := pidIn(t, dir)
	fds := len(must1(os.ReadDir("/proc/self/fd")))
	o2, _ := mustOpen(t, d, dir, "b")
	o2.Close(t.Context())
	must.Eq(t, fds, len(must1(os.ReadDir("/proc/self/fd"))))
	o.Close(t.Context())
	d.Shutdown()
	eventually(t, "the process ends", func() bool { return ended(pid) })
}

func TestShutdownLeavesTheDoors(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "a")
	pidIn(t, dir)
	d.Shutdown()
	must.Eq(t, "1 x", say(t, filepath.Join(dir, "a.sock"), "x"))
}
