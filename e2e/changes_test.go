package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What happens to a task when its secrets change: one action for all changes, the right one, and none where nothing
// changed.

// byScript is how a template block goes on that has a change_script, of a shell.
func byScript(script, more string) string {
	return quick + fmt.Sprintf("change_mode = \"script\"\n change_script {\n command = \"/bin/sh\"\n args = [\"-c\", "+
		"%q]\n %s\n }", script, more)
}

// changed waits until the task has n events of changed secrets, and returns their messages.
func changed(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, n int) []string {
	t.Helper()
	var messages []string
	eventually(t, time.Until(deadline(ctx)), func() error {
		if messages = changes(t, ctx, alloc, j); len(messages) < n {
			return fmt.Errorf("%d events of changed secrets, not yet %d", len(messages), n)
		}
		return nil
	})
	return messages
}

func deadline(ctx context.Context) time.Time {
	at, _ := ctx.Deadline()
	return at
}

// inTask returns the content of a file as the task's application sees it.
func inTask(t *testing.T, alloc *stack.Alloc, name string) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", application(t, alloc), name))
	must.NoError(t, err)
	return string(content)
}

func TestChangesAtOnceAreOneRestart(t *testing.T) {
	each(t, "three", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"a": "1", "b": "1", "c": "1"})
		j.Args = []string{"show", "/secrets/a", "/secrets/b", "/secrets/c"}
		j.Config = file("secrets/a", inJob(j, "a"), onRestart) + file("secrets/b", inJob(j, "b"), onSignal) +
			file("secrets/c", inJob(j, "c"), byScript("echo ran >> /local/ran", ""))
		alloc := run(t, s, j)
		must.Eq(t, "1", shown(t, ctx, alloc, j, "/secrets/c", 1)[0])
		// The second round shows that the first is over, with all that could have come of it.
		for i, value := range []string{"2", "3"} {
			put(t, s, j, map[string]any{"a": value, "b": value, "c": value})
			must.Eq(t, value, shown(t, ctx, alloc, j, "/secrets/c", i+2)[i+1])
			messages := changed(t, ctx, alloc, j, i+1)
			must.SliceLen(t, i+1, messages)
			must.StrContains(t, messages[i], "secrets/a, secrets/b, secrets/c; restarted")
		}
		const once = "started show\n/secrets/a: \"%[1]d\"\n/secrets/b: \"%[1]d\"\n/secrets/c: \"%[1]d\"\n"
		log := whole(t, ctx, alloc, j, `/secrets/c: "3"`)
		must.Eq(t, fmt.Sprintf(once, 1)+"signal terminated\n"+fmt.Sprintf(once, 2)+"signal terminated\n"+fmt.Sprintf(once, 3),
			strings.ReplaceAll(log, "signal interrupt", "signal terminated"))
		must.FileNotExists(t, alloc.Path(j.Name, "local/ran"))
		unnoticed(t, ctx, alloc, j)
	})
}

func TestScriptAndSignalAtOnceHappenOnceEach(t *testing.T) {
	each(t, "both", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		// Four secrets, read one by one: wait makes one change of what comes within it.
		write := func(value string) {
			for _, name := range []string{"a", "b", "c", "d"} {
				must.NoError(t, s.Vault.Put(ctx, "kv/data/default/"+j.Name+"/"+name,
					map[string]any{"data": map[string]any{"value": value}}))
			}
		}
		write("1")
		j.Args = []string{"show", "/secrets/a", "/secrets/b", "/secrets/c", "/secrets/d"}
		const script = "cat /secrets/a >> /local/ran"
		const wait = "\n wait {\n min = \"2s\"\n max = \"10s\"\n }"
		for name, mode := range map[string]string{"a": onSignal, "b": onSignal, "c": byScript(script, ""),
			"d": byScript(script, "")} {
			j.Config += file("secrets/"+name, `{{ with secret "kv/data/default/`+j.Name+`/`+name+`" }}{{ .Data.data.value }}{{ end }}`, mode+wait)
		}
		alloc := run(t, s, j)
		must.Eq(t, "1", shown(t, ctx, alloc, j, "/secrets/d", 1)[0])
		for i, value := range []string{"2", "3"} {
			write(value)
			must.Eq(t, value, shown(t, ctx, alloc, j, "/secrets/d", i+2)[i+1])
			must.SliceLen(t, i+1, changed(t, ctx, alloc, j, i+1))
		}
		must.Eq(t, 2, strings.Count(whole(t, ctx, alloc, j, `/secrets/d: "3"`), "signal "))
		must.Eq(t, "2233", inTask(t, alloc, "/local/ran"), must.Sprint("two scripts are two, each once in each round"))
		unnoticed(t, ctx, alloc, j)
	})
}

