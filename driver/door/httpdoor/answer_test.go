package httpdoor

import (
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// TestTheCredentialCannotBeReadInAnAnswer has an upstream that repeats what it was sent in every place.
func TestTheCredentialCannotBeReadInAnAnswer(t *testing.T) {
	const password = "p4ss/word+=\"<"
	reflect := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, pass, _ := r.BasicAuth()
		must.Eq(t, password, pass)
		must.Eq(t, "identity", r.Header.Get("Accept-Encoding"))
		rw.Header().Set("X-Echo", r.Header.Get("Authorization")+" "+pass)
		rw.Header().Set("X-Query", r.URL.RawQuery)
		rw.Header().Set("Location", "https://elsewhere.example/?"+r.URL.RawQuery)
		fmt.Fprintf(rw, "%s\n%s\n%s\n%q\n%s\n", r.Header.Get("Authorization"), pass, r.URL.RawQuery, pass,
			base64.StdEncoding.EncodeToString([]byte("xx"+pass)))
		for _, b := range []byte(pass) {
			_, _ = rw.Write([]byte{b})
			_ = http.NewResponseController(rw).Flush()
		}
	})
	everyWay(t, reflect, func(b *bench, client *http.Client) {
		basic := base64.StdEncoding.EncodeToString([]byte("user:" + password))
		c := credential(2, "")
		c.Header = map[string]string{"Authorization": "Basic " + basic}
		c.Query = map[string]string{"key": password}
		b.door.Use(c)
		a := b.do(client, b.request("GET", "/", nil))
		must.Eq(b.T, 200, a.StatusCode)
		all := a.body + fmt.Sprint(a.Header)
		for _, s := range []string{password, basic, url.QueryEscape(password), `p4ss/word+=\"<`} {
			must.StrNotContains(b.T, all, s)
		}
		must.Eq(b.T, "Basic "+strings.Repeat("*", len(basic))+" "+strings.Repeat("*", len(password)),
			a.Header.Get("X-Echo"))
		must.StrHasSuffix(b.T, "\n"+strings.Repeat("*", len(password)), a.body)
	}, func(s *door.Spec) { s.HTTP.Header, s.HTTP.Query = []string{"Authorization"}, []string{"key"} })
}

func TestScrubOnlyWhereItIsAskedFor(t *testing.T) {
	reflect := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Echo", secret)
		rw.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(rw)
		fmt.Fprint(z, secret, r.Header.Get("Accept-Encoding"))
		_ = z.Close()
	})
	for scrub, want := range map[door.Scrub]struct{ header, body string }{
		door.ScrubHeaders: {strings.Repeat("*", len(secret)), secret + "gzip"},
		door.ScrubOff:     {secret, secret + "gzip"},
		door.ScrubFull:    {"", ""},
	} {
		b := open(t, reflect, func(s *door.Spec) { s.HTTP.Scrub = scrub })
		a := b.get("/", "Accept-Encoding", "gzip")
		must.Eq(t, want.header, a.Header.Get("X-Echo"))
		if scrub == door.ScrubFull { // what is compressed all the same cannot be looked into
			must.Eq(t, 502, a.StatusCode)
			must.Eq(t, errEncoded.Error(), a.Header.Get(errorHeader))
			continue
		}
		z, err := gzip.NewReader(strings.NewReader(a.body))
		must.NoError(t, err)
		body, err := io.ReadAll(z)
		must.NoError(t, err)
		must.Eq(t, want.body, string(body))
	}
}

func TestHeadersOfAnAnswerThatDoNotReachTheTask(t *testing.T) {
	b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Set-Cookie", "Alt-Svc", "X-Door-Error", "Keep-Alive", "Proxy-Authenticate",
			"X-Stays"} {
			rw.Header().Set(name, "a")
		}
	}))
	a := b.get("/")
	must.Eq(t, "a", a.Header.Get("X-Stays"))
	for _, name := range []string{"Set-Cookie", "Alt-Svc", "X-Door-Error", "Keep-Alive", "Proxy-Authenticate"} {
		must.Eq(t, "", a.Header.Get(name), must.Sprint(name))
	}
}

