package httpdoor

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"nomad-driver-vault/driver/door"
)

// Write implements net.Conn. What cannot be read as a request of HTTP/1, net/http answers by itself: no handler is
// asked, and nobody would know. Such an answer is the only one that is written before there was a request on the
// connection, or between two, and becomes one of the door's.
func (c *conn) Write(p []byte) (int, error) {
	if c.asked.Load() {
		return c.Conn.Write(p)
	}
	status, text, ok := ownAnswer(p)
	if !ok {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(c.of.unreadable(c.Conn, status, text)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ownAnswer returns the status of an answer that net/http has written by itself, and the status line from there on. The
// line has nothing of the request.
func ownAnswer(p []byte) (status int, text string, ok bool) {
	line, _, _ := bytes.Cut(p, []byte("\r\n"))
	protocol, text, _ := strings.Cut(string(line), " ")
	code, _, _ := strings.Cut(text, " ")
	status, err := strconv.Atoi(code)
	return status, text, err == nil && strings.HasPrefix(protocol, "HTTP/1.") && status >= 400
}

// unreadable records that a client has sent no request that can be read, and returns the answer.
func (d *httpDoor) unreadable(client net.Conn, status int, text string) []byte {
	d.total.Add(1)
	d.refused.Add(1)
	why := "the request cannot be read: " + text
	d.record(&door.Call{Time: time.Now(), Status: status, Refused: why}, client)
	var b bytes.Buffer
	h := http.Header{"Connection": {"close"}}
	setOwn(h, why)
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	_ = h.Write(&b)
	fmt.Fprintf(&b, "\r\n%s", d.own(why))
	return b.Bytes()
}
