package process

import (
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Connects are never refused, and each gets an answer but those that the dead process had accepted.
func TestNoConnectIsRefusedWhenTheProcessDies(t *testing.T) {
	d, dir := newDoors(t)
	o, _ := mustOpen(t, d, dir, "a")
	at := filepath.Join(dir, "a.sock")
	var refused, answered, broken atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("unix", at)
				if err != nil {
					refused.Add(1)
					continue
				}
				if _, err := exchange(c, "x"); err != nil {
					broken.Add(1)
				} else {
					answered.Add(1)
				}
				c.Close()
			}
		})
	}
	for n := range 5 {
		o.Use(credential(uint64(n + 2)))
		pid := pidIn(t, dir)
		must.NoError(t, unix.Kill(pid, unix.SIGKILL))
		killed := time.Now()
		before := answered.Load()
		eventually(t, "it answers again", func() bool { return answered.Load() > before+10 && pidIn(t, dir) != pid })
		t.Log("back after", time.Since(killed))
	}
	close(stop)
	clients.Wait()
	must.Eq(t, 0, refused.Load())
	t.Log(answered.Load(), "answered", broken.Load(), "cut off")
	must.LessEq(t, 4*5, broken.Load())
	must.Eq(t, "6 x", say(t, at, "x")) // the last credential
}
