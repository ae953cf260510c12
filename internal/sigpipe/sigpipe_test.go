package sigpipe

import (
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
)

// TestMain writes to a standard error nobody reads when the test below started this process for that.
func TestMain(m *testing.M) {
	if os.Getenv("SIGPIPE_CHILD") == "" {
		os.Exit(m.Run())
	}
	if _, err := os.Stderr.WriteString("into a broken pipe"); err == nil {
		os.Exit(3)
	}
	os.Exit(0)
}

func TestWriteToABrokenPipeIsAnErrorAndNotTheEnd(t *testing.T) {
	reader, writer, err := os.Pipe()
	must.NoError(t, err)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "SIGPIPE_CHILD=1")
	child.Stderr = writer
	must.NoError(t, reader.Close())
	must.NoError(t, child.Run())
	must.NoError(t, writer.Close())
}
