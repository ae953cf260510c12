package e2e

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// A wrapped driver is still the driver that it was: what Nomad and its commands do with a task, its root and its
// network.

// shell is the jobspec of the job with a script of /bin/sh in the place of the application. Its $ must not stand before
// a {, which is Nomad's.
func shell(j job, script string) string { return program(j, "/bin/sh", "-c", script) }

// program is the jobspec of the job with a command in the place of the application.
func program(j job, command string, args ...string) string {
	j.Args = args
	return strings.Replace(j.spec(), fmt.Sprintf("command = %q", j.App()), fmt.Sprintf("command = %q", command), 1)
}

// stay, at the end of a script, keeps it until it is asked to end.
const stay = "trap 'exit 0' TERM INT; sleep 600 & wait $!; wait"

func TestAllocExec(t *testing.T) {
	each(t, "alloc-exec", func(t *testing.T, s *stack.Stack, j job) {
		put(t, s, j, map[string]any{"color": "green"})
		j.Args, j.Config = []string{"show"}, file("secrets/color.env", "COLOR="+inJob(j, "color"), quick+"env = true")
		alloc := run(t, s, j)
		must.NoError(t, alloc.Running(within(t, 2*time.Minute)))
		for name, c := range map[string]struct {
			tty            bool
			command, stdin string
			stdout, stderr string
			code           int
		}{
			"exit code": {command: "exit 7", code: 7},
			"streams":   {command: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
			"input to its end": {command: "cat; exit 3", stdin: strings.Repeat("0123456789\n", 10_000),
				stdout: strings.Repeat("0123456789\n", 10_000), code: 3},
			"the environment": {command: "echo $COLOR; cat secrets/color.env || cat /secrets/color.env",
				stdout: "green\nCOLOR=green"},
			"a terminal": {tty: true, command: "until stty size 2>/dev/null | grep -v '^0 0'; do sleep 0.1; done; exit 4",
				stdout: "24 80\r\n", code: 4},
			"its input": {tty: true, command: "read line; echo got $line; exit 5", stdin: "this\n",
				stdout: "this\r\ngot this\r\n", code: 5},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				stdout, stderr, code := execute(t, alloc, j, c.tty, c.stdin, c.command)
				must.Eq(t, c.stdout, stdout)
				must.Eq(t, c.stderr, stderr)
				must.Eq(t, c.code, code)
			})
		}
	})
}

func TestAllocSignal(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"vault-exec", "vault-docker", "vault-raw_exec"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			signalled(t, common(t), job{Name: "alloc-signal-" + driver, Driver: driver})
		})
	}
}

// signalled sends a task signals. The agent was started to ignore this one; a shell cannot trap what it inherits so.
func signalled(t *testing.T, s *stack.Stack, j job) {
	ctx := within(t, 2*time.Minute)
	_, alloc := register(t, s, shell(j, "trap 'echo hup' HUP; echo ready; while sleep 0.1; do :; done"))
	_, err := alloc.Log(ctx, j.Name, "stdout", "ready", 1)
	must.NoError(t, err)
	for n := range 2 {
		must.NoError(t, alloc.Signal(ctx, j.Name, "SIGHUP"))
		_, err = alloc.Log(ctx, j.Name, "stdout", "hup", n+1)
		must.NoError(t, err)
	}
	must.Zero(t, state(t, ctx, alloc, j).Restarts)
}

