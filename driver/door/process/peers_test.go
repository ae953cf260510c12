package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

func TestCgroupsMatchWholeNames(t *testing.T) {
	v1 := "3:cpuset:/nomad/a.task\n2:freezer:/nomad/b\n0::/\n"
	for name, c := range map[string]struct {
		text    string
		allowed []string
		in      bool
	}{
		"the same":       {"0::/nomad/a.task\n", []string{"/nomad/a.task"}, true},
		"below it":       {"0::/nomad/a.task/init\n", []string{"/x", "/nomad/a.task"}, true},
		"its parent":     {"0::/nomad\n", []string{"/nomad/a.task"}, false},
		"a longer name":  {"0::/nomad/a.task2\n", []string{"/nomad/a.task"}, false},
		"one of v1":      {v1, []string{"/nomad/a.task"}, true},
		"none of v1":     {v1, []string{"/nomad/c"}, false},
		"with a colon":   {"0::/a:b\n", []string{"/a:b"}, true},
		"outside":        {"0::/../nomad/a.task\n", []string{"/nomad/a.task"}, false},
		"removed":        {"0::/nomad/a.task (deleted)\n", []string{"/nomad/a.task"}, false},
		"no line at all": {"", []string{"/nomad/a.task"}, false},
		"half a line":    {"0:/nomad/a.task", []string{"/nomad/a.task"}, false},
	} {
		err := matchCgroups([]byte(c.text), c.allowed)
		must.Eq(t, c.in, err == nil, must.Sprint(name))
	}
}

// cgroupOf makes a cgroup for the test, and returns its directory and how /proc names it.
func cgroupOf(t *testing.T, name string) (dir, path string) {
	t.Helper()
	path = fmt.Sprintf("/door-test-%d-%s", os.Getpid(), name)
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err == nil {
			dir = root + path
			must.NoError(t, os.Mkdir(dir, 0o755))
			t.Cleanup(func() { must.NoError(t, os.Remove(dir)) })
			return dir, path
		}
	}
	t.Fatal("no cgroups here")
	return "", ""
}

// askFrom asks a door from a process in a cgroup.
func askFrom(t *testing.T, cgroup, socket string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$1" -test.run=^TestClient$`, cgroup, "/proc/self/exe")
	cmd.Args[len(cmd.Args)-1] = must1(os.Executable())
	cmd.Env = append(os.Environ(), "DOOR_SOCKET="+socket)
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// TestClient is the task of the test below.
func TestClient(*testing.T) {
	if socket := os.Getenv("DOOR_SOCKET"); socket != "" {
		answer, err := trySay(socket, "x")
		fmt.Printf("answer %q error %v\n", answer, err != nil)
	}
}

func TestOnlyItsTaskMayUseADoor(t *testing.T) {
	dir, path := cgroupOf(t, "task")
	other, _ := cgroupOf(t, "other")
	records := t.TempDir()
	d, at := newDoors(t, func(c *Config) { c.Record = &RecordFile{Dir: records, Name: "doors", Keep: 1} })
	r := request1("a", at, &source{})
	r.Spec.Peers = door.Peers{Cgroups: []string{path}}
	_, err := d.Open(t.Context(), r)
	must.NoError(t, err)
	socket := filepath.Join(at, "a.sock")
	must.StrContains(t, askFrom(t, dir, socket), `answer "1 x" error false`)
	must.StrContains(t, askFrom(t, other, socket), `answer "" error true`)
	_, err = trySay(socket, "x") // this test's own process
	must.Error(t, err)
	counters := d.Status(t.Context()).Doors["a"]
	must.Eq(t, 2, counters.Refused)
	must.Eq(t, 1, counters.Calls)
	eventually(t, "recorded", func() bool {
		text := string(must1(os.ReadFile(filepath.Join(records, "doors.jsonl"))))
		return strings.Count(text, `"refused":"the process is not in the task's cgroup"`) == 2 &&
			strings.Contains(text, fmt.Sprintf(`"pid":%d,"uid":0`, os.Getpid()))
	})
}
