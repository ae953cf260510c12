package httpdoor

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

func TestTheCredentialIsAddedAndTheTasksOwnTakenAway(t *testing.T) {
	b := open(t, http.HandlerFunc(echo), noScrub,
		func(s *door.Spec) { s.HTTP.URL += "/v4"; s.HTTP.Query = []string{"key"} })
	c := credential(2, secret)
	c.Query = map[string]string{"key": "a b&c"}
	b.door.Use(c)
	a := b.get("/word.json/x%20y?key=mine&a=%2F+b&KEY=x", "x_api_key", "mine", "X-Api-Key", "mine", "Authorization",
		"mine",
		"Cookie", "mine", "X-Forwarded-For", "mine", "X-Original-Url", "/mine", "Accept", "a/b", "Connection", "X-Api-Key")
	must.Eq(t, 200, a.StatusCode)
	must.False(t, a.byDoor())
	must.StrHasPrefix(t, "GET /v4/word.json/x%20y?a=%2F+b&key=a+b%26c\nHost: 127.0.0.1", a.body)
	must.StrContains(t, a.body, "X-Api-Key: "+secret+"\n")
	must.StrContains(t, a.body, "Accept: a/b\n")
	must.StrNotContains(t, a.body, "mine")
	line := b.last(1)
	must.Eq(t, "/word.json/x%20y", line.Path)
	must.Eq(t, 200, line.Status)
	must.Eq(t, 2, line.Generation)
	must.Eq(t, "accessor-2", line.Accessor)
	must.Eq(t, []string{"lease"}, line.Leases)
	must.Eq(t, int64(len(a.body)), line.Received)
	must.Eq(t, "", line.Refused)
}

// TestBytesArriveAsTheyWereWritten has the forms that proxies have been seen to change.
func TestBytesArriveAsTheyWereWritten(t *testing.T) {
	b := open(t, http.HandlerFunc(echo), func(s *door.Spec) { s.HTTP.EncodedSlash = true })
	for _, uri := range []string{"/a%2Fb", "/a%2fb", "/a%20b", "/a+b", "/%41", "/a:b@c", "/a?", "/a?x",
		"/a?a=%2F&b=+&c=%20&&",
		"/a?a=b?c", "/(a)'!*", "/caf%C3%A9?caf%C3%A9=%e9", "/~a/", "/a?x=a:b/c@d,e", "/[a]"} {
		a := b.raw("GET " + uri + " HTTP/1.1\r\nHost: door:80\r\nConnection: close\r\n\r\n")
		must.StrHasPrefix(t, "GET "+uri+"\n", a.body)
	}
}

// refusedForms are sent byte for byte.
var refusedForms = map[string]string{
	"absolute":                    "GET http://other/public/x HTTP/1.1\r\nHost: other\r\n\r\n",
	"absolute of the upstream":    "GET https://door/public/x HTTP/1.1\r\nHost: door\r\n\r\n",
	"asterisk":                    "OPTIONS * HTTP/1.1\r\nHost: door\r\n\r\n",
	"CONNECT":                     "CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n",
	"TRACE":                       "TRACE /public/x HTTP/1.1\r\nHost: door\r\n\r\n",
	"another method":              "DELETE /public/x HTTP/1.1\r\nHost: door\r\n\r\n",
	"method in lower case":        "get /public/x HTTP/1.1\r\nHost: door\r\n\r\n",
	"another path":                "GET /secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"a longer path":               "GET /one/x HTTP/1.1\r\nHost: door\r\n\r\n",
	"dots":                        "GET /public/../secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"encoded dots":                "GET /public/%2e%2e/secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"twice encoded dots":          "GET /public/%252e%252e/secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"dots and parameters":         "GET /public/..;/secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"dots and encoded parameters": "GET /public/..%3bx/secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"encoded slash":               "GET /public/..%2fsecret HTTP/1.1\r\nHost: door\r\n\r\n",
	"backslash":                   "GET /public/..\\secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"encoded backslash":           "GET /public/..%5csecret HTTP/1.1\r\nHost: door\r\n\r\n",
	"empty segment":               "GET //other/public/x HTTP/1.1\r\nHost: door\r\n\r\n",
	"overlong UTF-8":              "GET /public/%c0%ae%c0%ae/secret HTTP/1.1\r\nHost: door\r\n\r\n",
	"NUL":                         "GET /public/x%00.txt HTTP/1.1\r\nHost: door\r\n\r\n",
	"line break":                  "GET /public/x%0d%0aX-A:1 HTTP/1.1\r\nHost: door\r\n\r\n",
	"not ASCII":                   "GET /public/\xc3\xa4 HTTP/1.1\r\nHost: door\r\n\r\n",
	"fragment":                    "GET /public/x#y HTTP/1.1\r\nHost: door\r\n\r\n",
	"semicolon in the query":      "GET /public/x?a;b HTTP/1.1\r\nHost: door\r\n\r\n",
	"broken query":                "GET /public/x?a=%zz HTTP/1.1\r\nHost: door\r\n\r\n",
	"h2c": "GET /public/x HTTP/1.1\r\nHost: door\r\n" +
		"Connection: Upgrade, HTTP2-Settings\r\n" +
		"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
	"two protocols": "GET /public/x HTTP/1.1\r\nHost: door\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
	"two upgrades": "GET /public/x HTTP/1.1\r\nHost: door\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Upgrade: h2c\r\n\r\n",
	"websocket with a body": "GET /public/x HTTP/1.1\r\nHost: door\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Content-Length: 3\r\n\r\nabc",
	"websocket by POST": "POST /public/x HTTP/1.1\r\nHost: door\r\nConnection: Upgrade\r\n" +
		"Upgrade: websocket\r\n\r\n",
	"TLS in cleartext upgrade": "GET /public/x HTTP/1.1\r\nHost: door\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
}