// TestNoOutputIsLostOverARestart writes more than a pipe holds, on both streams, before and after a restart that the
// driver makes: the second process would block where nobody reads on, and the first one's last words would be lost
// where the pipe is closed.
func TestNoOutputIsLostOverARestart(t *testing.T) {
	each(t, "logs", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Config = file("secrets/color.env", "COLOR="+inJob(j, "color"), onRestart+"\n env = true")
		const lines = 4000
		_, alloc := register(t, s, shell(j, fmt.Sprintf(`trap 'echo $COLOR ends; exit 0' TERM INT
			i=0; while [ $i -lt %d ]; do echo $COLOR $i a line of stdout; echo $COLOR $i a line of stderr >&2; i=$((i+1)); done
			echo $COLOR is through; sleep 600 & wait $!; wait`, lines)))
		_, err := alloc.Log(ctx, j.Name, "stdout", "green is through", 1)
		must.NoError(t, err)
		put(t, s, j, map[string]any{"color": "red"})
		_, err = alloc.Log(ctx, j.Name, "stdout", "red is through", 1)
		must.NoError(t, err)
		_, err = alloc.Event(ctx, j.Name, "restarted by "+j.Driver)
		must.NoError(t, err)
		for _, stream := range []string{"stdout", "stderr"} {
			var want strings.Builder
			for _, color := range []string{"green", "red"} {
				for i := range lines {
					fmt.Fprintf(&want, "%s %d a line of %s\n", color, i, stream)
				}
			}
			_, err := alloc.Log(ctx, j.Name, stream, fmt.Sprintf("red %d a line", lines-1), 1)
			must.NoError(t, err)
			log, err := alloc.Logs(ctx, j.Name, stream)
			must.NoError(t, err)
			must.True(t, want.String() == strings.Join(regexp.MustCompile(`(?m)^\w+ \d+ a line of `+stream+"\n").FindAllString(log, -1), ""))
			if stream == "stdout" && !j.Docker() { // Nomad's docker stops to read when the container has ended.
				must.StrContains(t, log, "green ends\n")
			}
		}
	})
}

func TestStatisticsGoOnAfterARestart(t *testing.T) {
	each(t, "stats", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Config = file("secrets/color.env", "COLOR="+inJob(j, "color"), onRestart+"\n env = true")
		_, alloc := register(t, s, shell(j, "echo $COLOR; while :; do :; done"))
		measured := func(color string) {
			t.Helper()
			_, err := alloc.Log(ctx, j.Name, "stdout", color, 1)
			must.NoError(t, err)
			began := time.Now().UnixNano()
			eventually(t, 30*time.Second, func() error {
				usage, err := s.Nomad.API.Allocations().Stats(&nomad.Allocation{ID: alloc.ID}, nil)
				if err != nil {
					return err
				}
				task := usage.Tasks[j.Name]
				if task == nil || task.Timestamp < began {
					return fmt.Errorf("no statistics since the process has started: %+v", task)
				}
				if cpu, memory := task.ResourceUsage.CpuStats, task.ResourceUsage.MemoryStats; cpu.Percent < 1 ||
					max(memory.RSS, memory.Usage) == 0 {
					return fmt.Errorf("a busy process uses nothing: %+v %+v", *cpu, *memory)
				}
				return nil
			})
		}
		measured("green")
		put(t, s, j, map[string]any{"color": "red"})
		measured("red")
	})
}

// serve is a script that serves the folder local/www on a port.
func serve(port string) string {
	return "echo serving; exec busybox httpd -f -p " + port + " -h $NOMAD_TASK_DIR/www"
}

// getsPage waits until the address serves the page with that text.
func getsPage(t *testing.T, address, text string) {
	t.Helper()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, 20*time.Second, func() error {
		resp, err := client.Get("http://" + address + "/page")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && string(body) != text {
			err = fmt.Errorf("%s: %q", resp.Status, body)
		}
		return err
	})
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	const own = `network_mode = "host"`
	for name, c := range map[string]struct {
		driver string
		group  string // network block
		swap   string // in place of network_mode = "host"
		port   string // that the task listens on
	}{
		"bridge-exec": {driver: "vault-exec", group: "mode = \"bridge\"\n port \"http\" {\n to = 8080\n }",
			port: "8080"},
		"bridge-docker": {driver: "vault-docker", group: "mode = \"bridge\"\n port \"http\" {\n to = 8080\n }",
			port: "8080"},
		"host-exec":   {driver: "vault-exec", group: "port \"http\" {}", port: "$NOMAD_PORT_http"},
		"host-docker": {driver: "vault-docker", group: "port \"http\" {}", swap: own, port: "$NOMAD_PORT_http"},
		"published-docker": {driver: "vault-docker", group: "port \"http\" {\n to = 8080\n }", swap: `ports = ["http"]`,
			port: "8080"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := common(t)
			ctx := within(t, 2*time.Minute)
			j := job{Name: "net-" + name, Driver: c.driver, Group: "network {\n" + c.group + "\n}"}
			put(t, s, j, map[string]any{"color": "green"})
			j.Config = file("local/www/page", inJob(j, "color"), onRestart)
			_, alloc := register(t, s, strings.Replace(shell(j, serve(c.port)), own, c.swap, 1))
			must.NoError(t, alloc.Running(ctx))
			placed, err := alloc.Wait(ctx, "port", func(*nomad.Allocation) bool { return true })
			must.NoError(t, err)
			published := placed.AllocatedResources.Shared.Ports[0]
			address := fmt.Sprintf("%s:%d", published.HostIP, published.Value)
			getsPage(t, address, "green")
			put(t, s, j, map[string]any{"color": "red"})
			getsPage(t, address, "red")
			_, err = alloc.Event(ctx, j.Name, "restarted by "+j.Driver)
			must.NoError(t, err)
		})
	}
}

