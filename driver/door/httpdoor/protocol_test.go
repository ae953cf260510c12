package httpdoor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// everyWay runs a test over each pair of protocols to the door and to the upstream.
func everyWay(t *testing.T, upstream http.Handler, f func(*bench, *http.Client), change ...func(*door.Spec)) {
	for name, way := range map[string]struct {
		open   func(*testing.T, http.Handler, ...func(*door.Spec)) *bench
		client func(*bench) *http.Client
	}{"1.1 to 1.1": {open, (*bench).http1}, "1.1 to 2": {openTLS, (*bench).http1}, "2 to 1.1": {open, (*bench).http2},
		"2 to 2": {openTLS, (*bench).http2}} {
		t.Run(name, func(t *testing.T) {
			b := way.open(t, upstream, change...)
			f(b, way.client(b))
		})
	}
}

// TestEventsAreNotDelayed has an upstream that sends the next event only when the one before it has arrived.
func TestEventsAreNotDelayed(t *testing.T) {
	arrived := make(chan bool)
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range 20 {
			fmt.Fprintf(rw, "data: %d sk-live-\n\n", i) // ends an event like the secret begins
			_ = http.NewResponseController(rw).Flush()
			<-arrived
		}
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		res, err := client.Do(b.request("GET", "/", nil))
		must.NoError(b.T, err)
		defer res.Body.Close()
		lines := bufio.NewScanner(res.Body)
		for i := range 20 {
			must.True(b.T, lines.Scan())
			must.Eq(b.T, fmt.Sprintf("data: %d sk-live-", i), lines.Text())
			must.True(b.T, lines.Scan())
			arrived <- true
		}
		must.False(b.T, lines.Scan())
	})
}

// TestBothWaysAtOnce has an upstream that answers each piece of a body before it gets the next, as gRPC streams do.
func TestBothWaysAtOnce(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		_ = rc.EnableFullDuplex()
		rw.WriteHeader(200)
		_ = rc.Flush()
		piece := make([]byte, 5)
		for {
			if _, err := io.ReadFull(r.Body, piece); err != nil {
				return
			}
			_, _ = rw.Write(bytes.ToUpper(piece))
			_ = rc.Flush()
		}
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		in, out := io.Pipe()
		res, err := client.Do(b.request("POST", "/", in))
		must.NoError(b.T, err)
		defer res.Body.Close()
		piece := make([]byte, 5)
		for range 10 {
			_, err = out.Write([]byte("hello"))
			must.NoError(b.T, err)
			_, err = io.ReadFull(res.Body, piece)
			must.NoError(b.T, err)
			must.Eq(b.T, "HELLO", string(piece))
		}
		must.NoError(b.T, out.Close())
		_, err = res.Body.Read(piece)
		must.ErrorIs(b.T, err, io.EOF)
	})
}

// TestTrailers has an answer of gRPC: its status is in the trailers, announced or not.
func TestTrailers(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Header.Get("Te") != "trailers" {
			t.Error(r.Proto, r.Header)
		}
		rw.Header().Set("Content-Type", "application/grpc")
		rw.Header().Set("Trailer", "Grpc-Status")
		if r.URL.Path == "/body" {
			_, _ = rw.Write([]byte("\x00\x00\x00\x00\x02hi"))
		}
		rw.Header().Set("Grpc-Status", "7")
		rw.Header().Set(http.TrailerPrefix+"Grpc-Message", "denied to "+secret)
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		for _, path := range []string{"/body", "/none"} {
			r := b.request("POST", path, strings.NewReader("\x00\x00\x00\x00\x00"))
			r.Header.Set("Te", "trailers")
			a := b.do(client, r)
			must.Eq(b.T, "7", a.Trailer.Get("Grpc-Status"))
			must.Eq(b.T, "denied to "+strings.Repeat("*", len(secret)), a.Trailer.Get("Grpc-Message"))
		}
	})
}

// TestGRPCWithoutTLS: gRPC has no other protocol than HTTP/2, which is spoken from the first byte then.
func TestGRPCWithoutTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.Proto, r.Header.Get("X-Api-Key") == secret)
	}))
	server.Config.Protocols = &http.Protocols{}
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	b := openTo(t, server.URL)
	r := b.request("POST", "/", strings.NewReader("x"))
	must.Eq(t, "HTTP/1.1true", b.do(b.h2, r).body)
	r = b.request("POST", "/", strings.NewReader("x"))
	r.Header.Set("Content-Type", "application/grpc")
	must.Eq(t, "HTTP/2.0true", b.do(b.h2, r).body)
}

