package process

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"nomad-driver-vault/driver/door"
)

// pair returns both ends of a connection.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must.NoError(t, err)
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(file)
		must.NoError(t, err)
		file.Close()
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// rootSide is the plugin's side of a connection to a process that says what it likes.
func rootSide(t *testing.T) (hostile *net.UnixConn, d *Doors, h *handler, ended chan error) {
	t.Helper()
	hostile, ours := pair(t)
	d = &Doors{config: Config{Logger: hclog.NewNullLogger()}, ctx: t.Context(), doors: map[uint64]*Door{}}
	r := &running{link: newLink(ours)}
	h = &handler{doors: d, running: r, limit: rate.NewLimiter(saysEach, 2*saysEach)}
	ended = make(chan error, 1)
	go func() { ended <- r.link.run(h.handle) }()
	t.Cleanup(r.link.close)
	return hostile, d, h, ended
}

func rawFrame(size, files uint32, body string) []byte {
	return append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, size), files), body...)
}

func frameOf(body string) []byte { return rawFrame(uint32(len(body)), 0, body) }

func TestWhatNoProcessMaySayEndsIt(t *testing.T) {
	held, err := json.Marshal(message{Held: &open{Serial: 1, Spec: door.Spec{ID: "a"}}})
	must.NoError(t, err)
	for name, c := range map[string]struct {
		frame []byte
		files int
	}{
		"a message that is too long":      {rawFrame(frameMost+1, 0, ""), 0},
		"too many files":                  {rawFrame(2, filesMost+1, "{}"), 0},
		"files that it does not announce": {frameOf("{}"), 1},
		"more files than a message has":   {rawFrame(2, 1, "{}"), 3},
		"files that do not come":          {rawFrame(2, 2, "{}"), 0},
		"a flood of files":                {rawFrame(2, 4, "{}"), 200},
		"files with what has none":        {rawFrame(40, 1, `{"ID":1,"Reread":{"Serial":1}}          `), 1},
		"no JSON":                         {frameOf("x"), 0},
		"nothing":                         {frameOf("{}"), 0},
		"what only the plugin says":       {frameOf(`{"ID":1,"Close":{"Serial":1}}`), 0},
		"a door without a listener":       {frameOf(string(held)), 0},
		"a door whose listener is a file": {rawFrame(uint32(len(held)), 1, string(held)), 1},
		"a question that needs no answer": {frameOf(`{"Reread":{"Serial":1,"Generation":1}}`), 0},
	} {
		hostile, _, h, ended := rootSide(t)
		before := countFDs(t)
		var rights []byte
		if c.files > 0 {
			null := must1(os.Open("/dev/null"))
			fds := make([]int, c.files)
			for i := range fds {
				fds[i] = rawFD(null)
			}
			rights = unix.UnixRights(fds...)
			defer null.Close()
		}
		_, _, err := hostile.WriteMsgUnix(c.frame, rights, nil)
		must.NoError(t, err, must.Sprint(name))
		select {
		case err := <-ended:
			must.Error(t, err, must.Sprint(name))
		case <-time.After(10 * time.Second):
			t.Fatal("it is listened to: ", name)
		}
		must.Len(t, 0, h.held, must.Sprint(name))
		must.LessEq(t, before+1, countFDs(t), must.Sprint(name)) // /dev/null, of the test
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	return len(must1(os.ReadDir("/proc/self/fd")))
}

// Questions about doors and generations that the plugin never gave reach no source, and no flood does.
func TestAFloodReachesNoSource(t *testing.T) {
	hostile, d, h, _ := rootSide(t)
	s := &source{}
	o := &Door{doors: d, serial: 7, source: s, credential: credential(5), settled: make(chan error, 1)}
	s.door = o
	d.mu.Lock()
	d.doors[7] = o
	d.mu.Unlock()
	h.limit.SetLimit(rate.Inf)
	answers := make(chan map[string]int, 1)
	const n = 500
	go func() { answers <- readAnswers(hostile, 3*n) }()
	for i := range n {
		for _, what := range []string{
			fmt.Sprintf(`{"ID":%d,"Reread":{"Serial":%d,"Generation":1}}`, 3*i+1, i+100),
			fmt.Sprintf(`{"ID":%d,"Reread":{"Serial":7,"Generation":%d}}`, 3*i+2, 100+i),
			fmt.Sprintf(`{"ID":%d,"Reread":{"Serial":7,"Generation":6}}`, 3*i+3),
		} {
			_, err := hostile.Write(frameOf(what))
			must.NoError(t, err)
		}
	}
	must.Eq(t, map[string]int{"nobody can read its credential": n, "no such generation": 2 * n}, <-answers)
	must.Eq(t, 0, s.rereads())

	go func() { answers <- readAnswers(hostile, n) }()
	for i := range n {
		_, err := hostile.Write(frameOf(fmt.Sprintf(`{"ID":%d,"Reread":{"Serial":7,"Generation":%d}}`, i+1, 5)))
		must.NoError(t, err)
	}
	<-answers
	must.LessEq(t, 3, s.rereads())
	must.GreaterEq(t, 1, s.rereads())
}

// readAnswers counts what errors the answers have.
func readAnswers(c *net.UnixConn, n int) map[string]int {
	l, said := newLink(c), map[string]int{}
	for range n {
		m, _, err := l.receive()
		if err != nil {
			said[err.Error()]++
			break
		}
		said[m.Error]++
	}
	return said
}

// A process that does not read costs a plugin nothing but that process.
func TestAProcessThatDoesNotReadIsGivenUp(t *testing.T) {
	_, ours := pair(t)
	l := newLink(ours)
	go func() { _ = l.run(func(message, []int) error { return nil }) }()
	began := time.Now()
	big := message{Error: strings.Repeat("x", frameMost/2)}
	for range 100 {
		l.send(big)
	}
	must.Less(t, time.Second, time.Since(began))
	_, err := l.ask(context.Background(), message{})
	must.ErrorIs(t, err, errClosed)
	must.Less(t, writeWithin+10*time.Second, time.Since(began))
}

// What a process says is logged in lines of a bounded size and number, and no memory that its runtime prints.
func TestWhatAProcessSaysIsBounded(t *testing.T) {
	var log strings.Builder
	s, err := newStderr(hclog.New(&hclog.LoggerOptions{Output: &log}))
	must.NoError(t, err)
	fmt.Fprintln(s.end, "00007f65ee19da00: 00000000 00000d68  00007f66 354fd380  secret......O5f.")
	fmt.Fprintln(s.end, strings.Repeat("long", 100_000))
	for range 10_000 {
		fmt.Fprintln(s.end, "line")
	}
	s.end.Close()
	<-s.closed
	must.StrNotContains(t, log.String(), "secret")
	must.Less(t, 150, strings.Count(log.String(), "\n"))
	must.Less(t, 64<<10, log.Len())
}

func FuzzReceive(f *testing.F) {
	f.Add(frameOf("{}"))
	f.Add(frameOf(`{"ID":1,"Reread":{"Serial":1,"Generation":1}}`))
	f.Add(rawFrame(frameMost+1, 9, "x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		a, b := pair(t)
		_, err := a.Write(data)
		must.NoError(t, err)
		must.NoError(t, a.Close())
		l := newLink(b)
		for {
			if _, _, err := l.receive(); err != nil {
				return
			}
		}
	})
}