// TestRedirectsAreTheTasksOwn: none is followed, and only one within what the door reaches leads through it.
func TestRedirectsAreTheTasksOwn(t *testing.T) {
	reached := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }))
	t.Cleanup(other.Close)
	var to string
	b := open(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Location", strings.ReplaceAll(to, "ORIGIN", "http://"+r.Host))
		rw.WriteHeader(http.StatusFound)
	}), func(s *door.Spec) { s.HTTP.URL += "/v4"; s.Secret = "~seg" })
	b.overTCP()
	for location, want := range map[string]string{
		"ORIGIN/v4/a?b=c#d":      "/~seg/a?b=c#d",
		"/v4/a%2Fb":              "/~seg/a%2Fb",
		"/v4":                    "/~seg/",
		"a/b":                    "a/b",
		"?x":                     "?x",
		other.URL + "/v4/a":      other.URL + "/v4/a",
		"//other.example/v4/a":   "//other.example/v4/a",
		"/v5/a":                  "/v5/a",
		"/v4x":                   "/v4x",
		"ORIGIN/v4//evil/a":      "", // as it was
		"https://user:p@x.org/a": "https://user:p@x.org/a",
	} {
		to = location
		a := b.get("/~seg/x")
		must.Eq(t, 302, a.StatusCode)
		if want != "" {
			must.Eq(t, want, a.Header.Get("Location"))
		}
	}
	must.Eq(t, 0, reached)
}

func TestOrigins(t *testing.T) {
	for text, same := range map[string]bool{"https://api.example.com/": true, "https://API.example.com:443/x": true,
		"http://api.example.com/": false, "https://api.example.com:8443/": false, "https://u@api.example.com/": false,
		"https://api.example.com.evil.org/": false} {
		o, err := newOrigin("https://api.example.com")
		must.NoError(t, err)
		u, err := url.Parse(text)
		must.NoError(t, err)
		must.Eq(t, same, o.same(u), must.Sprint(text))
	}
}

func TestAnUpstreamThatCannotBeReached(t *testing.T) {
	b := openTo(t, "http://127.0.0.1:1")
	a := b.get("/")
	must.Eq(t, 502, a.StatusCode)
	must.True(t, a.byDoor())
	must.StrContains(t, b.last(1).Error, "connection refused")
	must.Eq(t, 1, b.door.Counters().Failed)

	b = openTo(t, "http://127.0.0.1:1", func(s *door.Spec) { s.Dial = door.Dial{} })
	a = b.get("/")
	must.Eq(t, 502, a.StatusCode)
	must.StrContains(t, a.body, "not one that the operator allows")
	must.StrContains(t, b.last(1).Error, "allow_cidrs")
}

// TestTheUpstreamProvesWhoItIs: by a certificate that is known, or there is no call.
func TestTheUpstreamProvesWhoItIs(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(echo))
	t.Cleanup(server.Close)
	b := openTo(t, server.URL)
	must.Eq(t, 502, b.get("/").StatusCode)
	must.StrContains(t, b.last(1).Error, "certificate")
}

// TestAnUpstreamsHeadersAreBounded, so that one call costs little.
func TestAnUpstreamsHeadersAreBounded(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("X-Large", strings.Repeat("x", 3*maxHeader))
	})
	everyWay(t, upstream, func(b *bench, client *http.Client) {
		must.Eq(b.T, 502, b.do(client, b.request("GET", "/", nil)).StatusCode)
		r := b.request("GET", "/", nil)
		r.Header.Set("X-Large", strings.Repeat("x", 2*maxHeader))
		res, err := client.Do(r)
		if err == nil {
			must.Eq(b.T, 431, res.StatusCode)
			res.Body.Close()
		}
	})
}
