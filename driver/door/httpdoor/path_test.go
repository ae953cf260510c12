package httpdoor

import (
	"net/http"
	"net/url"
	posix "path"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestPathsThatTwoServersCouldUnderstandInTwoWays(t *testing.T) {
	for why, all := range map[string][]string{
		"does not begin with a slash": {"", "a", "*", "http://a/b", `\a`, "%2fa"},
		"an empty segment":            {"//", "//evil/a", "/a//b", "/a//"},
		"must be percent-encoded, or a semicolon": {`/a\b`, "/a;x/../b", "/a;b", "/a b", "/a\x00", "/a\r\n", "/ä", "/a#b",
			"/a?b", "/a\xff", `/a"b`, "/a<b", "/a|b", "/{a}", "/a^b", "/a`b", "/a\x7f"},
		"an encoded dot":       {"/%2e", "/%2E%2e/a", "/a%2eb", "/.%2e/a", "/%252e", "/%25252e", "/%25%32e"},
		"an encoded backslash": {"/a%5cb", "/a%5C..", "/a%255cb"},
		"an encoded slash":     {"/a%2fb", "/a%2F", "/..%2fb", "/a%252fb"},
		"begins no escape":     {"/%", "/a%4", "/a%zz", "/%u002e"},
		"an encoded control character, or is not UTF-8": {"/a%00", "/a%0d%0a", "/%7f", "/%c0%ae", "/%c0%af", "/%ff",
			"/%c2%85"},
		"a dot segment": {"/.", "/..", "/a/.", "/a/..", "/a/./b", "/a/../b", "/a/..%3b/b", "/a/.%3bx/b", "/a/.%20/b",
			"/a/...", "/a/..%20.."},
	} {
		for _, raw := range all {
			_, err := judgePath(raw, false)
			must.ErrorContains(t, err, why, must.Sprint(raw))
		}
	}
	for _, raw := range []string{"/", "/a", "/a/", "/a/b.c", "/.well-known/x", "/a..b", "/caf%C3%A9", "/a%20b", "/a+b",
		"/a:b@c",
		"/a(b)", "/100%25", "/%41", "/a%3Bb", "/[a]", "/~x", "/a=b&c", "/%25zz"} {
		p, err := judgePath(raw, false)
		must.NoError(t, err, must.Sprint(raw))
		must.Eq(t, raw, (&url.URL{Path: p.decoded(), RawPath: p.raw}).EscapedPath())
	}
}

func TestEncodedSlashesWhereTheyAreLetThrough(t *testing.T) {
	for _, raw := range []string{"/a%2Fb", "/group%2fproject/files", "/a%252fb"} {
		_, err := judgePath(raw, true)
		must.NoError(t, err, must.Sprint(raw))
	}
	for _, raw := range []string{"/a/..%2fb", "/a%2f..%2fb", "/a%2f.", "/..%2f..", "/a%5c..%2fb", "/a%2f%2e"} {
		_, err := judgePath(raw, true)
		must.Error(t, err, must.Sprint(raw))
	}
}

func TestPatterns(t *testing.T) {
	for text, want := range map[string]map[string]bool{
		"/word.json/*": {"/word.json/x": true, "/word.json/x/y": true, "/word.json/": true, "/word.json": false,
			"/wordXjson/x": false, "/": false, "/a/word.json/x": false},
		"/a/*/c": {"/a/b/c": true, "/a/b%20x/c": true, "/a//c": false, "/a/b/d/c": false, "/a/b/c/": false,
			"/a/b%2fd/c": true},
		"/a/v*":     {"/a/v1": true, "/a/v": true, "/a/v1/x": true, "/a/w": false},
		"/*":        {"/": true, "/a": true, "/a/b": true},
		"/exact":    {"/exact": true, "/%65xact": true, "/exact/": false, "/EXACT": false, "/exact%20": false},
		"kv/data/*": {"/kv/data/a/b": true, "/kv/datax": false},
	} {
		p, err := newPattern(text)
		must.NoError(t, err, must.Sprint(text))
		for raw, match := range want {
			judged, err := judgePath(raw, true)
			must.Eq(t, match, err == nil && p.matches(judged.segments), must.Sprint(text, raw))
		}
	}
	for _, text := range []string{"/a*b", "/a/x*/b", "/a/**", "/a/../b", "/a//b", "/%61", "/a;b", "/./a", "/a?b", "*a"} {
		_, err := newPattern(text)
		must.Error(t, err, must.Sprint(text))
	}
}

func TestQueries(t *testing.T) {
	removed := namesOf("api_key", "Token")
	for raw, want := range map[string]string{
		"": "", "a=1&b=2": "a=1&b=2", "a": "a", "a=": "a=", "&&": "&&", "a=%20+b": "a=%20+b", "a==b": "a==b",
		"a=b?c/d":   "a=b?c/d",
		"api_key=x": "", "a=1&api_key=x&b=2": "a=1&b=2", "API-KEY=x&a=%2F": "a=%2F", "api%5Fkey=x&a=1": "a=1",
		"api.key=1&a=1": "a=1", "api+key&a=1": "a=1", "api_key[]=1&a": "a", "api_key%5B0%5D=1&a": "a",
		"token&token=&a": "a",
		"tokens=1":       "tokens=1", "x=api_key": "x=api_key", "api__key=1": "api__key=1",
	} {
		kept, err := judgeQuery(raw, removed)
		must.NoError(t, err, must.Sprint(raw))
		must.Eq(t, want, kept, must.Sprint(raw))
	}
	for _, raw := range []string{"a=%", "a=%zz", "%4=1", "a;b", "a=1;api_key=2", "a=#", "a=ä", "a= b", "a=\x00",
		strings.Repeat("a&", maxParameters)} {
		_, err := judgeQuery(raw, removed)
		must.Error(t, err, must.Sprint(raw))
	}
}

func TestHeadersThatNoTaskSends(t *testing.T) {
	credential := namesOf("X-Api-Key")
	for name, stays := range map[string]bool{
		"X-Api-Key": false, "x_api_key": false, "X_Api-Key": false, "X-API_KEY": false, "X.Api.Key": false,
		"Authorization": false, "authorization": false, "Cookie": false, "X-Http-Method-Override": false,
		"X_HTTP_Method_Override": false,
		"X-Original-Url":         false, "X-Rewrite-Url": false, "X-Forwarded-Prefix": false, "X_Forwarded_Host": false,
		"Http2-Settings": false,
		"X-Api-Keys":     true, "Accept": true, "X-Request-Id": true, "Content-Type": true, "If-Match": true,
	} {
		h := http.Header{name: {"value"}}
		removeHeaders(h, credential)
		must.Eq(t, stays, len(h) == 1, must.Sprint(name))
	}
}

func TestSegments(t *testing.T) {
	for raw, want := range map[string]string{"/~abc/x": "/x", "/~abc": "/", "/~abc/": "/", "/~abc/~abc": "/~abc",
		"/~abc//x": "//x",
		"/x":       "", "/": "", "": "", "/~abd/x": "", "/~abcd": "", "/x/~abc": "", "/~ABC/x": "", "//~abc/x": ""} {
		rest, ok := cutSegment(raw, "~abc")
		must.Eq(t, want, rest, must.Sprint(raw))
		must.Eq(t, want != "", ok, must.Sprint(raw))
	}
}

// FuzzPath holds the judge against what servers do to a path: decode it, once or twice, with and without what is after
// a semicolon, and resolve its dots. Whatever they do, a path that was let through stays where it is.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/a/b", "/a/../b", "/a/%2e%2e/b", "/a/..;/b", "/a%2fb", "/a/%252e%252e%252fb",
		"/..%3b/b", "/%25%32%65"} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, raw string, slashes bool) {
		p, err := judgePath(raw, encodedSlashes(slashes))
		if err != nil {
			return
		}
		u := &url.URL{Scheme: "http", Host: "h", Path: p.decoded(), RawPath: p.raw}
		must.Eq(t, raw, u.EscapedPath()) // what was judged is what is sent
		again, err := url.ParseRequestURI(raw)
		must.NoError(t, err)
		must.Eq(t, p.decoded(), again.Path) // and what the upstream decodes it to
		for seen, text := 0, p.decoded(); seen < 3; seen++ {
			for segment := range strings.SplitSeq(strings.ReplaceAll(text, `\`, "/"), "/") {
				name, _, _ := strings.Cut(segment, ";")
				must.False(t, name == "." || name == "..", must.Sprint(raw))
			}
			if !slashes {
				must.Eq(t, strings.Count(raw, "/"), strings.Count(text, "/"), must.Sprint(raw))
				must.Eq(t, posix.Clean(text), strings.TrimSuffix(text, "/")+map[bool]string{true: "/"}[text == "/"])
			}
			next, err := url.PathUnescape(text)
			if err != nil {
				break
			}
			text = next
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"a=1&key=2", "k%65y=1", "key[]=1", "a=%zz", "a;b", "&=&"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		kept, err := judgeQuery(raw, namesOf("key"))
		if err != nil {
			return
		}
		before, err := url.ParseQuery(raw)
		must.NoError(t, err)
		after, err := url.ParseQuery(kept)
		must.NoError(t, err)
		for name := range before {
			if has := namesOf("key").has(strings.Split(name, "[")[0]); has {
				delete(before, name)
			}
		}
		must.Eq(t, before, after)
	})
}