func TestDockerVolumes(t *testing.T) {
	t.Parallel()
	s := common(t)
	ctx := within(t, 2*time.Minute)
	host := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(host, "file"), []byte("of the host"), 0o644))
	j := job{Name: "docker-volumes", Driver: "vault-docker"}
	put(t, s, j, map[string]any{"color": "green"})
	j.Config = fmt.Sprintf("volumes = [\"%s:/host:ro\", \"local/conf:/etc/app\"]\n", host) +
		file("local/conf/color", inJob(j, "color"), "")
	const script = "cat /host/file; touch /host/x || echo read-only; cat /etc/app/color; echo; "
	_, alloc := register(t, s, shell(j, script+stay))
	must.Eq(t, "of the hostread-only\ngreen\n", whole(t, ctx, alloc, j, "green"))
}

// Two docker drivers on one engine remove each other's containers: the task says so, and what to set.
func TestContainerThatSomebodyElseRemovesTellsWhoMayHaveDoneIt(t *testing.T) {
	t.Parallel()
	s := common(t)
	ctx := within(t, 2*time.Minute)
	j := job{Name: "removed", Driver: "vault-docker", Args: []string{"show", "/secrets/out"}}
	put(t, s, j, map[string]any{"color": "green"})
	j.Config = file("secrets/out", inJob(j, "color"), "")
	alloc := run(t, s, j)
	must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/out", 1)[0])
	must.NoError(t, alloc.RemoveContainer(ctx, j.Name))
	message, err := alloc.Event(ctx, j.Name, "the container was removed from outside")
	must.NoError(t, err)
	must.StrContains(t, message, `gc { dangling_containers { enabled = false } }`)
}

func TestUsers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ driver, task, want string }{
		"exec without one is nobody":   {"vault-exec", "", "65534 0 600 65534"},
		"exec by name":                 {"vault-exec", `user = "daemon"`, "1 0 600 1"},
		"docker without one is root":   {"vault-docker", "", "0 0 600 0"},
		"docker by number":             {"vault-docker", `user = "65534:65534"`, "65534 65534 600 65534"},
		"raw_exec without one is root": {"vault-raw_exec", "", "0 0 600 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := common(t)
			j := job{Name: "user-" + strings.ReplaceAll(name[:10], " ", "-"), Driver: c.driver, Task: c.task,
				Config: "vault {\n file = true\n }"}
			_, alloc := register(t, s, shell(j, `token=$NOMAD_SECRETS_DIR/vault_token
				echo $(id -u) $(id -g) $(stat -c '%a %u' $token); test -s $token && cat $token >/dev/null && echo can read it; `+stay))
			must.Eq(t, c.want+"\ncan read it\n", whole(t, within(t, 2*time.Minute), alloc, j, "can read it"))
		})
	}
}