func TestChangeScriptRunsInTheTask(t *testing.T) {
	each(t, "script", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Args = []string{"show", "/secrets/color"}
		// The task's file system, environment and namespaces: only a process of the task has them all.
		j.Task = "env {\n SIZE = \"large\"\n }"
		j.Config = file("secrets/color", inJob(j, "color"), byScript(
			`echo $(cat /secrets/color) $SIZE $(readlink /proc/self/ns/mnt) > /local/ran.new; mv /local/ran.new /local/ran`,
			fmt.Sprintf("timeout = %q", stretched(20*time.Second))))
		alloc := run(t, s, j)
		must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/color", 1)[0])
		put(t, s, j, map[string]any{"color": "blue"})
		must.StrContains(t, changed(t, ctx, alloc, j, 1)[0], "ran /bin/sh")
		namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", application(t, alloc)))
		must.NoError(t, err)
		must.Eq(t, "blue large "+namespace+"\n", inTask(t, alloc, "/local/ran"))
		must.StrNotContains(t, whole(t, ctx, alloc, j, `/secrets/color: "green"`), "signal")
	})
}

func TestChangeScriptThatFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script, more string
		says         string
		ends         bool
	}{
		"exit":         {"exit 7", "", "exit code 7", false},
		"exit-fatal":   {"exit 7", "fail_on_error = true", "exit code 7", true},
		"absent-fatal": {"/no/such/thing", "fail_on_error = true", "exit code 127", true},
		"late":         {"sleep 7", "timeout = \"1s\"", "timeout of 1s", false},
		"late-fatal":   {"sleep 300", "timeout = \"1s\"\n fail_on_error = true", "timeout of 1s", true},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, "script-"+name, func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				put(t, s, j, map[string]any{"color": "green"})
				j.Args = []string{"show", "/secrets/color"}
				j.Config = file("secrets/color", inJob(j, "color"), byScript(test.script, test.more))
				alloc := run(t, s, j)
				must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/color", 1)[0])
				put(t, s, j, map[string]any{"color": "blue"})
				message := changed(t, ctx, alloc, j, 1)[0]
				_, err := alloc.Log(ctx, j.Name, "stderr", `change_script "/bin/sh" failed: .*`+test.says, 1)
				must.NoError(t, err)
				if test.ends {
					must.StrContains(t, message, `change_script "/bin/sh" failed`)
					must.StrContains(t, message, test.says)
					ended, err := alloc.Ended(ctx)
					must.NoError(t, err)
					must.Eq(t, "failed", ended.ClientStatus)
					return
				}
				eventually(t, 20*time.Second, func() error { return absent(alloc, "sleep\x007") })
				must.NoError(t, alloc.Signal(ctx, j.Name, "SIGHUP"))
				must.Eq(t, "blue", shown(t, ctx, alloc, j, "/secrets/color", 2)[1],
					must.Sprint("the end of the script is not that of the task"))
				unnoticed(t, ctx, alloc, j)
			})
		})
	}
}

// TestChangeThatDoesNotReachTheTaskIsTriedAgain: a script that is not there yet, or a container in which nothing can be
// run.
func TestChangeThatDoesNotReachTheTaskIsTriedAgain(t *testing.T) {
	each(t, "unreached", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		j = withDatabase(t, s, j, 20*time.Second, revokes, byScript("cat /secrets/db.env > /local/told", ""))
		if !j.Docker() {
			j.Config = strings.Replace(j.Config, `"/bin/sh"`, `"/local/sh"`, 1)
		}
		j.Args = []string{"show", "/secrets/db.env"}
		alloc := run(t, s, j)
		must.NoError(t, alloc.Running(ctx))
		first := find(t, alloc, j, "secrets/db.env", `PGUSER=(.+)`)
		if j.Docker() {
			must.NoError(t, alloc.Pause(ctx, j.Name))
		}
		must.StrContains(t, changed(t, ctx, alloc, j, 1)[0], "; trying again")
		must.FileNotExists(t, alloc.Path(j.Name, "local/told"))
		second := find(t, alloc, j, "secrets/db.env", `PGUSER=(.+)`)
		must.NotEq(t, first, second)
		if j.Docker() {
			must.NoError(t, alloc.Unpause(ctx, j.Name))
		} else {
			must.NoError(t, os.Symlink("/bin/sh", alloc.Path(j.Name, "local/sh")))
		}
		must.StrContains(t, changed(t, ctx, alloc, j, 2)[1], "; ran /")
		must.StrContains(t, find(t, alloc, j, "local/told", `(?s).+`), second)
		unnoticed(t, ctx, alloc, j)
	})
}

