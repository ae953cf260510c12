package plugin

import (
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
)

func TestGroupsAndMountsOfTasksAreFound(t *testing.T) {
	v1 := "12:cpuset:/nomad/share/1f.web\n1:name=systemd:/nomad/1f.web\n"
	v2 := "0::/nomad.slice/share.slice/1f.web.scope\n"
	for _, groups := range []string{v1, v2} {
		must.True(t, inGroup(groups, "1f.web"))
		must.False(t, inGroup(groups, "1f.we"))
		must.False(t, inGroup(groups, "f.web"))
	}
	must.True(t, inGroup("0::/nomad.slice/share.slice/1f.a b.scope\n", "1f.a b"))
	must.Eq(t, []string{"1f/web/local", "1f/a b/local", "/1"}, mounted(
		"36 35 98:0 /nomad/alloc/1f/web/local /local rw,noatime master:1 - ext3 /dev/root rw\n"+
			"37 35 98:0 /nomad/alloc/1f/a\\040b/local /local rw,noatime master:1 - ext3 /dev/root rw\n38 35 98:0 /1 / rw - x x x\nshort\n"))
}

// Those who ask while somebody looks share the next look, and none gets an answer that is older than its question.
func TestOneLookAtTheProcessesAnswersMany(t *testing.T) {
	var c census
	looks := map[time.Time]bool{}
	cfg := &drivers.TaskConfig{AllocID: "none", Name: "web", AllocDir: "/none"}
	c.mu.Lock()
	var all sync.WaitGroup
	var mu sync.Mutex
	for range 100 {
		all.Go(func() {
			asked := time.Now()
			must.False(t, c.has(cfg))
			c.mu.Lock()
			began := c.began
			c.mu.Unlock()
			must.True(t, began.After(asked))
			mu.Lock()
			looks[began] = true
			mu.Unlock()
		})
	}
	for stacks := make([]byte, 1<<20); strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*census).has(") < 100; {
	}
	c.mu.Unlock()
	all.Wait()
	must.MapLen(t, 1, looks)
}
