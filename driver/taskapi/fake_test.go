package taskapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A nomad is a fake of the task API with blocking queries as Nomad documents them. It serves any net.Conn: one end of a
// net.Pipe where a test needs synctest's clock, or a real socket.
type nomad struct {
	mu      sync.Mutex
	index   uint64
	answers map[string]canned // by path and query, without index and wait
	change  chan struct{}     // closed and replaced at every change
	down    bool              // nobody listens
	silent  bool              // takes a question and says nothing
	token   string            // what is accepted; "" for anything
	raw     []byte            // sent instead of any answer
	asked   []asked
	open    int
}

type canned struct {
	status int
	body   string
	index  uint64
}

type asked struct {
	what  string
	index uint64
	token string
	at    time.Time
}

func newNomad() *nomad {
	return &nomad{answers: map[string]canned{}, change: make(chan struct{}), index: 10}
}

// dial connects through memory.
func (n *nomad) dial(context.Context) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, unanswered(context.Background(), syscall.ECONNREFUSED)
	}
	here, there := net.Pipe()
	go n.serve(there)
	return here, nil
}

// set changes one answer; a status of 0 is 200.
func (n *nomad) set(what string, status int, body string) {
	n.edit(func() {
		n.index++
		n.answers[what] = canned{max(status, 200), body, n.index}
	})
}

func (n *nomad) edit(how func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	how()
	close(n.change)
	n.change = make(chan struct{})
}

func (n *nomad) requests(what string) (all []asked) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.asked {
		if a.what == what {
			all = append(all, a)
		}
	}
	return all
}

func (n *nomad) connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open
}

func (n *nomad) serve(conn net.Conn) {
	n.edit(func() { n.open++ })
	defer n.edit(func() { n.open-- })
	defer conn.Close()
	request, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	if response := n.answer(request, gone); response != "" {
		_, _ = io.WriteString(conn, response)
	}
	conn.Close()
	<-gone
}

// answer blocks as the query asks; "" is a connection that closes.
func (n *nomad) answer(request *http.Request, gone chan struct{}) string {
	params := request.URL.Query()
	index, _ := strconv.ParseUint(params.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(params.Get("wait"))
	params.Del("index")
	params.Del("wait")
	what := request.URL.Path + "?" + params.Encode()
	var expired <-chan time.Time
	if wait > 0 {
		expired = time.After(wait)
	}
	n.edit(func() {
		n.asked = append(n.asked, asked{what, index, request.Header.Get("X-Nomad-Token"), time.Now()})
	})
	for {
		n.mu.Lock()
		change, response, done := n.change, "", true
		answer, ok := n.answers[what]
		switch {
		case n.down:
		case n.silent:
			done = false
		case n.raw != nil:
			response = string(n.raw)
		case n.token != "" && n.token != request.Header.Get("X-Nomad-Token"):
			response = http1(403, "Forbidden", n.index)
		case !ok:
			answer = canned{404, "variable not found", n.index}
			fallthrough
		default:
			done = answer.index > index || index == 0
			response = http1(answer.status, answer.body, answer.index)
		}
		n.mu.Unlock()
		if done {
			return response
		}
		select {
		case <-change:
		case <-gone:
			return ""
		case <-expired:
			return response
		}
	}
}

func http1(status int, body string, index uint64) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nX-Nomad-Index: %d\r\nContent-Length: %d\r\n\r\n%s",
		status, http.StatusText(status), index, len(body), body)
}

// watch is a Watch of the fake, in namespace "ns", with what it logs.
func (n *nomad) watch(t *testing.T) (*Watch, *strings.Builder) {
	t.Helper()
	logged := &strings.Builder{}
	w := Open(Options{
		Dir: "/nowhere", Namespace: "ns",
		Token:  func(context.Context) (string, error) { return "the-token", nil },
		Logger: hclog.New(&hclog.LoggerOptions{Output: logged, Level: hclog.Debug}), Changed: make(chan struct{}, 1),
	})
	w.api.dial = n.dial
	return w, logged
}
