package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/internal/leaktest"
	"nomad-driver-vault/internal/need"
)

// TestMain is also the process that serves doors, which start makes of this test's binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Argument {
		os.Exit(Main(os.Args[2:], newEcho))
	}
	if dir := os.Getenv("PLUGIN_OF_TEST"); dir != "" {
		pluginOfTest(dir)
	}
	leaktest.Main(m)
}

// An echo answers each line with the generation of the credential and the line. Some lines ask for more.
type echo struct {
	spec       door.Spec
	plugin     door.Plugin
	credential atomic.Pointer[door.Credential]
	inFlight   atomic.Int64
	calls      atomic.Int64

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[net.Conn]bool
	over      sync.WaitGroup
}

func newEcho(s door.Spec, p door.Plugin) (door.Door, error) {
	if strings.Contains(s.Name, "bad") {
		return nil, errors.New("url: there is none")
	}
	return &echo{spec: s, plugin: p, conns: map[net.Conn]bool{}}, nil
}

func (e *echo) Serve(l net.Listener) error {
	e.mu.Lock()
	e.listeners = append(e.listeners, l)
	e.mu.Unlock()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.conns[c] = true
		e.mu.Unlock()
		e.over.Go(func() { e.serve(c) })
	}
}

func (e *echo) serve(c net.Conn) {
	e.inFlight.Add(1)
	defer e.inFlight.Add(-1)
	defer c.Close()
	line := make([]byte, 256)
	for {
		n, err := c.Read(line)
		if err != nil {
			return
		}
		e.calls.Add(1)
		peer, _ := door.PeerOf(c)
		e.plugin.Call(door.Call{Time: time.Now().UTC(), Door: e.spec.ID, PID: peer.PID, UID: &peer.UID, Status: 200})
		fmt.Fprintf(c, "%s\n", e.answer(strings.TrimSpace(string(line[:n]))))
	}
}

func (e *echo) answer(line string) string {
	credential := e.credential.Load()
	command, argument, _ := strings.Cut(line, " ")
	generation := uint64(0)
	if credential != nil {
		generation = credential.Generation
	}
	switch command {
	case "read": // a file
		text, err := os.ReadFile(argument)
		return fmt.Sprint(len(text), " ", err)
	case "write":
		return fmt.Sprint(os.WriteFile(argument, []byte("x"), 0o600))
	case "dial":
		_, err := net.Dial("unix", argument)
		return fmt.Sprint(err)
	case "signal":
		pid, _ := strconv.Atoi(argument)
		return fmt.Sprint(unix.Kill(pid, 0))
	case "status":
		text, _ := os.ReadFile("/proc/thread-self/status")
		return strings.ReplaceAll(string(text), "\n", "|")
	case "memory":
		return fmt.Sprint(hoard())
	case "reread":
		err := e.plugin.Reread(context.Background(), generation)
		return fmt.Sprint(err, " ", e.credential.Load().Generation)
	case "unused":
		n, _ := strconv.ParseUint(argument, 10, 64)
		e.plugin.Unused(n)
	}
	return fmt.Sprint(generation, " ", line)
}

// hoard takes memory until there is none.
func hoard() int {
	for all := map[int][]byte{}; ; {
		more := make([]byte, 16<<20)
		for i := 0; i < len(more); i += 4096 {
			more[i] = 1
		}
		all[len(all)] = more
	}
}

func (e *echo) Use(c *door.Credential) { e.credential.Store(c) }

func (e *echo) Close(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		e.over.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		e.mu.Lock()
		for c := range e.conns {
			c.Close()
		}
		e.mu.Unlock()
	}
}

func (e *echo) Counters() door.Counters {
	return door.Counters{InFlight: e.inFlight.Load(), Calls: e.calls.Load()}
}

// A source gives credentials whose generations count up.
type source struct {
	mu     sync.Mutex
	door   *Door
	reads  int
	unused []uint64
}

func (s *source) Reread(_ context.Context, g uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	s.door.Use(credential(g + 1))
	return nil
}

func (s *source) Unused(g uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unused = append(s.unused, g)
}

func (s *source) rereads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

func (s *source) told() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unused)
}

func credential(generation uint64) *door.Credential {
	return &door.Credential{Generation: generation, ReadAt: time.Now(), Token: "secret-of-the-test"}
}

const testUID = 64991

func configIn(dir string) Config {
	return Config{Dir: dir, UID: testUID, GID: testUID, Memory: memoryOfTest, RecordSize: 1 << 20, Alone: time.Hour,
		Claim: time.Minute, Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr})}
}

// newDoors returns doors whose process ends with the test.
func newDoors(t *testing.T, change ...func(*Config)) (*Doors, string) {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	c := configIn(dir)
	for _, each := range change {
		each(&c)
	}
	d := New(t.Context(), c)
	t.Cleanup(func() {
		d.Shutdown()
		endProcess(dir)
	})
	return d, dir
}

// endProcess ends the process of a directory.
func endProcess(dir string) {
	if r, _, err := find(context.Background(), dir); err == nil {
		r.kill()
	}
}

func pidIn(t *testing.T, dir string) int {
	t.Helper()
	var text []byte
	eventually(t, "the process is kept", func() (is bool) {
		var err error
		text, err = os.ReadFile(filepath.Join(dir, pidFile))
		return err == nil
	})
	pid, err := strconv.Atoi(strings.Fields(string(text))[0])
	must.NoError(t, err)
	return pid
}

func request1(name, dir string, s Source) Request {
	return Request{Spec: door.Spec{ID: name, Name: name}, Source: s, Credential: credential(1),
		Listen: Listen{Socket: &Socket{Dir: dir, Name: name + ".sock", Mode: 0o600}}}
}

// mustOpen opens a door with a socket in dir.
func mustOpen(t *testing.T, d *Doors, dir, name string) (*Door, *source) {
	t.Helper()
	s := &source{}
	o, err := d.Open(t.Context(), request1(name, dir, s))
	must.NoError(t, err)
	s.mu.Lock()
	s.door = o
	s.mu.Unlock()
	return o, s
}

// say sends a line to a socket and returns the answer.
func say(t *testing.T, socket, line string) string {
	t.Helper()
	answer, err := trySay(socket, line)
	must.NoError(t, err)
	return answer
}

func trySay(socket, line string) (string, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, line)
}

func exchange(c net.Conn, line string) (string, error) {
	if _, err := fmt.Fprintf(c, "%s\n", line); err != nil {
		return "", err
	}
	answer := make([]byte, 8192)
	n, err := c.Read(answer)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSpace(string(answer[:n])), err
}

// eventually waits until a condition is true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	each := time.NewTicker(5 * time.Millisecond)
	defer each.Stop()
	for !is() {
		must.True(t, time.Now().Before(end), must.Sprint(what))
		<-each.C
	}
}
