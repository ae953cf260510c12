package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestAllocExecThatCannotStart: a command that is not there, or that the task's user may not execute, is answered at
// once. By a relative path it is not looked up, and hangs in Nomad's executor for good, with all that is asked of the
// task after it: its credentials end in time with a stop all the same. Beside it, the task has of the agent's
// environment what Nomad's exec has, and a destination as in Nomad's block.
func TestAllocExecThatCannotStart(t *testing.T) {
	t.Parallel()
	s := common(t)
	j := job{Name: "alloc-exec-hangs", Driver: "vault-exec", Args: []string{"show"},
		Task: "kill_timeout = \"1s\"\n env {\n PATH = \"/opt/app:${PATH}\"\n }"}
	put(t, s, j, map[string]any{"color": "green"})
	j.Config = file("../alloc/data/color", inJob(j, "color")+` of {{ env "PATH" }}`, onNoop) +
		file("local/roots", "#!/bin/sh\n", onNoop+"\n perms = \"700\"\n uid = 0")
	alloc := run(t, s, j)
	ctx := within(t, 2*time.Minute)
	must.NoError(t, alloc.Running(ctx))
	for command, want := range map[string]struct {
		code int
		says string
	}{
		"nope":         {127, `command "nope": not found in the task's PATH`},
		"/local/nope":  {127, "the task's root has no such executable file"},
		"/local/roots": {126, `command "/local/roots": the task's user may not execute it: permission denied`},
	} {
		_, stderr, code, err := alloc.Exec(within(t, 10*time.Second), j.Name, false, "", command)
		must.NoError(t, err)
		must.Eq(t, want.code, code)
		must.StrContains(t, stderr, want.says)
	}
	out, _, code, err := alloc.Exec(ctx, j.Name, false, "", "sh", "-c", "cat /alloc/data/color; echo; echo green of $PATH")
	must.NoError(t, err)
	must.Zero(t, code)
	lines := strings.Split(out, "\n")
	must.Eq(t, lines[1], lines[0], must.Sprint("templates see the environment that the task has"))
	must.Eq(t, "green of /opt/app:"+os.Getenv("PATH"), lines[0])

	go func() { _, _, _, _ = alloc.Exec(ctx, j.Name, false, "", "local/roots") }()
	eventually(t, 20*time.Second, func() error {
		_, _, _, err := alloc.Exec(within(t, 2*time.Second), j.Name, false, "", "true")
		if err == nil {
			return errors.New("the executor still answers")
		}
		return nil
	})
	stop(t, ctx, s, alloc, j)
	eventually(t, slack, func() error { return unrevoked(t, ctx, s, j.Name) })
	_, err = alloc.Event(ctx, j.Name, "has not ended long after its kill_timeout and was killed")
	must.NoError(t, err)
}

// TestAllocExecHasItsWholeOutput: Nomad's docker loses the end of what a command prints when the reader is slower, and
// all of a short command's once in a while.
func TestAllocExecHasItsWholeOutput(t *testing.T) {
	t.Parallel()
	s := common(t)
	j := job{Name: "alloc-exec-output", Driver: "vault-docker", Args: []string{"show"}}
	alloc := run(t, s, j)
	ctx := within(t, 2*time.Minute)
	must.NoError(t, alloc.Running(ctx))
	for size, tty := range map[int]bool{3_000_000: false, 9: false, 30_000: true} {
		want := size
		if tty {
			want += size / 9 // a terminal ends lines with two characters
		}
		for range 15 {
			out, stderr, code, err := alloc.Exec(ctx, j.Name, tty, "", "sh", "-c",
				fmt.Sprintf("yes 12345678 | head -c %d; exit 3", size))
			must.NoError(t, err)
			must.Eq(t, want, len(out))
			must.Eq(t, "", stderr)
			must.Eq(t, 3, code)
		}
	}
}