// look tells, as a task, what the kernel lets it do and see, one thing a line. busybox is the same program in every
// root.
const look = `
	busybox grep -E '^(Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap...):' /proc/self/status
	for ns in cgroup ipc mnt net pid user uts; do echo namespace $(busybox readlink /proc/self/ns/$ns); done
	busybox cat /proc/self/cgroup /proc/self/limits /proc/self/oom_score_adj
	umask
	for f in /dev/* /dev/pts/ptmx /sys/firmware /alloc /local /secrets /tmp; do busybox stat -c '%n %F %a %u %g %t' $f; done
	echo first process $(busybox cat /proc/1/comm)
	for f in /proc/kcore /proc/sys/kernel/hostname /sys/kernel/uevent_seqnum; do
		busybox head -c1 $f >/dev/null 2>&1 && echo reads $f
		(: >>$f) 2>/dev/null && echo writes $f
	done
	for d in / /alloc /alloc/data /local /secrets /tmp /dev /dev/shm /proc /sys /bin /etc /usr /usr/bin; do
		busybox touch $d/new 2>/dev/null && echo writes in $d
	done
	(: >>/bin/busybox) 2>/dev/null && echo writes /bin/busybox
	busybox mkdir /tmp/m && busybox mount -t tmpfs none /tmp/m 2>/dev/null && echo mounts
	busybox mount -o remount,rw /etc 2>/dev/null && echo mounts again
	busybox chroot / true 2>/dev/null && echo changes its root
	busybox ls -A / | busybox sed 's/^/root has /'
	busybox find /run 2>/dev/null | busybox sed 's/^/run has /'
	busybox sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ ([^ ]+) ([^ ]+).* - ([^ ]+) .*/mount \1 \2 \3/' /proc/self/mountinfo
	busybox env | busybox sed 's/^/env /'
	echo seen`

// What may differ: the directories of the host are there, and cannot be written to; nor can what root opens in the
// task's. (The chroot of the stack's agent has /bin and /etc only. Of the agent's environment ours has what the
// operator names.)
var (
	ourOwn = regexp.MustCompile(`^(root has (lib|lib32|lib64|run|sbin|usr)|` +
		// a shell counts from what it is given
		`mount /(executor.out|alloc/logs|alloc/container) ro.*|/local directory 777 0 0 0|/alloc directory 1777 0 0 0|env SHLVL=.*|` +
		`run has /run(/systemd|/resolvconf|/resolve|/[a-z-]*resolv.conf)*|` +
		`mount /(bin|etc|lib|lib32|lib64|run|sbin|usr)[^ ]* ro[^ ]* [^ ]+)$`)
	theirOwn = regexp.MustCompile(`^(writes in /(bin|etc)|writes /bin/busybox|/(local|alloc) directory 777 65534 65534 0|env ([^N]|N[^O]|NO[^M]|NOMAD_DRIVER_VAULT_).*)$`)
)

// TestExecTaskIsAsConfinedAsNomads has the same task look around under Nomad's exec and under ours, in one allocation.
func TestExecTaskIsAsConfinedAsNomads(t *testing.T) {
	t.Parallel()
	for i, c := range []struct{ options, shows string }{
		{"", "namespace pid of its own"},
		{"ipc_mode = \"host\"", "namespace ipc of the host"},
		{"cap_drop = [\"all\"]\n cap_add = [\"kill\"]", "CapBnd:\t0000000000000020"},
	} {
		t.Run("with "+c.options, func(t *testing.T) {
			t.Parallel()
			s := common(t)
			j := job{Name: fmt.Sprintf("confined-%d", i), Driver: "vault-exec", Type: "batch", Config: c.options}
			j.Group = taskOf(program(job{Name: "theirs", Driver: "exec", Config: c.options}, "/bin/busybox", "sh", "-c", look))
			_, alloc := register(t, s, program(j, "/bin/busybox", "sh", "-c", look))
			ours, theirs := seen(t, alloc, j, j.Name), seen(t, alloc, j, "theirs")
			must.Eq(t, "", strings.Join(except(ours, theirs, ourOwn), "\n"))
			must.Eq(t, "", strings.Join(except(theirs, ours, theirOwn), "\n"))
			must.SliceContains(t, ours, c.shows)
			must.SliceContainsSubset(t, ours, []string{"writes in /alloc/data", "writes in /local", "writes in /secrets",
				"root has usr"})
		})
	}
}

// seen returns what the task has seen, without what differs between any two tasks.
func seen(t *testing.T, alloc *stack.Alloc, j job, task string) []string {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	_, err := alloc.Log(ctx, task, "stdout", "(?m)^seen$", 1)
	must.NoError(t, err)
	log, err := alloc.Logs(ctx, task, "stdout")
	must.NoError(t, err)
	log = strings.NewReplacer(j.Name, "TASK", "theirs", "TASK").Replace(log)
	log = regexp.MustCompile(`namespace (\w+):.*`).ReplaceAllStringFunc(log, func(line string) string {
		kind, _, _ := strings.Cut(strings.TrimPrefix(line, "namespace "), ":")
		if of, err := os.Readlink("/proc/self/ns/" + kind); err == nil && strings.HasSuffix(line, " "+of) {
			return "namespace " + kind + " of the host"
		}
		return "namespace " + kind + " of its own"
	})
	return strings.Split(strings.TrimSpace(log), "\n")
}

