package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxIdle bounds the sockets to one cluster that are kept open: HTTP/2 needs one, HTTP/1.1 behind some load balancers
	// needs a few. Nothing bounds those in use: requests that hang would keep the others waiting.
	maxIdle = 16
	// silence is how long a shared HTTP/2 connection may say nothing before it is asked whether it is there, and then how
	// long it may take to answer. A firewall that forgot the connection would otherwise hold every task's requests until
	// TCP gives up, after a quarter of an hour.
	silence = 4 * time.Second
	// dialWithin is how long it may take to connect, and then how long the TLS handshake.
	dialWithin = 5 * time.Second
	// mostAnswer bounds an answer as it is unpacked: a kilobyte of gzip can be a megabyte. An entry of KV has one at
	// most where Vault's storage is not told otherwise, and a list with this length has some 400,000 names.
	mostAnswer = 16 << 20
)

// transport sends the request of a context by detachForCreate one time only: net/http by itself repeats a GET whose
// answer was lost on a kept connection, and a second GET of database/creds is a second user. It keeps to the rate
// limit, here rather than in the Vault API's own limiter, which lets a request pass when its deadline is too near to
// wait. It bounds what an answer can be, and where it can send us. And it looks at Vault's clock.
type transport struct {
	*http.Transport
	address *url.URL
	limit   *rate.Limiter
	ahead   *atomic.Int64
}

// CloseIdleConnections does nothing: the Vault API's library calls it after each request that failed, and they are the
// connections of every task.
func (t transport) CloseIdleConnections() {}

// errThrottled is why a request was not sent whose time would have been over before its turn.
var errThrottled = errors.New("too many requests before it")

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	if waiting, creating := ctx.Value(waiterKey{}).(context.Context); creating {
		ctx = waiting // as long as nothing is sent
	}
	if ctx != r.Context() && r.Method == http.MethodGet {
		// a copy: a RoundTripper must not change what it is given
		r = r.WithContext(r.Context())
		r.Body, r.GetBody = io.NopCloser(strings.NewReader("")), nil // a body that cannot be had twice is not sent twice
	}
	if t.limit.Wait(ctx) != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, cmp.Or(ctx.Err(), errThrottled)
	}
	within, _ := r.Context().Value(limitKey{}).(time.Duration)
	answer, err := t.send(r, within)
	if err != nil {
		return nil, err
	}
	t.compare(answer.Header.Get("Date"), time.Now())
	answer.Body = http.MaxBytesReader(nil, answer.Body, mostAnswer)
	if err := t.checkRedirect(r, answer); err != nil {
		answer.Body.Close()
		return nil, err
	}
	return answer, nil
}

// send is RoundTrip for a request whose turn it is. The answer must have been read within that time, zero: there is no
// limit. Where there is none in time, the connections that nobody uses at the moment may be as dead: without HTTP/2
// each of them would cost another attempt.
func (t transport) send(r *http.Request, within time.Duration) (*http.Response, error) {
	if within == 0 {
		return t.Transport.RoundTrip(r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), within)
	answer, err := t.Transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			t.Transport.CloseIdleConnections()
		}
		return nil, err
	}
	answer.Body = body{answer.Body, cancel}
	return answer, nil
}

// body is that of an answer, whose end is the end of the request.
type body struct {
	io.ReadCloser
	over context.CancelFunc
}

func (b body) Close() error {
	defer b.over()
	return b.ReadCloser.Close()
}

// sameTime is what two clocks may differ by that tell the same time: answers are dated in whole seconds, and are some
// time on their way.
const sameTime = 5 * time.Second

// compare takes note of the clock of who dated an answer (RFC 9110 §6.6.1). The few answers that tell an end as a point
// in time are understood by it.
func (t transport) compare(date string, now time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		return
	}
	ahead := at.Sub(now)
	if ahead.Abs() < sameTime {
		ahead = 0
	}
	t.ahead.Store(int64(ahead))
}

// rateLimit reads a Cluster's RateLimit; its bucket is full.
func rateLimit(text string) (*rate.Limiter, error) {
	if text == "" {
		return rate.NewLimiter(rate.Inf, 0), nil
	}
	perSecond, most, both := strings.Cut(text, ":")
	limit, err := strconv.ParseFloat(perSecond, 64)
	burst := int(math.Ceil(limit))
	if err == nil && both {
		burst, err = strconv.Atoi(most)
	}
	if err != nil || !(limit > 0 && limit <= farAway) || burst < 1 {
		return nil, fmt.Errorf("rate_limit %q is not a number of requests a second, or that and a burst, "+
			"such as \"50\" or \"50:100\"", text)
	}
	return rate.NewLimiter(rate.Limit(limit), burst), nil
}

// shape makes the transport one that many tasks can share.
func shape(t *http.Transport, dial dialer) {
	t.MaxIdleConnsPerHost = maxIdle
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: silence}
	t.DialContext, t.TLSHandshakeTimeout = dial, dialWithin
}