// TestFormsThatAreRefused sends each over a connection of its own, byte for byte. The upstream sees none of them.
func TestFormsThatAreRefused(t *testing.T) {
	b := open(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") }),
		func(s *door.Spec) {
			s.HTTP.Methods, s.HTTP.Paths = []string{"GET", "POST"}, []string{"/public/*", "/one"}
		})
	for name, request := range refusedForms {
		a := b.raw(request)
		must.True(t, a.StatusCode == 400 || a.StatusCode == 403, must.Sprint(name, a.Status))
		if a.StatusCode == 400 && !a.byDoor() {
			must.SliceContains(t, []string{"backslash", "not ASCII", "CONNECT"}, name) // net/http itself
			continue
		}
		must.True(t, a.byDoor(), must.Sprint(name))
		must.StrContains(t, a.body, `door "api": `+a.Header.Get(errorHeader))
		must.StrNotContains(t, a.body, "secret", must.Sprint(name))
	}
	must.Eq(t, b.door.Counters().Calls, b.door.Counters().Refused)
}

// TestSmuggling has requests of which servers disagree where they end. One request reaches the upstream, or none.
func TestSmuggling(t *testing.T) {
	for name, c := range map[string]struct{ request, body string }{
		"two lengths": {"POST /a HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nContent-Length: 40\r\n\r\nabc",
			""},
		"two lengths in one": {"POST /a HTTP/1.1\r\nHost: d\r\nContent-Length: 3, 40\r\n\r\nabc", ""},
		"length with a sign": {"POST /a HTTP/1.1\r\nHost: d\r\nContent-Length: +3\r\n\r\nabc", ""},
		"length and chunks": {"POST /a HTTP/1.1\r\nHost: d\r\nContent-Length: 60\r\nConnection: close\r\n" +
			"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"},
		"chunked twice": {"POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n" +
			"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""},
		"another encoding": {"POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", ""},
		"encoding with a tab": {"POST /a HTTP/1.1\r\nHost: d\r\nConnection: close\r\n" +
			"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", ""},
		"space before the colon": {"POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", ""},
		"two hosts":              {"GET /a HTTP/1.1\r\nHost: d\r\nHost: e\r\n\r\n", ""},
		"no host":                {"GET /a HTTP/1.1\r\n\r\n", ""},
		"NUL in a header":        {"GET /a HTTP/1.1\r\nHost: d\r\nX-A: a\x00b\r\n\r\n", ""},
		"bare CR in a header":    {"GET /a HTTP/1.1\r\nHost: d\r\nX-A: a\rX-B: c\r\n\r\n", ""},
		"a chunk size that wraps": {"POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"10000000000000003\r\nabc\r\n0\r\n\r\n", ""},
	} {
		var smuggled atomic.Bool
		b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			smuggled.CompareAndSwap(false, r.RequestURI == "/smuggled")
			echo(rw, r)
		}))
		a := b.raw(c.request + "GET /smuggled HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
		must.False(t, smuggled.Load(), must.Sprint(name))
		if a.StatusCode == 200 {
			must.StrHasSuffix(t, "\n\n"+c.body, a.body, must.Sprint(name))
		} else {
			must.Between(t, 400, a.StatusCode, 502, must.Sprint(name))
		}
	}
}

// TestTheSegmentIsDemandedAndCutOff: each process of the network can connect over TCP, but only the task knows it.
func TestTheSegmentIsDemandedAndCutOff(t *testing.T) {
	b := open(t, http.HandlerFunc(echo), func(s *door.Spec) {
		s.Secret, s.HTTP.Paths = "~5f3a", []string{"/a/*", "/"}
	})
	must.StrHasPrefix(t, "GET /a/b\n", b.get("/a/b").body, must.Sprint("nobody else can connect to the socket"))
	b.overTCP()
	must.StrHasPrefix(t, "GET /a/b?c/d\n", b.get("/~5f3a/a/b?c/d").body)
	must.Eq(t, "/a/b", b.last(2).Path)
	must.StrHasPrefix(t, "GET /?c\n", b.get("/~5f3a?c").body)
	must.StrHasPrefix(t, "GET /a/b\n", b.do(b.h2, b.request("GET", "/~5f3a/a/b", nil)).body)
	for _, path := range []string{"/a/b", "/~5f3b/a/b", "/", "/~5f3a/secret", "//~5f3a/a/b", "/?/~5f3a/a/b"} {
		must.Eq(t, 403, b.get(path).StatusCode, must.Sprint(path))
	}
	must.Eq(t, 400, b.raw("GET /~5f3a/../a/b HTTP/1.1\r\nHost: d\r\n\r\n").StatusCode)
	must.Eq(t, 403, b.raw("GET http://door/~5f3a/a/b HTTP/1.1\r\nHost: d\r\n\r\n").StatusCode)
	b.last(12)
	for _, line := range b.plugin.calls {
		must.StrNotContains(t, line.Path, "5f3a")
	}
}

