package taskapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"nomad-driver-vault/internal/inode"

	"golang.org/x/sys/unix"
)

const (
	socketName   = "secrets/api.sock" // client/allocrunner/taskrunner/api_hook.go
	longestPath  = 107                // of a Unix socket: sun_path without its NUL, unix(7)
	blockFor     = 5 * time.Minute    // Nomad's own default for a blocking query; it adds up to a sixteenth
	answerWithin = 30 * time.Second   // for the answer itself, and for the token
	tokenWithin  = 10 * time.Second
	answerLimit  = 8 << 20
)

// A client asks Nomad one question at a time, each on a connection of its own: a blocking query holds one for minutes
// anyway, a connect over a Unix socket costs microseconds, and so one question costs one goroutine and nothing is left
// to clean up.
type client struct {
	namespace string
	token     func(context.Context) (string, error)
	dial      func(context.Context) (net.Conn, error)
}

// get returns the answer and its index as soon as that is not index any more, or after blockFor. Index 0 returns at
// once.
func (c client) get(ctx context.Context, q question, index uint64) (answer any, next uint64, err error) {
	timeout := answerWithin
	if index > 0 {
		timeout += blockFor + blockFor/16
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	token, err := c.tokenNow(ctx)
	if err != nil {
		return nil, 0, &fault{class: ErrUnavailable, detail: "read the task's Nomad token", cause: err, final: true}
	}
	response, body, err := c.exchange(ctx, c.request(q, index), token)
	if err != nil {
		return nil, 0, err
	}
	_, variable := q.(VariableQuery)
	switch {
	case response.StatusCode == http.StatusNotFound && variable:
		body = nil
	case response.StatusCode != http.StatusOK:
		return nil, 0, refusal(q, c.namespaceOf(q), response.StatusCode, told(body, token))
	}
	answer, err = q.decode(body)
	if err != nil {
		// The error of encoding/json may quote what it read.
		return nil, 0, &fault{class: ErrUnavailable, detail: "what answered on " + socketName + " sent no JSON of Nomad's"}
	}
	next, _ = strconv.ParseUint(response.Header.Get("X-Nomad-Index"), 10, 64)
	return answer, next, nil
}

func (c client) tokenNow(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenWithin)
	defer cancel()
	return c.token(ctx)
}

func (c client) namespaceOf(q question) string {
	_, params := q.request()
	if ns := params.Get("namespace"); ns != "" {
		return ns
	}
	return c.namespace
}

func (c client) request(q question, index uint64) *url.URL {
	path, params := q.request()
	params.Set("namespace", c.namespaceOf(q))
	maps.DeleteFunc(params, func(_ string, values []string) bool { return values[0] == "" })
	if index > 0 {
		params.Set("index", strconv.FormatUint(index, 10))
		params.Set("wait", blockFor.String())
	}
	return &url.URL{Scheme: "http", Host: "nomad", Path: path, RawQuery: params.Encode()}
}

// exchange sends one request and reads its whole answer. Everything it does ends with ctx.
func (c client) exchange(ctx context.Context, to *url.URL, token string) (*http.Response, []byte, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	request := &http.Request{Method: http.MethodGet, URL: to, Header: http.Header{}, Close: true}
	if token != "" {
		request.Header.Set("X-Nomad-Token", token)
	}
	if err := request.Write(conn); err != nil {
		return nil, nil, unanswered(ctx, err)
	}
	limited := &io.LimitedReader{R: conn, N: answerLimit}
	response, err := http.ReadResponse(bufio.NewReader(limited), request)
	if err != nil {
		return nil, nil, unanswered(ctx, err)
	}
	body, err := io.ReadAll(response.Body)
	if limited.N == 0 {
		return nil, nil, &fault{class: ErrUnavailable, detail: fmt.Sprintf("the answer is larger than %d bytes", answerLimit)}
	}
	if err != nil {
		return nil, nil, unanswered(ctx, err)
	}
	return response, body, nil
}

// unanswered tells a failure on the way. It quotes no error of net/http, which may quote what it read.
func unanswered(ctx context.Context, err error) error {
	var number syscall.Errno
	switch {
	case ctx.Err() != nil:
		return errNoAnswer
	case errors.As(err, &number):
		return &fault{class: ErrUnavailable, detail: fmt.Sprintf("ask on %s: %v", socketName, number)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &fault{class: ErrUnavailable, detail: "the connection to " + socketName + " closed before the answer"}
	default:
		return &fault{class: ErrUnavailable, detail: "what answered on " + socketName + " does not speak HTTP"}
	}
}

// dialer connects to the socket in the task's directory dir, which the task can write. Opening it first, as a mere
// place in the file system, means that no link leads elsewhere: the plugin is root and could otherwise be sent to any
// socket of the host. Connecting through /proc also works where the path is longer than a socket's may be.
//
// A task can still put a socket of its own there, so whoever listens must run as the user we run as, which Nomad's
// agent, our parent, does. A task that runs as that user too can pass: it then gets its own token and feeds its own
// templates.
func dialer(dir string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		socket, err := openSocket(dir)
		if err != nil {
			return nil, err
		}
		defer socket.Close()
		conn, err := new(net.Dialer).DialContext(ctx, "unix", inode.Path(socket))
		if err != nil {
			return nil, unanswered(ctx, err)
		}
		if owner, err := peer(conn.(*net.UnixConn)); err != nil || owner != os.Geteuid() {
			conn.Close()
			return nil, &fault{class: ErrUnavailable, final: true, detail: "it is not Nomad that listens on " + socketName +
				" (the user is another): the task must leave that file alone"}
		}
		return conn, nil
	}
}

// openSocket returns a descriptor that is good for naming the socket and for nothing else (O_PATH, open(2)).
func openSocket(dir string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, noSocket(dir, err)
	}
	defer root.Close()
	file, err := inode.Socket(root, socketName)
	var other *inode.TypeError
	switch {
	case errors.As(err, &other):
		return nil, &fault{class: ErrUnavailable, final: true, detail: socketName +
			" is not a socket: the task must leave that " +
			"file alone"}
	case err != nil:
		return nil, noSocket(dir, err)
	}
	return file, nil
}

// noSocket is final: Nomad makes the socket before it starts a task, or gives up on it with a line in the agent's log.
func noSocket(dir string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return &fault{class: ErrUnavailable, final: true, detail: "open " + socketName, cause: inode.Cause(err)}
	}
	detail := "the task has no " + socketName + ", which Nomad 1.5 and newer make; the agent's log says why it did not"
	if length := len(filepath.Join(dir, socketName)); length > longestPath {
		detail = fmt.Sprintf("Nomad could not make %s: its path would have %d bytes and a socket's may have %d: shorten "+
			"the agent's "+
			"data_dir or the task's name", socketName, length, longestPath)
	}
	return &fault{class: ErrUnavailable, final: true, detail: detail}
}

// peer is the user who listens at the other end (SO_PEERCRED, unix(7)).
func peer(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid, errors.Join(err, controlErr)
}
