package status

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
)

// serve serves the document at a socket, and returns the directory of that.
func serve(t *testing.T, document func() Document) (dir string) {
	t.Helper()
	dir = t.TempDir()
	at, err := net.Listen("unix", filepath.Join(dir, Socket))
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		Serve(ctx, at, document)
	}()
	t.Cleanup(func() { cancel(); <-over })
	return dir
}

func empty() Document { return Document{Plugin: Plugin{Name: "vault-fake"}} }

func TestDocumentIsServed(t *testing.T) {
	answer, err := Get(t.Context(), serve(t, empty), "/v1/status")
	must.NoError(t, err)
	var got Document
	must.NoError(t, json.Unmarshal(answer, &got))
	must.Eq(t, empty(), got)
}

func TestGoroutinesAreDumped(t *testing.T) {
	answer, err := Get(t.Context(), serve(t, empty), "/debug/pprof/goroutine?debug=2")
	must.NoError(t, err)
	must.StrContains(t, string(answer), "driver/status.Serve")
}

func TestOtherPathsAreNotServed(t *testing.T) {
	dir := serve(t, empty)
	for _, path := range []string{"/", "/debug/vars", "/v1/"} {
		_, err := Get(t.Context(), dir, path)
		must.ErrorContains(t, err, "404")
	}
}

// A client that connects and never asks keeps nobody out for long, however often it does.
func TestClientsThatHangAreHungUpOn(t *testing.T) {
	dir := serve(t, empty)
	for range 4 * connectionsMost {
		c, err := net.Dial("unix", filepath.Join(dir, Socket))
		must.NoError(t, err)
		defer c.Close()
	}
	again, began := time.NewTicker(50*time.Millisecond), time.Now()
	for {
		_, err := Get(t.Context(), dir, "/v1/status")
		if err == nil {
			break
		}
		must.Less(t, requestWithin+5*time.Second, time.Since(began), must.Sprint(err))
		<-again.C
	}
}

// While something is stuck, its clients are told so in time, and what it is can be seen.
func TestDocumentThatIsStuckHoldsUpNobody(t *testing.T) {
	stuck := make(chan struct{})
	dir := serve(t, func() Document { <-stuck; return empty() })
	defer close(stuck)
	answers := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := Get(t.Context(), dir, "/v1/status")
			answers <- err
		}()
	}
	for range 3 {
		must.ErrorContains(t, <-answers, "something in it is stuck")
	}
	_, err := Get(t.Context(), dir, "/debug/pprof/goroutine?debug=2")
	must.NoError(t, err)
}

// Whatever the rights of socket and directory are: the kernel says who is there.
func TestOnlyRootIsServed(t *testing.T) {
	need.Root(t)
	dir := serve(t, empty)
	must.NoError(t, os.Chmod(filepath.Join(dir, Socket), 0o777))
	for path := dir; strings.HasPrefix(path, os.TempDir()+"/"); path = filepath.Dir(path) {
		must.NoError(t, os.Chmod(path, 0o755))
	}
	answered := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its user with it
		_, _, failed := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534)
		c, err := net.Dial("unix", filepath.Join(dir, Socket))
		if failed != 0 || err != nil {
			answered <- "not even connected"
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte("GET /v1/status HTTP/1.0\r\n\r\n"))
		text := make([]byte, 100)
		n, _ := c.Read(text)
		answered <- string(text[:n])
	}()
	must.Eq(t, "", <-answered)
}