// except returns the lines that are not among others and do not match allowed.
func except(lines, others []string, allowed *regexp.Regexp) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return slices.Contains(others, line) ||
			allowed.MatchString(line)
	})
}

// taskOf is the task block of a jobspec of ours.
func taskOf(spec string) string {
	return regexp.MustCompile(`(?s)task ".*\n    }\n`).FindString(spec)
}

// TestTasksOfAGroup: each task, the sidecar too, has a token and credentials of its own, and keeps them when all are
// started again.
func TestTasksOfAGroup(t *testing.T) {
	t.Parallel()
	s := common(t)
	ctx := within(t, 2*time.Minute)
	main := withDatabase(t, s, job{Name: "group-main", Driver: "vault-exec", Args: []string{"db", "secrets/db.env"}},
		time.Hour, "", "")
	docker, sidecar := main, main
	docker.Name, docker.Driver = "group-docker", "vault-docker"
	sidecar.Name = "group-sidecar"
	sidecar.Task += "lifecycle {\n hook = \"prestart\"\n sidecar = true\n }"
	main.Group = taskOf(docker.spec()) + taskOf(sidecar.spec())
	registered, alloc := register(t, s, main.spec())
	must.NoError(t, alloc.Running(ctx))

	names := map[string]bool{}
	tasks := []job{main, docker, sidecar}
	for _, task := range tasks {
		names[users(t, ctx, alloc, task, 1)[0]] = true
	}
	must.MapLen(t, 3, names)
	must.NoError(t, alloc.Restart(ctx, ""))
	for _, task := range tasks {
		connected := users(t, ctx, alloc, task, 2)
		must.Eq(t, connected[0], connected[1])
	}
	must.Len(t, 3, rendered(t, alloc))
	must.Len(t, 3, tokensOf(t, s, registered.ID))
	must.NoError(t, registered.Stop(ctx))
	eventually(t, 20*time.Second, func() error { return unrevoked(t, ctx, s, main.Name) })
	must.NoError(t, gone(ctx, s, slices.Collect(maps.Keys(names))...))
}

// TestTwentyAllocationsAtOnce: as many credentials as allocations, no more, and none when they have ended.
func TestTwentyAllocationsAtOnce(t *testing.T) {
	each(t, "twenty", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 3*time.Minute)
		const count = 20
		j.Group, j.Args = fmt.Sprintf("count = %d", count), []string{"db", "secrets/db.env"}
		j = withDatabase(t, s, j, time.Hour, "", "")
		registered, _ := register(t, s, j.spec())
		allocs, err := registered.Allocs(ctx)
		must.NoError(t, err)
		must.Len(t, count, allocs)
		names := map[string]bool{}
		for _, alloc := range allocs {
			names[users(t, ctx, alloc, j, 1)[0]] = true
		}
		must.MapLen(t, count, names)
		must.Len(t, count, tokensOf(t, s, j.Name))
		leases, err := s.Vault.Leases(ctx, j.Name)
		must.NoError(t, err)
		must.Len(t, count, leases)
		must.NoError(t, registered.Stop(ctx))
		eventually(t, time.Minute, func() error { return unrevoked(t, ctx, s, j.Name) })
		must.NoError(t, gone(ctx, s, slices.Collect(maps.Keys(names))...))
	})
}

