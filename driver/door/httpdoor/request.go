package httpdoor

import (
	"crypto/subtle"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// cutSegment cuts off the first segment of the path of a request, which is to be the given one. "" is no segment.
func cutSegment(uri, segment string) (string, bool) {
	if segment == "" {
		return uri, true
	}
	path, query, question := strings.Cut(uri, "?")
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if subtle.ConstantTimeCompare([]byte(first), []byte(segment)) != 1 {
		return "", false
	}
	if question {
		rest += "?" + query
	}
	return "/" + rest, true
}

// maxParameters bounds the parameters of a query. ReverseProxy writes a query anew that has more than 10,000.
const maxParameters = 1000

// judgeForm refuses the forms of a request that are not one for a resource of the upstream.
func judgeForm(r *http.Request) error {
	upgrade := r.Header.Values("Upgrade")
	switch {
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return errors.New("the method is not one that a door passes on")
	case !strings.HasPrefix(r.RequestURI, "/"):
		return errors.New("the request names another server, or none of the paths: a door is no forward proxy")
	case len(upgrade) == 0:
		return nil
	case len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket"):
		return errors.New("the request asks for another protocol than websocket: " +
			"for HTTP/2 begin with it, as curl --http2-prior-knowledge does")
	case r.ProtoMajor != 1 || r.Method != http.MethodGet || r.ContentLength != 0 ||
		!httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade"):
		return errors.New("the request for a websocket is not a GET of HTTP/1.1 without a body")
	}
	return nil
}

// A target is what a request asks for: the path and the query as they were written.
type target struct {
	path
	query    string
	question bool   // there is a "?", perhaps with nothing after it
	token    string // of Vault, that the client sends in the place of the door's
}

// judgeQuery returns the query without the parameters that the credential sets, and all else as it was.
func judgeQuery(raw string, removed names) (string, error) {
	if strings.Count(raw, "&") >= maxParameters {
		return "", errors.New("the query has too many parameters")
	}
	if strings.ContainsFunc(raw, notInQuery) {
		return "", errors.New("the query has a byte that must be percent-encoded, or a semicolon")
	}
	var kept []string
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		decoded, err := url.QueryUnescape(name)
		if err == nil {
			_, err = url.QueryUnescape(value)
		}
		if err != nil {
			return "", errors.New("the query has a percent sign that begins no escape")
		}
		decoded, _, _ = strings.Cut(decoded, "[") // PHP's form of a list
		if !removed.has(decoded) {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&"), nil
}

func notInQuery(r rune) bool { return r <= ' ' || r >= 0x7f || r == ';' || r == '#' }

// names is a set of names of headers or parameters in which all spellings are one that some server takes for one:
// CGI makes "_" of "-" (RFC 3875, 4.1.18), PHP of "." and space too, and others ignore case.
type names map[string]bool

func namesOf(all ...string) names {
	set := names{}
	for _, name := range all {
		set[spelling(name)] = true
	}
	return set
}

func (n names) has(name string) bool { return n[spelling(name)] }

func spelling(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, strings.TrimSpace(name))
}

// never are the headers that no task sends through a door: credentials of its own, and those by which some servers
// take another method, path or host than the request has.
var never = namesOf("Authorization", "Cookie", "Proxy-Authorization", "HTTP2-Settings", "X-HTTP-Method-Override",
	"X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Original-URI", "X-Original-Host", "X-Rewrite-URL",
	"X-Host", "X-Real-IP", "Forwarded")

// removeHeaders removes what no task sends, and the headers that the credential sets.
func removeHeaders(h http.Header, credential names) {
	for name := range h {
		s := spelling(name)
		if never[s] || credential[s] || strings.HasPrefix(s, "x-forwarded-") {
			delete(h, name)
		}
	}
}