func TestBlocksThatAreNoDoor(t *testing.T) {
	for field, change := range map[string]func(*door.HTTP){
		"url: ":                           func(h *door.HTTP) { h.URL = "ftp://a" },
		"url: it ":                        func(h *door.HTTP) { h.URL = "https://user:pass@a/" },
		"url: it i":                       func(h *door.HTTP) { h.URL = "https://a/?b" },
		"url: the path has a dot segment": func(h *door.HTTP) { h.URL = "https://a/b/../c" },
		`methods: "CONNECT"`:              func(h *door.HTTP) { h.Methods = []string{"CONNECT"} },
		`methods: "A B"`:                  func(h *door.HTTP) { h.Methods = []string{"A B"} },
		`paths: "/a/../b"`:                func(h *door.HTTP) { h.Paths = []string{"/a/../b"} },
		`header: "Host"`:                  func(h *door.HTTP) { h.Header = []string{"Host"} },
		`header: "a b"`:                   func(h *door.HTTP) { h.Header = []string{"a b"} },
		"query: ":                         func(h *door.HTTP) { h.Query = []string{""} },
		"ca_pem: ":                        func(h *door.HTTP) { h.CAs = []byte("x") },
		`scrub "some"`:                    func(h *door.HTTP) { h.Scrub = "some" },
	} {
		spec := specOf("https://api.example.com")
		change(spec.HTTP)
		_, err := New(spec, &plugin{})
		must.ErrorContains(t, err, field)
		must.StrNotContains(t, err.Error(), "pass@")
	}
	_, err := New(door.Spec{}, &plugin{})
	must.Error(t, err)
}

// TestACredentialThatIsNotWholeIsNone: a call without it would be one that nobody has allowed.
func TestACredentialThatIsNotWholeIsNone(t *testing.T) {
	for name, change := range map[string]func(*door.Credential){
		"no header":       func(c *door.Credential) { c.Header = nil },
		"empty header":    func(c *door.Credential) { c.Header["X-Api-Key"] = "" },
		"another header":  func(c *door.Credential) { c.Header = map[string]string{"X-Other": "a"} },
		"one header more": func(c *door.Credential) { c.Header["X-Other"] = "a" },
		"line break":      func(c *door.Credential) { c.Header["X-Api-Key"] = "a\r\nX-Other: b" },
		"NUL":             func(c *door.Credential) { c.Header["X-Api-Key"] = "a\x00" },
		"a parameter":     func(c *door.Credential) { c.Query = map[string]string{"key": "a"} },
		"a broken key":    func(c *door.Credential) { c.CertPEM, c.KeyPEM = []byte("x"), []byte("y") },
	} {
		b := open(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") }))
		c := credential(2, secret)
		change(c)
		b.door.Use(c)
		a := b.get("/")
		must.Eq(t, 503, a.StatusCode, must.Sprint(name))
		must.Eq(t, errBroken.Error(), a.Header.Get(errorHeader))
		must.True(t, b.plugin.isUnused(1))
	}
}

func TestRateIsADoorsOwnAnswer(t *testing.T) {
	b := open(t, http.HandlerFunc(echo), func(s *door.Spec) { s.Rate, s.Burst = 0.001, 3 })
	for range 3 {
		must.Eq(t, 200, b.get("/").StatusCode)
	}
	a := b.get("/")
	must.Eq(t, 429, a.StatusCode)
	must.True(t, a.byDoor())
	must.Eq(t, "1", a.Header.Get("Retry-After"))
}

func TestWhatIsRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		record door.Record
		want   int
	}{
		"all":        {door.Record{Calls: door.RecordAll}, 12},
		"one of ten": {door.Record{Calls: door.RecordAll, Sample: 10}, 3}, // and what is refused
		"denied":     {door.Record{Calls: door.RecordDenied, Sample: 10}, 2},
		"off":        {door.Record{Calls: door.RecordOff}, 0},
	} {
		b := open(t, http.HandlerFunc(echo), func(s *door.Spec) { s.Record, s.HTTP.Methods = c.record, []string{"GET"} })
		for range 10 {
			b.get("/a")
		}
		for range 2 {
			must.Eq(t, 403, b.do(b.client, b.request("PUT", "/a", strings.NewReader("x"))).StatusCode)
		}
		b.until("all calls have ended", func() bool { return b.door.Counters().InFlight == 0 })
		b.plugin.mu.Lock()
		must.Len(t, c.want, b.plugin.calls, must.Sprint(name))
		b.plugin.mu.Unlock()
	}
}
