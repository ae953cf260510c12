package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/vault/vaulttest"
	"nomad-driver-vault/internal/need"
)

// locked has another process hold the state directory for that long after the next boot.
func (h *host) locked(d time.Duration) {
	h.crash()
	other, err := state.Open(h.config.StateDir, h.logger)
	must.NoError(h, err)
	time.AfterFunc(d, other.Close)
}

func TestStateDirThatIsStillLockedIsWaitedFor(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		process, token := r.process(), only(t, h.Tokens())
		h.locked(2 * time.Second)
		began := time.Now()
		h.boot()
		must.Between(t, 2*time.Second, time.Since(began), 2200*time.Millisecond)
		r.recovered()
		after(time.Hour)
		must.Zero(t, h.logged("sessions will not survive"))
		must.True(t, process == r.process())
		must.Eq(t, token, only(t, h.Tokens()))
		must.Eq(t, 1, h.Logins())
	})
}

// One that is locked for longer is taken over later: what is there then is revoked or adopted, and what runs meanwhile
// is saved.
func TestStateDirThatIsLockedForLongIsTakenOverLate(t *testing.T) {
	bubble(t, func(h *host) {
		parked := h.crowd(2, whole)
		h.startAll(parked[:1]) // waits for its next run
		r := h.start(whole)    // runs on
		first := h.file("secrets/vault_token")
		must.NoError(t, h.StopTask(parked[0].ID, 0, ""))
		after(time.Second)
		h.locked(10 * time.Minute)
		h.boot()
		must.Eq(t, 1, h.logged("sessions will not survive a restart of this plugin until this is mended"))
		r.recovered()
		h.startAll(parked[1:]) // ends while there is no state directory
		must.NoError(t, h.StopTask(parked[1].ID, 0, ""))
		after(5 * time.Minute)
		process, second := r.process(), h.file("secrets/vault_token")
		must.NotEq(t, first, second, must.Sprint("it could not be adopted"))
		must.Len(t, 3, h.Tokens())

		after(5*time.Minute + 2*unclaimedAfter)
		must.Eq(t, 1, h.logged("sessions survive a restart of this plugin again"))
		must.Eq(t, second, only(t, h.Tokens()))
		must.True(t, process == r.process())
		must.Eq(t, []string{state.FileOf("alloc-1/web")}, h.records())

		h.reboot()
		r.recovered()
		after(time.Hour)
		must.True(t, process == r.process())
		must.Eq(t, second, only(t, h.Tokens()))
		r.stop()
		after(olderLinger)
		must.SliceEmpty(t, h.records())
		must.SliceEmpty(t, h.Tokens())
	})
}

// What waits for its next run, or to be revoked, when the directory is there at last is saved too.
func TestWhatIsLeftIsSavedWhenTheStateDirIsThere(t *testing.T) {
	bubble(t, func(h *host) {
		h.config.Linger = time.Hour
		h.locked(10 * time.Minute)
		h.boot()
		all := h.crowd(2, asApp+templateHCL("secrets/db", creds, ""))
		h.startAll(all)
		h.Down(true)
		must.NoError(t, h.StopTask(all[0].ID, 0, ""))
		for _, p := range h.machine.running() {
			h.machine.exit(p.pid, &drivers.ExitResult{ExitCode: 1})
		}
		after(12 * time.Minute)
		names := sorted(h.records())
		must.Len(t, 2, names)
		must.StrHasPrefix(t, "crowd-0.web.", names[0])
		must.StrHasSuffix(t, ".revoke", names[0])
		must.Eq(t, state.FileOf("crowd-1/web"), names[1])
		h.crash()
		h.Down(false)
		h.boot()
		after(unclaimedAfter)
		must.SliceEmpty(t, h.Tokens())
		must.SliceEmpty(t, h.Users())
		must.SliceEmpty(t, h.records())
	})
}

func TestStateThatCouldNotBeSavedIsSavedLater(t *testing.T) {
	need.Root(t)
	bubble(t, func(h *host) {
		h.crash()
		must.NoError(t, unix.Mount("test", h.config.StateDir, "tmpfs", 0, "size=64k"))
		h.Cleanup(func() { must.NoError(h, unix.Unmount(h.config.StateDir, unix.MNT_DETACH)) })
		filler := filepath.Join(h.config.StateDir, "filler")
		must.NoError(t, os.WriteFile(filler, make([]byte, 64<<10), 0o600))
		h.boot()
		r := h.start(whole)
		token := only(t, h.Tokens())
		after(10 * time.Minute)
		must.Eq(t, 1, h.logged("state is not saved"))
		must.NoError(t, os.Remove(filler))
		after(time.Minute)
		must.Eq(t, 1, h.logged("state is saved again"))
		h.reboot()
		r.recovered()
		after(time.Hour)
		must.Eq(t, token, only(t, h.Tokens()))
		must.Eq(t, 1, h.Logins())
		h.kill()
		after(time.Second)
	})
}

