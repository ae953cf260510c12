package status

import (
	"context"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// requestWithin is how long a client may take for its request.
	requestWithin = 2 * time.Second
	// answerWithin is how long an answer may take, beside what a profile records for as long as its client says.
	answerWithin = 5 * time.Second
	// connectionsMost is how many are served at once.
	connectionsMost = 16
)

// Serve answers root's requests at the listener, until ctx ends, with what document returns and with the profiles of
// net/http/pprof. Whoever does not ask, or does not read the answer, is hung up on.
func Serve(ctx context.Context, at net.Listener, document func() Document) {
	var open atomic.Int32
	server := &http.Server{Handler: routes(document), ReadTimeout: requestWithin, WriteTimeout: answerWithin,
		IdleTimeout: requestWithin, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(discard{}, "", 0)}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > connectionsMost || !isOurs(c) {
				c.Close()
			}
		case http.StateClosed:
			open.Add(-1)
		}
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	_ = server.Serve(at) // until it is closed
}

// routes are the paths that are served. They are not those of http.DefaultServeMux, where importing pprof puts its own:
// nobody serves that.
func routes(document func() Document) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", http.TimeoutHandler(newReporter(document), answerWithin-time.Second,
		"the plugin does not answer: something in it is stuck, and /debug/pprof/goroutine?debug=2 says what\n"))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// reporter answers with the document, which one client at a time has made.
type reporter struct {
	document func() Document
	making   chan struct{} // holds one meanwhile
}

func newReporter(document func() Document) http.Handler {
	return reporter{document: document, making: make(chan struct{}, 1)}
}

func (r reporter) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	select {
	case r.making <- struct{}{}:
		defer func() { <-r.making }()
	case <-request.Context().Done():
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	_ = out.Encode(r.document()) // an error means that the client has gone
}

// isOurs reports whether root, or the user of this process, is at the other end.
func isOurs(c net.Conn) bool {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	if failed := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); failed != nil || err != nil {
		return false
	}
	return peer.Uid == 0 || int(peer.Uid) == os.Geteuid()
}

// discard takes what net/http says of clients that hang up.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
