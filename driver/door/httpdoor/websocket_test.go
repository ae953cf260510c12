package httpdoor

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// websockets is an upstream that echoes messages as it got them, after what the path asks for.
func websockets(rw http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{EnableCompression: true, WriteBufferSize: 4096}
	c, err := up.Upgrade(rw, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	code, _ := strconv.Atoi(r.URL.Query().Get("code"))
	switch r.URL.Path {
	case "/hello": // with the answer's header, before the client has said anything
		for i := range 10 {
			_ = c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, "hello %d", i))
		}
	case "/ping":
		_ = c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(time.Second))
	case "/close":
		_ = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(code, "as you like"))
	case "/drop":
		return
	}
	for {
		kind, message, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// A socket is a websocket's client that notes what it gets.
type socket struct {
	*websocket.Conn
	notes []string
}

func (s *socket) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// read notes messages and what is between them, until there were so many or the connection has ended.
func (s *socket) read(messages int) {
	for range messages {
		kind, message, err := s.ReadMessage()
		if ended := new(websocket.CloseError); errors.As(err, &ended) {
			s.note("closed %d %s", ended.Code, ended.Text)
			return
		} else if err != nil {
			s.note("broken")
			return
		}
		s.note("%d of %d bytes %08x", kind, len(message), crc32.ChecksumIEEE(message))
	}
}

func (s *socket) echo(kind int, message string) {
	_ = s.WriteMessage(kind, []byte(message))
	s.read(1)
}

// fragment sends a message in several frames of the sizes, with a ping after each of them.
func (s *socket) fragment(sizes ...int) {
	w, _ := s.NextWriter(websocket.BinaryMessage)
	for _, size := range sizes {
		_, _ = w.Write(make([]byte, size)) // a frame for each 4 KiB
		_ = s.WriteControl(websocket.PingMessage, []byte("between"), time.Now().Add(time.Second))
	}
	_ = w.Close()
	s.read(1)
}

func (s *socket) bye(code int, reason string) {
	_ = s.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason))
	s.read(1)
}

// bytes sends what is no frame, or none that may be.
func (s *socket) bytes(text string) {
	_, _ = s.NetConn().Write([]byte(text))
	s.read(1)
}

// websocketCases are what the Autobahn test suite is about, as far as a proxy can do it wrong.
func websocketCases() map[string]func(*socket) {
	text, binary := websocket.TextMessage, websocket.BinaryMessage
	cases := map[string]func(*socket){
		"/ of all sizes": func(s *socket) {
			for _, size := range []int{0, 1, 125, 126, 127, 128, 4095, 4096, 65535, 65536, 1 << 20} {
				s.echo(text, strings.Repeat("x", size))
				s.echo(binary, strings.Repeat("\x00", size))
			}
		},
		"/ in single bytes": func(s *socket) {
			for _, b := range []byte("\x81\x85\x00\x00\x00\x00hello") {
				_, _ = s.NetConn().Write([]byte{b})
			}
			s.read(1)
		},
		"/ in UTF-8": func(s *socket) { s.echo(text, "κόσμε \U0001F310 \uFFFF") },
		"/ fragmented": func(s *socket) {
			s.fragment(1, 4096, 70000)
			s.fragment(0, 0, 0)
			s.fragment(5000)
		},
		"/ many at once": func(s *socket) {
			for i := range 500 {
				_ = s.WriteMessage(text, []byte(strings.Repeat("y", i)))
			}
			s.read(500)
		},
		"/ping from the upstream": func(s *socket) { s.echo(text, "x") },
		"/ pong unasked": func(s *socket) {
			_ = s.WriteControl(websocket.PongMessage, []byte("nobody asked"), time.Now().Add(time.Second))
			s.echo(text, "x")
		},
		"/hello early":      func(s *socket) { s.read(10) },
		"/drop":             func(s *socket) { s.read(1) },
		"/ no close code":   func(s *socket) { s.bytes("\x88\x80\x00\x00\x00\x00") },
		"/ reserved bits":   func(s *socket) { s.bytes("\xb1\x81\x00\x00\x00\x00x") },
		"/ reserved opcode": func(s *socket) { s.bytes("\x83\x80\x00\x00\x00\x00") },
		"/ no mask":         func(s *socket) { s.bytes("\x81\x01x") },
		"/ ping too long": func(s *socket) {
			s.bytes("\x89\xfe\x00\x7e\x00\x00\x00\x00" + strings.Repeat("x", 126))
		},
		"/ continuation of nothing": func(s *socket) { s.bytes("\x80\x80\x00\x00\x00\x00") },
		"/ length with the highest bit": func(s *socket) {
			s.bytes("\x82\xff" + strings.Repeat("\xff", 8) + "\x00\x00\x00\x00")
		},
	}
	for _, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999} {
		cases[fmt.Sprint("/ bye ", code)] = func(s *socket) { s.bye(code, "reason") }
		cases[fmt.Sprintf("/close?code=%d by the upstream", code)] = func(s *socket) { s.read(1) }
	}
	return cases
}

// TestWebsocketsAreAsWithoutADoor: each case has the same end through a door as at its upstream.
func TestWebsocketsAreAsWithoutADoor(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(websockets))
	t.Cleanup(upstream.Close)
	address := upstream.Listener.Addr()
	dials := map[string]func(context.Context, string, string) (net.Conn, error){}
	for _, scrub := range []door.Scrub{door.ScrubFull, door.ScrubOff} {
		b := openTo(t, upstream.URL, func(s *door.Spec) { s.HTTP.Scrub = scrub })
		dials["scrub "+string(scrub)] = func(context.Context, string, string) (net.Conn, error) { return b.connect() }
	}
	for name, run := range websocketCases() {
		path, _, _ := strings.Cut(name, " ")
		play := func(dial func(context.Context, string, string) (net.Conn, error), compressed bool) []string {
			dialer := websocket.Dialer{NetDialContext: dial, WriteBufferSize: 4096, EnableCompression: compressed}
			c, res, err := dialer.Dial("ws://"+address.String()+path, nil)
			must.NoError(t, err, must.Sprint(name))
			res.Body.Close()
			defer func() { _ = c.Close() }()
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			s := &socket{Conn: c}
			pong, ping := c.PongHandler(), c.PingHandler()
			c.SetPongHandler(func(data string) error { s.note("pong %s", data); return pong(data) })
			c.SetPingHandler(func(data string) error { s.note("ping %s", data); return ping(data) })
			run(s)
			return s.notes
		}
		for _, compressed := range []bool{false, true} {
			want := play((&net.Dialer{}).DialContext, compressed)
			must.Positive(t, len(want))
			must.False(t, slices.ContainsFunc(want, func(n string) bool { return n == "broken" }), must.Sprint(name))
			for side, dial := range dials {
				must.Eq(t, want, play(dial, compressed), must.Sprint(name, " ", side))
			}
		}
	}
}