// One task does not take the place of the others' records.
func TestRecordOfATaskIsBounded(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	for sentence, c := range map[string]struct {
		config string
		fits   bool
	}{
		"many outputs that are rendered once": {templateHCL("local/0", kv+big, "once = true") +
			templateHCL("local/1", kv+big, "once = true"), false},
		"outputs that are rendered again": {templateHCL("local/0", kv+big, "") + templateHCL("local/1", kv+big, ""),
			true},
		"what is read of Vault": {templateHCL("local/0",
			`{{ with secret "secret/data/big" }}{{ len .Data.data.k }}{{ end }}`, ""), false},
	} {
		t.Run(sentence, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				h.Put("secret/big", map[string]any{"k": big + big})
				if c.fits {
					h.start(asApp + c.config)
					return
				}
				err := h.refused(asApp + c.config)
				must.ErrorContains(t, err, "what must be kept of the task for the plugin's next process takes ")
				must.ErrorContains(t, err, fmt.Sprintf("%d KiB is the most: make what its blocks", state.MaxRecord>>10))
			})
		})
	}
}

// A record that grows too large while the task runs costs that task its adoption, and nobody else anything.
func TestRecordThatGrowsTooLargeIsNotSaved(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + templateHCL("local/color", kv, onNoop))
		h.write(strings.Repeat("x", 2<<20))
		after(noticed)
		must.Eq(t, 1, h.logged("state is not saved"))
		h.write("blue")
		after(noticed)
		must.Eq(t, 1, h.logged("state is saved again"))
		must.Eq(t, "blue", h.file("local/color"))
		must.True(t, r.alive())
	})
}

// A task that gets another token each hour and does not want to be told of it is the one whose record could grow.
func TestRecordStaysSmallFor30Days(t *testing.T) {
	const most = 16 << 10
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: time.Hour, Fixed: true})
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
		h.write("green")
		r := h.start(asApp + templateHCL("secrets/db", creds, onNoop) + templateHCL("local/color", kv,
			onNoop+"\n poll_interval = \"1h\""))
		size := func() int64 {
			info, err := os.Stat(filepath.Join(h.config.StateDir, state.FileOf("alloc-1/web")))
			must.NoError(t, err)
			return info.Size()
		}
		for day := range 30 {
			after(24 * time.Hour)
			must.Less(t, most, size(), must.Sprintf("on day %d", day+1))
		}
		must.Greater(t, 700, h.Logins(), must.Sprint("another token each hour"))
		t.Logf("after 30 days: %d bytes, %d logins", size(), h.Logins())
		data, err := os.ReadFile(filepath.Join(h.config.StateDir, state.FileOf("alloc-1/web")))
		must.NoError(t, err)
		saved, err := state.DecodeRecord(state.FileOf("alloc-1/web"), data)
		must.NoError(t, err)
		var used, free unix.Statfs_t
		must.NoError(t, unix.Statfs(h.config.StateDir, &free))
		for i := range 1000 {
			saved.Key = fmt.Sprintf("alloc-%d/many", i)
			must.NoError(t, h.store.Save(saved))
		}
		must.NoError(t, unix.Statfs(h.config.StateDir, &used))
		must.Less(t, 1000*most, int64(free.Bfree-used.Bfree)*free.Bsize, must.Sprint("a thousand of them"))
		r.stop()
		after(olderLinger)
		must.SliceEmpty(t, h.Tokens())
	})
}

// Without a state directory tasks run, and what is lost is told in one line.
func TestTasksRunWithoutAStateDir(t *testing.T) {
	for how, test := range map[string]struct {
		lose func(h *host) // before the plugin starts
		take func(h *host) // while a task runs
		says string
	}{
		"in use":  {lose: func(h *host) { h.otherAgent() }, says: "sessions will not survive a restart of this plugin"},
		"removed": {take: func(h *host) { must.NoError(h, os.RemoveAll(h.config.StateDir)) }, says: "state is not saved"},
		"full": {lose: func(h *host) {
			need.Root(h.T)
			must.NoError(h, unix.Mount("test", h.config.StateDir, "tmpfs", 0, "size=4k"))
			h.Cleanup(func() { must.NoError(h, unix.Unmount(h.config.StateDir, 0)) })
			must.NoError(h, os.WriteFile(filepath.Join(h.config.StateDir, "filler"), make([]byte, 4096), 0o600))
		}, says: "state is not saved"},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.crash()
				if test.lose != nil {
					test.lose(h)
				}
				h.boot()
				h.write("green")
				r := h.start(whole + templateHCL("local/color", kv, onSignal))
				if test.take != nil {
					test.take(h)
				}
				for _, color := range []string{"blue", "red"} {
					h.write(color)
					after(noticed)
					must.Eq(t, []string{"signal SIGHUP"}, r.did())
				}
				must.Eq(t, 1, h.logged(test.says))
				h.kill()
				after(time.Second)
			})
		})
	}
}

// otherAgent has another agent of this host use the state directory.
func (h *host) otherAgent() {
	other, err := state.Open(h.config.StateDir, hclog.NewNullLogger())
	must.NoError(h, err)
	h.Cleanup(other.Close)
}