// TestJobsWithoutOurBlocksRunAsBefore: the same output, of which none is ours, the same result, and no word with Vault.
func TestJobsWithoutOurBlocksRunAsBefore(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"exec", "docker", "raw_exec"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := common(t)
			ran := func(driver string) (stdout []string, stderr, result string) {
				ctx := within(t, 2*time.Minute)
				j := job{Name: "plain-" + strings.ReplaceAll(driver, "_", "-"), Driver: driver, Type: "batch"}
				// Nomad's docker may lose the last words of a container that ends at once: this one is asked to end.
				const script = `env; ls -A $NOMAD_SECRETS_DIR $NOMAD_TASK_DIR $NOMAD_ALLOC_DIR
					trap 'exit 3' USR1; echo said >&2; echo through; while :; do sleep 0.1; done`
				registered, alloc := register(t, s, regexp.MustCompile(`(?s)identity {.*?}`).ReplaceAllString(program(j,
					"/bin/busybox", "sh", "-c", script), ""))
				_, err := alloc.Log(ctx, j.Name, "stderr", "said", 1)
				must.NoError(t, err)
				out := whole(t, ctx, alloc, j, "through")
				must.SliceEmpty(t, tokensOf(t, s, registered.ID))
				must.NoError(t, alloc.Signal(ctx, j.Name, "SIGUSR1"))
				stderr, err = alloc.Logs(ctx, j.Name, "stderr")
				must.NoError(t, err)
				result, err = alloc.Event(ctx, j.Name, "Exit Code")
				must.NoError(t, err)
				out = strings.NewReplacer(j.Name, "TASK", alloc.ID, "ALLOC", alloc.ID[:8], "SHORT").Replace(out)
				return strings.Split(out, "\n"), stderr, result
			}
			theirs, said, result := ran(driver)
			must.Eq(t, "said\n", said)
			ours, saidToo, resultToo := ran("vault-" + driver)
			more, less := regexp.MustCompile(`^(PLUGIN_.*|SHLVL=.*|container)$`), regexp.MustCompile(`^PLUGIN_`)
			if driver == "exec" { // ours has what the operator names of the agent's environment
				less = regexp.MustCompile(`^([^N]|N[^O]|NO[^M]|NOMAD_DRIVER_VAULT_).*=`)
			}
			must.Eq(t, "", strings.Join(except(ours, theirs, more), "\n"))
			must.Eq(t, "", strings.Join(except(theirs, ours, less), "\n"))
			must.Eq(t, said, saidToo)
			must.Eq(t, result, resultToo)
		})
	}
}

// TestKillSignalAndTimeout: the driver never sees the task's own, so it has its options for a restart of its own
// making.
func TestKillSignalAndTimeout(t *testing.T) {
	each(t, "kill", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Config = "kill_signal = \"SIGUSR1\"\n kill_timeout = \"8s\"\n" + file("secrets/color", inJob(j, "color"), onRestart)
		_, alloc := register(t, s, shell(j, `trap 'echo asked at $(cut -d " " -f 1 /proc/uptime)' USR1; trap 'echo wrong signal' INT TERM
			echo started at $(cut -d " " -f 1 /proc/uptime); while :; do sleep 0.1; done`))
		_, err := alloc.Log(ctx, j.Name, "stdout", "started at", 1)
		must.NoError(t, err)
		put(t, s, j, map[string]any{"color": "red"})
		_, err = alloc.Log(ctx, j.Name, "stdout", "started at", 2)
		must.NoError(t, err)
		log, err := alloc.Logs(ctx, j.Name, "stdout")
		must.NoError(t, err)
		// Whom docker stops in the end gets a SIGTERM first.
		times := regexp.MustCompile(`^started at .*\nasked at (.*)\n(?:wrong signal\n)?started at (.*)\n$`).FindStringSubmatch(log)
		must.Len(t, 3, times, must.Sprint(log))
		asked, err := strconv.ParseFloat(times[1], 64)
		must.NoError(t, err)
		again, err := strconv.ParseFloat(times[2], 64)
		must.NoError(t, err)
		must.GreaterEq(t, 7.5, again-asked, must.Sprint("seconds; kill_timeout is 8s, and would be 5s"))
	})
}

