package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestStatusOfTheProcess(t *testing.T) {
	d, dir := newDoors(t)
	must.Zero(t, d.Status(t.Context()).PID)
	mustOpen(t, d, dir, "a")
	s := d.Status(t.Context())
	must.Eq(t, pidIn(t, dir), s.PID)
	must.Between(t, 0, s.Age, time.Minute)
	must.Greater(t, 1<<20, s.Memory)
	must.MapLen(t, 1, s.Doors)
	must.Eq(t, 1, s.Doors["a"].Generation)
	must.StrNotContains(t, fmt.Sprintf("%+v", s), "secret-of-the-test")
}

// What was shown is never taken back, though the process that has counted it is dead.
func TestTotalsOutliveTheProcess(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "a")
	at := filepath.Join(dir, "a.sock")
	for n := range 3 {
		pid := pidIn(t, dir)
		say(t, at, "x")
		say(t, at, "y")
		must.Eq(t, int64(2*(n+1)), d.Status(t.Context()).Doors["a"].Calls)
		must.NoError(t, unix.Kill(pid, unix.SIGKILL))
		must.Eq(t, int64(2*(n+1)), d.Status(t.Context()).Doors["a"].Calls, must.Sprint("while it is dead"))
		eventually(t, "another process", func() bool { return pidIn(t, dir) != pid })
	}
}

func TestStatusDoesNotWaitForAProcessThatHangs(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "a")
	mustOpen(t, d, dir, "b")
	say(t, filepath.Join(dir, "a.sock"), "x")
	must.Eq(t, 1, d.Status(t.Context()).Doors["a"].Calls)
	pid := pidIn(t, dir)
	must.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	defer func() { must.NoError(t, unix.Kill(pid, unix.SIGCONT)) }()
	eventually(t, "it hangs", func() bool {
		return fieldsAfterName(string(must1(os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)))))[0] == "T"
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	s := d.Status(ctx)
	must.Less(t, 5*time.Second, time.Since(began))
	must.True(t, s.Silent)
	must.Eq(t, pid, s.PID)
	must.Eq(t, 1, s.Doors["a"].Calls, must.Sprint("the last answer"))
}

func TestStatusSaysWhyADoorRefuses(t *testing.T) {
	d, dir := newDoors(t)
	r := request1("a", dir, &source{})
	r.Spec.Stale = time.Hour
	o, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	refuses := func() string { return d.Status(t.Context()).Doors["a"].Refuses }
	must.Eq(t, "", refuses())
	old := credential(2)
	old.ReadAt = time.Now().Add(-2*time.Hour - time.Second/2)
	o.Use(old)
	must.Eq(t, `its credential could not be made anew for 2h0m0s, and stale = "1h0m0s"`, refuses())
	o.Use(nil)
	must.Eq(t, "it has no credential", refuses())
}

func TestStatusNamesDoorsThatNobodyClaims(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { endProcess(dir) })
	startPlugin(t, "/proc/self/exe", dir)()
	d := New(t.Context(), configIn(dir))
	defer d.Shutdown()
	must.Eq(t, []string{"a"}, d.Status(t.Context()).Unclaimed)
	r := request1("a", dir, &source{})
	r.Credential = nil
	_, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	must.SliceEmpty(t, d.Status(t.Context()).Unclaimed)
}
