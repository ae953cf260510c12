package httpdoor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"

	"nomad-driver-vault/driver/door"
)

// errorHeader is set in the answers that a door itself gives, and in no other. Its value says why.
const errorHeader = "X-Door-Error"

// A call is a request and its answer. It is what ReverseProxy asks for all that a door does differently: it is the
// proxy's ResponseWriter to the task and its RoundTripper to the upstream.
type call struct {
	http.ResponseWriter
	door    *httpDoor
	in      *http.Request
	client  *http.ResponseController
	began   time.Time
	segment string // that the path began with; the request does not have it any more
	target  target
	gen     *generation // nil: refused before it had one
	upload  *upload     // nil: the request has no body
	writing *watch      // of the task, which must take what is sent to it
	renewed bool        // the credential was denied once
	whole   bool        // the answer was sent to its end
	line    door.Call   // of the record, as far as it is known

	sent, received atomic.Int64 // bytes; a websocket counts on for a moment when its call has ended
}

// ServeHTTP serves a task's request.
func (d *httpDoor) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	c := &call{ResponseWriter: rw, door: d, in: r, client: http.NewResponseController(rw), began: time.Now()}
	if conn := ownConn(r); conn != nil {
		conn.asked.Store(true)
	}
	d.total.Add(1)
	calls := d.inFlight.Add(1)
	defer c.end()
	if err := c.admit(calls); err != nil {
		c.refuse(err)
		return
	}
	proxy := httputil.ReverseProxy{
		Rewrite:        c.rewrite,
		Transport:      c,
		ModifyResponse: c.answer,
		ErrorHandler:   c.failed,
		BufferPool:     buffers,
		FlushInterval:  flushInterval,
		ErrorLog:       silent,
	}
	in := *r // net/http looks at the body of its own request when the call has ended
	if c.upload != nil {
		in.Body = c.upload
	}
	proxy.ServeHTTP(c, &in)
	c.whole = true
	c.finish()
}

// room says why there is no room for the last of so many calls at a time. A client of HTTP/2 that does not even take
// the refusals loses its connection: all doors of the node share the memory that each call has.
func (d *httpDoor) room(client *conn, calls int64) error {
	most := int64(d.spec.MaxConns + moreStreams)
	if calls > 2*most && client != nil {
		_ = client.Close() // with all that it has not taken
	}
	if calls > most {
		return refusal{http.StatusTooManyRequests, errors.New("too many calls at a time: max_conns")}
	}
	return nil
}

var errSegment = errors.New("the path does not begin with the segment that the door's variable _URL has")

// admit judges a request, which is one of so many at a time, and has a generation for it if it is let through.
func (c *call) admit(calls int64) (err error) {
	_ = c.client.SetWriteDeadline(time.Time{}) // of the request before it on the connection
	c.writing = c.watch(c.client.SetWriteDeadline)
	if err := c.door.room(ownConn(c.in), calls); err != nil {
		return err
	}
	known := false
	c.segment = c.door.spec.SecretOf(connOf(c.in))
	if c.in.RequestURI, known = cutSegment(c.in.RequestURI, c.segment); !known {
		return errSegment
	}
	if err := judgeForm(c.in); err != nil {
		return refusal{http.StatusBadRequest, err}
	}
	if c.target, err = c.door.kind.judge(c.in); err != nil {
		return err
	}
	if l := c.door.limiter; l != nil && !l.Allow() {
		return refusal{http.StatusTooManyRequests, errors.New("the door's rate is exceeded")}
	}
	if c.gen, err = c.door.begin(); err != nil {
		return refusal{http.StatusServiceUnavailable, err}
	}
	if c.hasBody() {
		c.upload = newUpload(c.in.Body, c.watch(c.client.SetReadDeadline), &c.door.sent)
		if c.in.ProtoMajor == 1 {
			_ = c.client.EnableFullDuplex()
		}
	}
	return nil
}

func (c *call) hasBody() bool { return c.in.Body != nil && c.in.Body != http.NoBody }

// watch returns what ends a read or write that takes longer than a client may do nothing.
func (c *call) watch(deadline func(time.Time) error) *watch {
	return &watch{limit: c.door.spec.IdleTimeout, deadline: deadline}
}

// end records the call, and gives back what it had.
func (c *call) end() {
	d := c.door
	if c.upload != nil {
		c.upload.close()
	}
	if limit := d.spec.IdleTimeout; limit > 0 {
		_ = c.client.SetWriteDeadline(time.Now().Add(limit)) // for what net/http has in its buffer
	}
	if c.gen != nil && !c.whole {
		c.brokeOff()
	}
	c.record()
	d.inFlight.Add(-1)
	if c.gen != nil {
		d.release(c.gen)
	}
}

// flushInterval is how long a piece of an answer waits for more, if its length is known. Others do not wait.
const flushInterval = 10 * time.Millisecond

