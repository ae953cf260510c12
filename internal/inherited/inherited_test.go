package inherited

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/hashicorp/nomad/drivers/shared/executor"
	"github.com/shoenig/test/must"
)

// TestMain does what the tests below have started this process for.
func TestMain(m *testing.M) {
	switch os.Getenv("INHERITED_CHILD") {
	case "pipe": // write to a standard error nobody reads
		if _, err := os.Stderr.WriteString("into a broken pipe"); err == nil {
			os.Exit(3)
		}
	case "signals": // start a process that is to end by the signal that this one ignores
		task := exec.Command("sh", "-c", `kill -$SENT $$; echo "not ended"`)
		task.Stdout = os.Stdout
		var ended *exec.ExitError
		if !errors.As(task.Run(), &ended) || !ended.Sys().(syscall.WaitStatus).Signaled() {
			os.Exit(3)
		}
	default:
		os.Exit(m.Run())
	}
	os.Exit(0)
}

func TestWriteToABrokenPipeIsAnErrorAndNotTheEnd(t *testing.T) {
	reader, writer, err := os.Pipe()
	must.NoError(t, err)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "INHERITED_CHILD=pipe")
	child.Stderr = writer
	must.NoError(t, reader.Close())
	must.NoError(t, child.Run())
	must.NoError(t, writer.Close())
}

func TestIgnoredSignalsAreNotPassedOn(t *testing.T) {
	for _, name := range []string{"HUP", "INT", "TERM", "PIPE", "USR1"} {
		t.Run(name, func(t *testing.T) {
			child := exec.Command("sh", "-c", `trap "" $SENT; exec "$0"`, os.Args[0])
			child.Env = append(os.Environ(), "INHERITED_CHILD=signals", "SENT="+name)
			out, err := child.CombinedOutput()
			must.NoError(t, err, must.Sprint(string(out)))
		})
	}
}

// What Nomad's drivers write into an executor's arguments has the level that quiet changes.
func TestExecutorWritesNoDebugLines(t *testing.T) {
	config, err := json.Marshal(executor.ExecutorConfig{LogFile: "/x/executor.out", LogLevel: "debug"})
	must.NoError(t, err)
	var quieted executor.ExecutorConfig
	must.NoError(t, json.Unmarshal([]byte(quiet(string(config))), &quieted))
	must.Eq(t, executor.ExecutorConfig{LogFile: "/x/executor.out", LogLevel: "info"}, quieted)
}
