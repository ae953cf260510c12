package httpdoor

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A watch ends a read or a write of a client's connection that takes too long. It costs nothing in between: an answer
// may be silent for as long as its upstream is.
type watch struct {
	limit    time.Duration // 0: for ever
	deadline func(time.Time) error
	timer    *time.Timer
}

func (w *watch) start() {
	switch {
	case w.limit <= 0:
	case w.timer == nil:
		w.timer = time.AfterFunc(w.limit, func() { _ = w.deadline(time.Now()) })
	default:
		w.timer.Reset(w.limit)
	}
}

func (w *watch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// An upload is a request's body. What was read of it is kept for another attempt until the upstream has accepted the
// credential, or it is too much.
type upload struct {
	body  io.ReadCloser
	total *atomic.Int64

	reading sync.Mutex // one attempt reads at a time, also one that was given up
	mu      sync.Mutex // guards what is below
	watch   *watch
	kept    []byte
	lost    bool // kept is not all that was read
	closed  bool
	err     error
	read    int64
	ended   atomic.Bool
}

func newUpload(body io.ReadCloser, w *watch, total *atomic.Int64) *upload {
	return &upload{body: body, total: total, watch: w}
}

// Read reads what no attempt has read. Each attempt to send the body has a reader of its own.
func (u *upload) Read(p []byte) (int, error) { return u.next(p) }

// Close implements io.Closer.
func (u *upload) Close() error { return nil }

var errOver = errors.New("read a request's body after the call")

// next reads from the client.
func (u *upload) next(p []byte) (int, error) {
	if err := u.begin(); err != nil {
		return 0, err
	}
	n, err := u.body.Read(p)
	u.total.Add(int64(n))
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watch.stop()
	u.read += int64(n)
	u.err = err
	u.ended.Store(err == io.EOF)
	if !u.lost && len(u.kept)+n <= maxReplay {
		u.kept = append(u.kept, p[:n]...)
	} else if n > 0 {
		u.kept, u.lost = nil, true
	}
	return n, err
}

// begin gives a reading its time, unless there is nothing to read any more. The upstream's transport may read on when
// the call has ended: a deadline that is set then would be one of the connection's next request.
func (u *upload) begin() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed:
		return errOver
	case u.err != nil:
		return u.err
	}
	u.watch.start()
	return nil
}

// replayable reports whether another attempt can send all of the body. A nil upload is no body.
func (u *upload) replayable() bool {
	if u == nil {
		return true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.lost && (u.err == nil || errors.Is(u.err, io.EOF))
}

// forget drops what was kept: there will be no other attempt.
func (u *upload) forget() {
	if u != nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.lost, u.kept = true, nil
	}
}

// failure returns why the body could not be read to its end.
func (u *upload) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil || errors.Is(u.err, io.EOF) {
		return nil
	}
	return u.err
}

func (u *upload) size() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.read
}

func (u *upload) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watch.stop()
	u.closed, u.kept = true, nil
}

func (u *upload) attempt() io.ReadCloser { return &attempt{upload: u} }

// An attempt sends an upload once, from its beginning.
type attempt struct {
	upload *upload
	at     int64
	over   atomic.Bool
}

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	a.upload.reading.Lock()
	defer a.upload.reading.Unlock()
	if a.over.Load() {
		return 0, errOver
	}
	if n, ok, err := a.upload.again(a.at, p); ok {
		a.at += int64(n)
		return n, err
	}
	n, err := a.upload.next(p)
	a.at += int64(n)
	return n, err
}

// Close implements io.Closer.
func (a *attempt) Close() error {
	a.over.Store(true)
	return nil
}

// again reads what was read before. It reports false if there is nothing of that after at.
func (u *upload) again(at int64, p []byte) (int, bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case at == u.read:
		return 0, false, nil
	case u.lost || u.closed:
		return 0, true, errOver
	}
	return copy(p, u.kept[at:]), true, nil
}

// A download is an answer's body: it is counted, and secrets in it are made unreadable.
type download struct {
	io.Reader
	res      *http.Response
	body     io.Closer
	trailers *matcher
}

func (c *call) newDownload(res *http.Response, trailers, body *matcher) io.ReadCloser {
	d := &download{res: res, body: res.Body, trailers: trailers}
	counted := &counter{res.Body, &c.received, &c.door.received}
	d.Reader = counted
	if body != nil && res.ContentLength != 0 {
		d.Reader = newScrubber(counted, body)
	}
	return d
}

// Close ends the body. Only now all trailers are known.
func (d *download) Close() error {
	err := d.body.Close()
	scrubHeader(d.res.Trailer, d.trailers)
	return err
}

// A counter counts what is read for the call and for the door.
type counter struct {
	io.Reader
	call *atomic.Int64
	door *atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.call.Add(int64(n))
	c.door.Add(int64(n))
	return n, err
}

// A tunnel is a websocket's connection to the upstream.
type tunnel struct {
	io.Reader
	up   io.ReadWriteCloser
	call *call
}

func (c *call) newTunnel(up io.ReadWriteCloser, m *matcher) io.ReadWriteCloser {
	t := &tunnel{up: up, call: c, Reader: &counter{up, &c.received, &c.door.received}}
	if m != nil {
		t.Reader = newScrubber(t.Reader, m)
	}
	return t
}

// Write implements io.Writer.
func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.up.Write(p)
	t.call.sent.Add(int64(n))
	t.call.door.sent.Add(int64(n))
	return n, err
}

// Close implements io.Closer.
func (t *tunnel) Close() error { return t.up.Close() }

// CloseWrite passes on that the task has nothing more to say.
func (t *tunnel) CloseWrite() error {
	if half, ok := t.up.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// hijacked is a task's connection after an upgrade. What it has sent early is in the buffer of net/http, which
// ReverseProxy does not look into (go.dev/issue/80875).
type hijacked struct {
	net.Conn
	early *bufio.Reader
	limit time.Duration
}

// Read implements io.Reader.
func (h *hijacked) Read(p []byte) (int, error) {
	if n := h.early.Buffered(); n > 0 {
		return h.early.Read(p[:min(n, len(p))])
	}
	return h.Conn.Read(p)
}

// Write gives the task as long to take each piece as a client may do nothing.
func (h *hijacked) Write(p []byte) (int, error) {
	if h.limit > 0 {
		_ = h.SetWriteDeadline(time.Now().Add(h.limit))
	}
	return h.Conn.Write(p)
}

// CloseWrite passes on that the upstream has nothing more to say.
func (h *hijacked) CloseWrite() error {
	if half, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return os.ErrInvalid
}
