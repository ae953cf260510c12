package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

const manyDoors = 1000

// memoryOf is the resident memory of a process in bytes, after the kernel has taken back what Go has released.
func memoryOf(t *testing.T, pid int) int {
	t.Helper()
	text := string(must1(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))))
	_, after, _ := strings.Cut(text, "RssAnon:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	must.NoError(t, err)
	return kib << 10
}

func TestAThousandDoorsComeBackTogether(t *testing.T) {
	d, dir := newDoors(t)
	mustOpen(t, d, dir, "first")
	before := memoryOf(t, pidIn(t, dir))
	began := time.Now()
	var opening sync.WaitGroup
	for worker := range 8 {
		opening.Go(func() {
			for n := worker; n < manyDoors; n += 8 {
				_, err := d.Open(t.Context(), request1(fmt.Sprint("door", n), dir, &source{}))
				must.NoError(t, err)
			}
		})
	}
	opening.Wait()
	pid := pidIn(t, dir)
	t.Log("opened in", time.Since(began), "with", (memoryOf(t, pid)-before)/manyDoors, "bytes of each;", before, "without")
	must.NoError(t, unix.Kill(pid, unix.SIGKILL))
	began = time.Now()
	for n := range manyDoors {
		must.Eq(t, "1 x", say(t, filepath.Join(dir, fmt.Sprintf("door%d.sock", n)), "x"))
	}
	t.Log("all answer again after", time.Since(began))
	t.Log((memoryOf(t, pidIn(t, dir))-before)/manyDoors, "bytes of each after a restart")
}
