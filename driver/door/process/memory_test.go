//go:build !race

package process

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// memoryOfTest is what the process may use.
const memoryOfTest = 256 << 20

func TestAProcessThatTakesTooMuchMemoryDiesAlone(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "a")
	at := filepath.Join(dir, "a.sock")
	pid := pidIn(t, dir)
	_, err := trySay(at, "memory")
	must.Error(t, err)
	must.Eq(t, "1 x", say(t, at, "x"))
	eventually(t, "another process", func() bool { return pidIn(t, dir) != pid })
}