// TestLargeBodies sends 16 MiB and gets them back, through the scrubber.
func TestLargeBodies(t *testing.T) {
	const size = 16 << 20
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		_, _ = io.Copy(rw, r.Body)
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		sent, got := sha256.New(), sha256.New()
		random := rand.NewChaCha8([32]byte{1})
		res, err := client.Do(b.request("PUT", "/", io.TeeReader(io.LimitReader(random, size), sent)))
		must.NoError(b.T, err)
		n, err := io.Copy(got, res.Body)
		must.NoError(b.T, err)
		must.NoError(b.T, res.Body.Close())
		must.Eq(b.T, size, n)
		must.Eq(b.T, sent.Sum(nil), got.Sum(nil))
		line := b.last(1)
		must.Eq(b.T, size, line.Sent)
		must.Eq(b.T, size, line.Received)
	})
}

func TestContinue(t *testing.T) {
	var read atomic.Bool
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/denied" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(rw, len(body))
	})
	everyWay(t, upstream, func(b *bench, _ *http.Client) {
		client := &http.Client{Transport: b.client.Transport.(*http.Transport).Clone()}
		client.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
		for path, want := range map[string]int{"/": 200, "/denied": 403} {
			read.Store(false)
			var continued atomic.Bool
			r := b.request("POST", path, &noticed{strings.NewReader("hello"), &read})
			r.Header.Set("Expect", "100-continue")
			r = r.WithContext(httptrace.WithClientTrace(r.Context(),
				&httptrace.ClientTrace{Got100Continue: func() { continued.Store(true) }}))
			must.Eq(b.T, want, b.do(client, r).StatusCode)
			must.Eq(b.T, want == 200, continued.Load(), must.Sprint(path))
			must.Eq(b.T, want == 200, read.Load(), must.Sprint(path))
		}
		client.CloseIdleConnections()
	})
}

// noticed is a body of which is known whether it was read.
type noticed struct {
	io.Reader
	read *atomic.Bool
}

func (n *noticed) Read(p []byte) (int, error) { n.read.Store(true); return n.Reader.Read(p) }

// TestTheUpstreamSeesThatTheTaskGaveUp in the middle of an answer, and before there is one.
func TestTheUpstreamSeesThatTheTaskGaveUp(t *testing.T) {
	begun, gone := make(chan bool), make(chan bool)
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answering" {
			rw.WriteHeader(200)
			_ = http.NewResponseController(rw).Flush()
		}
		begun <- true
		<-r.Context().Done()
		gone <- true
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		for _, path := range []string{"/answering", "/silent"} {
			ctx, cancel := context.WithCancel(b.Context())
			go func() {
				if res, err := client.Do(b.request("GET", path, nil).WithContext(ctx)); err == nil {
					_, _ = io.ReadAll(res.Body)
					res.Body.Close()
				}
			}()
			<-begun
			cancel()
			<-gone
		}
		must.StrContains(b.T, b.last(2).Error, "broke off")
	})
}

// TestABodyThatBreaksOffIsNotWholeUpstream (Infisical/cli#397).
func TestABodyThatBreaksOffIsNotWholeUpstream(t *testing.T) {
	whole := make(chan bool, 1)
	upstream := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		whole <- err == nil
	})
	for _, head := range []string{"Content-Length: 1007\r\n\r\n" + strings.Repeat("x", 300),
		"Transfer-Encoding: chunked\r\n\r\n12c\r\n" + strings.Repeat("x", 300) + "\r\n",
		"Transfer-Encoding: chunked\r\n\r\n12c\r\nx"} {
		for _, open := range []func(*testing.T, http.Handler, ...func(*door.Spec)) *bench{open, openTLS} {
			b := open(t, upstream)
			c, _ := b.dial()
			_, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: d\r\n"+head)
			must.NoError(t, err)
			must.NoError(t, c.Close())
			b.last(1)
			select {
			case is := <-whole:
				must.False(t, is)
			default: // the upstream has not seen the request at all
			}
		}
	}
}

func TestAnUpstreamThatBreaksOffIsNotWholeForTheTask(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			rw.Header().Set("Content-Length", "100")
		}
		_, _ = rw.Write([]byte("half"))
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		for _, path := range []string{"/length", "/chunks"} {
			res, err := client.Do(b.request("GET", path, nil))
			if err == nil {
				_, err = io.ReadAll(res.Body)
				res.Body.Close()
			}
			must.Error(b.T, err, must.Sprint(path))
		}
	})
}

func TestHeadersThatComeBeforeTheAnswer(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Link", "</x?key="+secret+">")
		rw.Header().Set("Set-Cookie", "a=b")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Del("Link")
		rw.Header().Del("Set-Cookie")
		fmt.Fprint(rw, "hello")
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		var early textproto.MIMEHeader
		r := b.request("GET", "/", nil)
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(_ int, h textproto.MIMEHeader) error { early = h; return nil }}))
		must.Eq(b.T, "hello", b.do(client, r).body)
		must.Eq(b.T, "</x?key="+strings.Repeat("*", len(secret))+">", early.Get("Link"))
		must.Eq(b.T, "", early.Get("Set-Cookie"))
	})
}

