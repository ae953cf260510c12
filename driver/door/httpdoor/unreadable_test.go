package httpdoor

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestWhatIsNoRequestIsADoorsOwnAnswer, though net/http asks no handler, and the record has it.
func TestWhatIsNoRequestIsADoorsOwnAnswer(t *testing.T) {
	const good = "GET / HTTP/1.1\r\nHost: d\r\n\r\n"
	b := open(t, http.HandlerFunc(echo))
	lines := 0
	for request, status := range map[string]int{
		"GET / HTTP/1.1\r\nHost: d\r\nX-Large: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n": 431,
		"GET /a-path-alone\r\n\r\n":                                                      400,
		"GET / HTTP/1.1\r\n\r\n":                                                         400, // no host
		"GET / HTTP/3.0\r\nHost: d\r\n\r\n":                                              505,
		"GET / HTTP/1.1\r\nHost: d\r\nExpect: a wonder\r\n\r\n":                          417,
		"POST / HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: gzip\r\n\r\n":                  501,
		"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab": 400,
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n":                           400, // of TLS
	} {
		for _, before := range []string{"", good} {
			c, r := b.dial()
			for range strings.Count(before, good) {
				_, _ = io.WriteString(c, good)
				res, err := http.ReadResponse(r, nil)
				must.NoError(t, err)
				_, _ = io.Copy(io.Discard, res.Body)
				must.Eq(t, 200, res.StatusCode)
				lines++
			}
			_, _ = io.WriteString(c, request) // the door may hang up before it has all
			res, err := http.ReadResponse(r, nil)
			must.NoError(t, err)
			body, _ := io.ReadAll(res.Body)
			why := res.Header.Get(errorHeader)
			must.Eq(t, status, res.StatusCode, must.Sprint(request))
			must.StrHasPrefix(t, fmt.Sprint("the request cannot be read: ", status, " "), why)
			must.Eq(t, fmt.Sprintf("door \"api\": %s\n", why), string(body))
			lines++
			line := b.last(lines)
			must.Eq(t, status, line.Status)
			must.Eq(t, why, line.Refused)
			must.Eq(t, "alloc/task/api", line.Door)
		}
	}
	now := b.door.Counters()
	must.Eq(t, int64(lines), now.Calls)
	must.Eq(t, int64(lines/3*2), now.Refused)
}

// TestAnUpstreamsAnswerIsNotADoorsOwn, whatever is in it.
func TestAnUpstreamsAnswerIsNotADoorsOwn(t *testing.T) {
	const body = "HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n"
	large := strings.Repeat(body, 2000)
	everyWay(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(431)
		fmt.Fprint(rw, large)
	}), func(b *bench, client *http.Client) {
		for range 3 {
			a := b.do(client, b.request("GET", "/", nil))
			must.Eq(b.T, 431, a.StatusCode)
			must.False(b.T, a.byDoor())
			must.Eq(b.T, large, a.body)
		}
		must.Eq(b.T, 0, b.door.Counters().Refused)
	})
}

// TestPipelinedRequestsAreJudgedEach: the last of them is none.
func TestPipelinedRequestsAreJudgedEach(t *testing.T) {
	b := open(t, http.HandlerFunc(echo))
	c, r := b.dial()
	_, err := io.WriteString(c, strings.Repeat("GET /a HTTP/1.1\r\nHost: d\r\n\r\n", 3)+"GET\r\n\r\n")
	must.NoError(t, err)
	for _, want := range []int{200, 200, 200, 400} {
		res, err := http.ReadResponse(r, nil)
		must.NoError(t, err)
		_, _ = io.Copy(io.Discard, res.Body)
		must.Eq(t, want, res.StatusCode)
		must.Eq(t, want == 400, res.Header.Get(errorHeader) != "")
	}
	_, err = bufio.NewReader(c).ReadByte()
	must.ErrorIs(t, err, io.EOF)
}
