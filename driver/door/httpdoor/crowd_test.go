package httpdoor

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2"

	"nomad-driver-vault/driver/door"
)

// TestCallsAtATimeAreBounded: each call has memory that the doors of a node share, also while it waits.
func TestCallsAtATimeAreBounded(t *testing.T) {
	over := make(chan struct{})
	b := open(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }),
		func(s *door.Spec) { s.MaxConns, s.IdleTimeout = 10, time.Minute })
	t.Cleanup(func() { close(over) })
	ctx, stop := context.WithCancel(t.Context())
	answers := make(chan *http.Response, 10*maxStreams)
	for range 10 {
		h2 := &http2.Transport{AllowHTTP: true, DialTLSContext: func(context.Context, string, string, *tls.Config) (
			net.Conn, error) {
			return b.connect()
		}}
		t.Cleanup(h2.CloseIdleConnections)
		for range maxStreams {
			go func() {
				r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://door/", nil)
				if res, err := h2.RoundTrip(r); err == nil {
					answers <- res
				}
			}()
		}
	}
	const most = 10 + moreStreams
	for range 10*maxStreams - most {
		var res *http.Response
		select {
		case res = <-answers:
		case <-time.After(10 * time.Second):
			t.Fatal("not refused: ", b.door.Counters())
		}
		must.Eq(t, http.StatusTooManyRequests, res.StatusCode)
		must.Eq(t, "too many calls at a time: max_conns", res.Header.Get(errorHeader))
		must.NoError(t, res.Body.Close())
	}
	b.until("only the refused ones are over", func() bool { return b.door.Counters().InFlight == most })
	stop()
	b.until("all are over", func() bool { return b.door.Counters().InFlight == 0 })
}

// TestWhoTakesNoRefusalLosesTheConnection: what is refused has memory too until the client has taken the answer.
func TestWhoTakesNoRefusalLosesTheConnection(t *testing.T) {
	d := must1(t, specOf("http://127.0.0.1:1"))
	client, theirs := net.Pipe()
	defer theirs.Close()
	c := &conn{Conn: client, of: &d.conns}
	most := int64(d.spec.MaxConns + moreStreams)
	must.NoError(t, d.room(c, most))
	must.ErrorContains(t, d.room(c, 2*most), "max_conns")
	must.False(t, c.gone)
	must.ErrorContains(t, d.room(c, 2*most+1), "max_conns")
	must.True(t, c.gone)
}

func must1(t *testing.T, spec door.Spec) *httpDoor {
	t.Helper()
	d, err := New(spec, &plugin{})
	must.NoError(t, err)
	return d.(*httpDoor)
}

// TestAnAnswerThatNobodyReadsIsNotTaken: what of it waits in the door is bounded also where the upstream speaks HTTP/2.
func TestAnAnswerThatNobodyReadsIsNotTaken(t *testing.T) {
	const calls, most = 8, 1 << 20 // net/http's own bound is 4 MiB
	var told atomic.Int64
	b := openTLS(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		for err := error(nil); err == nil; {
			var n int
			n, err = rw.Write(make([]byte, 4<<10))
			told.Add(int64(n))
		}
	}), func(s *door.Spec) { s.IdleTimeout = time.Minute })
	for range calls {
		c, _ := b.dial()
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: d\r\n\r\n")
		must.NoError(t, err)
	}
	last, since := int64(0), time.Now()
	b.until("all are stuck", func() bool {
		if now := told.Load(); now != last {
			last, since = now, time.Now()
		}
		return last > 0 && time.Since(since) > soon
	})
	t.Log("bytes of each call:", last/calls)
	must.Less(t, most, last/calls)
}