// unreadTime is how long a client may take to send what is left of a body that nobody wants, and unread how much that
// may be, in bytes. net/http has the same bound.
const (
	unreadTime = 2 * time.Second
	unread     = 256 << 10
)

// finish reads what is left of a request's body after the answer, to keep the connection. net/http does that by itself,
// but in full duplex it then panics where the body ends: it has begun to wait for the next request meanwhile.
func (c *call) finish() {
	if c.upload == nil || c.upload.ended.Load() || c.in.ProtoMajor != 1 {
		return
	}
	_ = c.FlushError()
	if c.in.Header.Get("Expect") == "" {
		_ = c.client.SetReadDeadline(time.Now().Add(unreadTime))
		_, _ = io.CopyN(io.Discard, c.upload, unread)
	}
	if !c.upload.ended.Load() {
		_ = c.client.SetReadDeadline(time.Now()) // net/http closes the connection
	}
}

// brokeOff finds out who ended a call in the middle of its answer.
func (c *call) brokeOff() {
	switch {
	case c.line.Error != "":
	case c.in.Context().Err() != nil:
		c.line.Error = "the task broke off, or the door was closed"
	default:
		c.line.Error = "the upstream broke off in the middle of its answer"
		c.door.failed.Add(1)
	}
}

// A refusal is an answer of the door itself. Its text is fixed: nothing of the request or a credential is in it.
type refusal struct {
	status int
	error
}

func (r refusal) Unwrap() error { return r.error }

// refuse answers in the place of the upstream.
func (c *call) refuse(err error) {
	var r refusal
	if !errors.As(err, &r) {
		r = refusal{http.StatusForbidden, err}
	}
	if c.hasBody() && c.upload == nil {
		_ = c.client.SetReadDeadline(time.Now().Add(unreadTime)) // net/http reads some of it, to keep the connection
	}
	c.door.refused.Add(1)
	c.line.Refused = r.Error()
	c.say(r.status, r.Error())
}

// say writes an answer of the door's own.
func (c *call) say(status int, why string) {
	h := c.Header()
	clear(h)
	setOwn(h, why)
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	c.WriteHeader(status)
	fmt.Fprint(c, c.door.own(why))
}

// setOwn sets the headers of an answer of the door's own, and own returns its body.
func setOwn(h http.Header, why string) {
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set(errorHeader, why)
}

func (d *httpDoor) own(why string) string { return fmt.Sprintf("door %q: %s\n", d.spec.Name, why) }

// WriteHeader implements http.ResponseWriter.
func (c *call) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		// Headers that come before the answer do not pass through answer.
		for _, name := range notForTasks {
			c.Header().Del(name)
		}
		scrubHeader(c.Header(), c.gen.forms(c.door))
	} else if c.line.Status == 0 {
		c.line.Status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (c *call) Write(p []byte) (int, error) {
	c.writing.start()
	defer c.writing.stop()
	n, err := c.ResponseWriter.Write(p)
	if err != nil {
		c.line.Error = "the task broke off, or took nothing for too long"
	}
	return n, err
}

// FlushError is what http.ResponseController flushes with.
func (c *call) FlushError() error {
	c.writing.start()
	defer c.writing.stop()
	return c.client.Flush()
}

// Unwrap is how http.ResponseController finds all that is not done here.
func (c *call) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Hijack gives ReverseProxy the connection for a websocket.
func (c *call) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := c.client.Hijack()
	if err != nil {
		return nil, nil, err
	}
	c.line.Status = http.StatusSwitchingProtocols
	_ = conn.SetDeadline(time.Time{})
	return &hijacked{Conn: conn, early: rw.Reader, limit: c.door.spec.IdleTimeout}, rw, nil
}

// record completes the line of the call.
func (c *call) record() {
	line := &c.line
	line.Time, line.Duration = c.began, time.Since(c.began)
	path, _, _ := strings.Cut(c.in.RequestURI, "?")
	line.Method, line.Path = cut(c.in.Method, 32), cut(path, 2048)
	if c.gen != nil {
		line.With(c.gen.secret)
	}
	line.Sent, line.Received = c.sent.Load(), c.received.Load()
	if c.upload != nil {
		line.Sent = c.upload.size()
	}
	c.door.record(line, connOf(c.in))
}

// record tells the plugin what became of a call, if the operator wants to know.
func (d *httpDoor) record(line *door.Call, client net.Conn) {
	refused := line.Refused != ""
	var nth int64
	if !refused {
		nth = d.sampled.Add(1) - 1
	}
	if !d.spec.Record.Wants(nth, refused) {
		return
	}
	line.Door = d.spec.ID
	if peer, ok := door.PeerOf(client); ok {
		line.PID, line.UID = peer.PID, &peer.UID
	}
	d.plugin.Call(*line)
}

func cut(text string, length int) string { return text[:min(len(text), length)] }