// absent returns an error while a process of the allocation runs that command.
func absent(alloc *stack.Alloc, command string) error {
	for _, p := range processes(alloc) {
		if strings.HasPrefix(string(p.cmdline), command) {
			return fmt.Errorf("process %d runs %q", p.pid, p.cmdline)
		}
	}
	return nil
}

func TestNoopChangesTheFileAndLeavesTheProcessAlone(t *testing.T) {
	each(t, "noop", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Args = []string{"show", "/secrets/color"}
		j.Config = file("secrets/color", inJob(j, "color"), onNoop)
		alloc := run(t, s, j)
		must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/color", 1)[0])
		put(t, s, j, map[string]any{"color": "blue"})
		must.StrContains(t, changed(t, ctx, alloc, j, 1)[0], "secrets/color; noop")
		must.Eq(t, "blue", inTask(t, alloc, "/secrets/color"))
		must.NoError(t, alloc.Signal(ctx, j.Name, "SIGHUP")) // Ours: what the driver had sent would come before it.
		must.Eq(t, "started show\n/secrets/color: \"green\"\nsignal hangup\n/secrets/color: \"blue\"\n",
			whole(t, ctx, alloc, j, `/secrets/color: "blue"`))
		unnoticed(t, ctx, alloc, j)
	})
}

func TestNothingFiresWhenTheBytesAreTheSame(t *testing.T) {
	each(t, "same", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Args = []string{"show", "/secrets/color", "/secrets/version"}
		// Both show the same answer of Vault: the second one tells when the new version has been read.
		j.Config = file("secrets/color", inJob(j, "color"), onRestart) +
			file("secrets/version", `{{ with secret "kv/data/default/`+j.Name+`/config" }}{{ .Data.metadata.version }}{{ end }}`,
				onNoop)
		alloc := run(t, s, j)
		must.Eq(t, "1", shown(t, ctx, alloc, j, "/secrets/version", 1)[0])
		before, err := os.Stat(alloc.Path(j.Name, "secrets/color"))
		must.NoError(t, err)
		put(t, s, j, map[string]any{"color": "green"})
		must.StrHasSuffix(t, "secrets/version; noop", changed(t, ctx, alloc, j, 1)[0])
		must.Eq(t, "2", inTask(t, alloc, "/secrets/version"))
		after, err := os.Stat(alloc.Path(j.Name, "secrets/color"))
		must.NoError(t, err)
		must.True(t, os.SameFile(before, after), must.Sprint("not even written"))
		put(t, s, j, map[string]any{"color": "blue"})
		must.StrContains(t, changed(t, ctx, alloc, j, 2)[1], "secrets/color, secrets/version; restarted")
		must.Eq(t, "3", shown(t, ctx, alloc, j, "/secrets/version", 2)[1])
	})
}

func TestSplayDelaysTheAction(t *testing.T) {
	const splay, rounds = 5 * time.Second, 3
	each(t, "splay", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "0"})
		j.Args = []string{"show", "/secrets/color"}
		j.Config = file("secrets/color", inJob(j, "color"), strings.Replace(onSignal, `"0s"`, `"`+splay.String()+`"`, 1))
		alloc := run(t, s, j)
		must.Eq(t, "0", shown(t, ctx, alloc, j, "/secrets/color", 1)[0])
		var longest time.Duration
		// A random delay may be short, but not every time: three of them below 2 % are one run in 100,000.
		for i := range rounds {
			put(t, s, j, map[string]any{"color": fmt.Sprint(i + 1)})
			changed(t, ctx, alloc, j, i+1)
			delay := actedAt(t, ctx, alloc, j, i).Sub(writtenAt(t, alloc, j))
			must.Between(t, 0, delay, splay+stretched(slack))
			longest = max(longest, delay)
			must.Eq(t, fmt.Sprint(i+1), shown(t, ctx, alloc, j, "/secrets/color", i+2)[i+1])
		}
		must.Greater(t, splay/50, longest)
	})
}

// actedAt is when the driver had told the process of the i-th change.
func actedAt(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, i int) time.Time {
	t.Helper()
	var at []time.Time
	for _, e := range state(t, ctx, alloc, j).Events {
		if strings.Contains(e.DisplayMessage, "Secrets changed") {
			at = append(at, time.Unix(0, e.Time))
		}
	}
	return at[i]
}

func writtenAt(t *testing.T, alloc *stack.Alloc, j job) time.Time {
	t.Helper()
	info, err := os.Stat(alloc.Path(j.Name, "secrets/color"))
	must.NoError(t, err)
	return info.ModTime()
}