// TestJobStopDoesNotWaitForARestart: the kill_timeout for a restart has no bound, and Nomad's own stop has the task's.
func TestJobStopDoesNotWaitForARestart(t *testing.T) {
	each(t, "halting", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Config = "kill_timeout = \"10m\"\n" + file("secrets/color", inJob(j, "color"), onRestart)
		j.Task = `kill_timeout = "1s"`
		_, alloc := register(t, s, shell(j, `trap 'echo asked' INT TERM; trap 'echo told' USR1; echo started; while :; do sleep 0.1; done`))
		_, err := alloc.Log(ctx, j.Name, "stdout", "started", 1)
		must.NoError(t, err)
		put(t, s, j, map[string]any{"color": "red"})
		_, err = alloc.Log(ctx, j.Name, "stdout", "asked", 1)
		must.NoError(t, err)
		must.NoError(t, alloc.Signal(ctx, j.Name, "SIGUSR1"))
		_, err = alloc.Log(ctx, j.Name, "stdout", "told", 1)
		must.NoError(t, err)
		began := time.Now()
		ended := stop(t, ctx, s, alloc, j)
		must.Less(t, time.Second+stretched(slack), ended.Sub(began))
		log, err := alloc.Logs(ctx, j.Name, "stdout")
		must.NoError(t, err)
		must.One(t, strings.Count(log, "started"), must.Sprint(log))
		eventually(t, 2*slack, func() error { return leftBehind(t, s, j.Name, alloc) })
	})
}

// TestWhatTheOperatorReads: a line of the task's log for each step, one event for each change, and never a value.
func TestWhatTheOperatorReads(t *testing.T) {
	each(t, "story", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": canary + "-1"})
		j.Args, j.Config = []string{"show", "secrets/color"}, file("secrets/color", inJob(j, "color"), onSignal)
		alloc := run(t, s, j)
		must.Eq(t, canary+"-1", shown(t, ctx, alloc, j, "secrets/color", 1)[0])
		for n := 2; n <= 3; n++ {
			put(t, s, j, map[string]any{"color": fmt.Sprint(canary, "-", n)})
			must.Eq(t, fmt.Sprint(canary, "-", n), shown(t, ctx, alloc, j, "secrets/color", n)[n-1])
		}
		accessor := tokensOf(t, s, j.Name)[0]
		ready := fmt.Sprintf(`templates rendered: 1, vault "default" token %s with policies [default nomad-workloads]`,
			accessor)
		_, err := alloc.Event(ctx, j.Name, "Secrets ready: "+ready)
		must.NoError(t, err)
		const changed = "secrets/color; sent SIGHUP"
		eventually(t, slack, func() error {
			if got := changes(t, ctx, alloc, j); !slices.Equal(got, []string{"Secrets changed: " + changed,
				"Secrets changed: " + changed}) {
				return fmt.Errorf("events: %q", got)
			}
			return nil
		})
		stderr, err := alloc.Logs(ctx, j.Name, "stderr")
		must.NoError(t, err)
		must.RegexMatch(t, regexp.MustCompile(fmt.Sprintf(`^\[%s\] \S+Z secrets ready after \d+m?s: %s
\[%[1]s\] \S+Z secrets/color changed; sent SIGHUP
\[%[1]s\] \S+Z secrets/color changed; sent SIGHUP
$`, j.Driver, regexp.QuoteMeta(ready))), stderr)
		for _, e := range state(t, ctx, alloc, j).Events {
			must.StrNotContains(t, e.DisplayMessage, canary)
		}
	})
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	s := common(t)
	nodes, _, err := s.Nomad.API.Nodes().List(nil)
	must.NoError(t, err)
	node, _, err := s.Nomad.API.Nodes().Info(nodes[0].ID, nil)
	must.NoError(t, err)
	for _, wraps := range []string{"exec", "docker", "raw_exec"} {
		ours := "driver.vault-" + wraps
		must.Eq(t, "1", node.Attributes[ours])
		must.Eq(t, wraps, node.Attributes[ours+".wraps"])
		must.Eq(t, "default", node.Attributes[ours+".clusters"])
		must.RegexMatch(t, regexp.MustCompile(`^\d+\.\d+\.\d+$`), node.Attributes[ours+".plugin_version"])
		must.Eq(t, node.Drivers[wraps].HealthDescription, node.Drivers["vault-"+wraps].HealthDescription)
		for name, value := range node.Attributes { // What the wrapped driver tells is there too, under our name.
			if fact, ok := strings.CutPrefix(name, "driver."+wraps+"."); ok {
				must.Eq(t, value, node.Attributes[ours+"."+fact], must.Sprint(fact))
			}
		}
	}
	must.Eq(t, "bind", node.Attributes["driver.vault-exec.filesystem"])
}