func TestHEADKeepsTheLength(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "1234")
		rw.Header().Set("Content-Encoding", "gzip")
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		must.Eq(b.T, 1234, b.do(client, b.request("HEAD", "/", nil)).ContentLength)
	})
}

const upgrade = "GET /ws HTTP/1.1\r\nHost: d\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
	"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"

// wsEcho is a server of websockets that sends each frame back, unmasked.
func wsEcho(rw http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn,
		"HTTP/1.1 101 %s\r\nConnection: Upgrade, X-Secret\r\nUpgrade: WebSocket\r\nX-Secret: a\r\nX-Key: %s\r\n"+
			"X-Extensions: %s\r\n\r\n", secret, r.Header.Get("X-Api-Key"), r.Header.Get("Sec-Websocket-Extensions"))
	for {
		kind, payload, err := readFrame(buffered)
		if err != nil {
			return
		}
		_, _ = conn.Write(frame(kind, payload))
		if kind == 8 {
			return
		}
	}
}

// frame is a frame of a server; a client's has a mask of zeros.
func frame(kind byte, payload string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x80 | kind, 126}, uint16(len(payload)))
	return append(b, payload...)
}

func readFrame(r io.Reader) (kind byte, payload string, err error) {
	var head [4]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return 0, "", err
	}
	b := make([]byte, binary.BigEndian.Uint16(head[2:]))
	_, err = io.ReadFull(r, b)
	return head[0] & 0xf, string(b), err
}

func TestWebsocket(t *testing.T) {
	b := open(t, http.HandlerFunc(wsEcho))
	c, r := b.dial()
	early := string(frame(1, "early")) // in one piece with the request (go.dev/issue/80875)
	_, err := io.WriteString(c, upgrade+early)
	must.NoError(t, err)
	res, err := http.ReadResponse(r, nil)
	must.NoError(t, err)
	must.Eq(t, "101 Switching Protocols", res.Status)
	must.Eq(t, []string{"Upgrade"}, res.Header["Connection"])
	must.Eq(t, "", res.Header.Get("X-Secret"))
	must.Eq(t, strings.Repeat("*", len(secret)), res.Header.Get("X-Key"))
	must.Eq(t, "", res.Header.Get("X-Extensions")) // the door must be able to read the frames
	_, payload, err := readFrame(r)
	must.NoError(t, err)
	must.Eq(t, "early", payload)
	for i, text := range []string{"hello", "s", "sk-l", "key: " + secret, strings.Repeat("long", 10000), ""} {
		_, err := c.Write(frame(byte(1+i%2), text))
		must.NoError(t, err)
		kind, payload, err := readFrame(r)
		must.NoError(t, err, must.Sprint(i))
		must.Eq(t, byte(1+i%2), kind)
		must.Eq(t, strings.ReplaceAll(text, secret, strings.Repeat("*", len(secret))), payload)
	}
	must.Eq(t, 1, b.door.Counters().InFlight)
	_, err = c.Write(frame(8, "\x03\xe8"))
	must.NoError(t, err)
	kind, payload, err := readFrame(r)
	must.NoError(t, err)
	must.Eq(t, 8, kind)
	must.Eq(t, "\x03\xe8", payload)
	_, err = r.ReadByte()
	must.ErrorIs(t, err, io.EOF) // the upstream's end is the task's
	must.NoError(t, c.Close())
	line := b.last(1)
	must.Eq(t, 101, line.Status)
	must.Greater(t, 40000, line.Sent)
	must.Greater(t, 40000, line.Received)
}

func TestAWebsocketThatTheUpstreamRefuses(t *testing.T) {
	b := open(t, http.HandlerFunc(echo), noScrub)
	a := b.raw(upgrade)
	must.Eq(t, 200, a.StatusCode)
	must.StrContains(t, a.body, "Sec-Websocket-Extensions: permessage-deflate\n")
}

func TestAnUpgradeThatWasNotAskedFor(t *testing.T) {
	for _, to := range []string{"h2c", "websocket"} {
		b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(rw).Hijack()
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", to)
		}))
		a := b.get("/")
		must.Eq(t, 502, a.StatusCode, must.Sprint(to))
		must.True(t, a.byDoor())
	}
	b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		conn, _, _ := http.NewResponseController(rw).Hijack()
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	}))
	must.Eq(t, 502, b.raw(upgrade).StatusCode)
}
