package httpdoor

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"nomad-driver-vault/driver/door"
)

// rewrite makes the request for the upstream, without the credential.
func (c *call) rewrite(pr *httputil.ProxyRequest) {
	out := pr.Out
	c.door.rules.origin.set(out)
	out.URL.Path, out.URL.RawPath = c.target.decoded(), c.target.raw
	out.URL.RawQuery, out.URL.ForceQuery = c.target.query, c.target.question
	out.URL.Fragment, out.URL.RawFragment, out.Trailer = "", "", nil
	removeHeaders(out.Header, c.door.rules.headers)
	if c.gen.forms(c.door) != nil && c.door.rules.scrub == door.ScrubFull {
		out.Header.Set("Accept-Encoding", "identity")
		if out.Header.Get("Grpc-Accept-Encoding") != "" {
			out.Header.Set("Grpc-Accept-Encoding", "identity")
		}
		out.Header.Del("Sec-WebSocket-Extensions") // of which the only one compresses
	}
}

// maxHops bounds how often the door itself sends a request on to another origin.
const maxHops = 3

// RoundTrip sends a request with the credential: once more with a newer one if the upstream refuses it, and to where
// the upstream sends the door itself.
func (c *call) RoundTrip(out *http.Request) (*http.Response, error) {
	res, err := c.send(out)
	for hops := 0; err == nil && hops < maxHops && c.upload.replayable(); hops++ {
		to := c.door.kind.elsewhere(out, res)
		if to == nil && (!c.door.kind.denied(res) || !c.renew(out.Context())) {
			break
		}
		discard(res)
		out = out.Clone(out.Context()) // the upstream's transport may still be reading the one before
		if to != nil {
			to.set(out)
		}
		res, err = c.send(out)
	}
	c.upload.forget()
	return res, err
}

// send sends a request with the credential that the call has.
func (c *call) send(out *http.Request) (*http.Response, error) {
	if out.Body != nil && c.upload != nil {
		out.Body = c.upload.attempt()
	}
	out.URL.RawQuery = c.target.query
	c.door.kind.add(out, c.target, c.gen.secret)
	return c.gen.transport.of(out).RoundTrip(out)
}

// renew has the call use a newer generation, and reports whether there is one.
func (c *call) renew(ctx context.Context) bool {
	if c.renewed || !c.door.newer(ctx, c.gen.secret.Generation) {
		return false
	}
	c.renewed = true
	gen, err := c.door.begin()
	if err != nil {
		return false
	}
	c.door.release(c.gen)
	c.gen = gen
	return true
}

// discard ends an answer that the task does not get. What little is left of it is read, to keep the connection.
func discard(res *http.Response) {
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
	_ = res.Body.Close()
}

// errEncoded is the answer to one whose body the door could not look into.
var errEncoded = errors.New("the upstream's answer is compressed, though the door asked for none that is: " +
	`scrub = "headers" lets it through unread`)

// errProtocol is the answer to an upgrade that was not asked for.
var errProtocol = errors.New("the upstream changes to a protocol that the request did not ask for")

// notForTasks are headers of answers that would lead a task around its door, or are a credential.
var notForTasks = []string{errorHeader, "Set-Cookie", "Set-Cookie2", "Alt-Svc", "Proxy-Authenticate"}

// answer changes what an upstream has answered into what the task gets.
func (c *call) answer(res *http.Response) error {
	upgraded := res.StatusCode == http.StatusSwitchingProtocols
	if upgraded && !strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		return refusal{http.StatusBadGateway, errProtocol}
	}
	for _, name := range notForTasks {
		res.Header.Del(name)
	}
	for _, name := range []string{"Location", "Content-Location"} {
		if at := res.Header.Get(name); at != "" {
			res.Header.Set(name, c.door.rules.origin.relative(at, c.segment))
		}
	}
	m := c.gen.forms(c.door)
	scrubHeader(res.Header, m)
	inBody := m
	if c.door.rules.scrub != door.ScrubFull {
		inBody = nil
	}
	if inBody != nil && isEncoded(res.Header) && c.in.Method != http.MethodHead {
		return refusal{http.StatusBadGateway, errEncoded}
	}
	if len(res.Trailer) > 0 && c.in.ProtoMajor == 1 && c.in.Method != http.MethodHead {
		res.Header.Del("Content-Length") // in HTTP/1.1 only chunks have trailers after them
	}
	if upgraded {
		onlyEndToEnd(res.Header)
		res.Status = "" // its text is the upstream's
		res.Body = c.newTunnel(res.Body.(io.ReadWriteCloser), inBody)
		return nil
	}
	res.Body = c.newDownload(res, m, inBody)
	return nil
}

// isEncoded reports whether a body, or each message of gRPC in it, is compressed.
func isEncoded(h http.Header) bool {
	compresses := func(encoding string) bool { return encoding != "" && !strings.EqualFold(encoding, "identity") }
	return slices.ContainsFunc(h["Content-Encoding"], compresses) || slices.ContainsFunc(h["Grpc-Encoding"], compresses)
}

// onlyEndToEnd removes what belongs to the connection to the upstream, as ReverseProxy does of all answers but 101.
func onlyEndToEnd(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); !strings.EqualFold(name, "Upgrade") {
				h.Del(name)
			}
		}
	}
	for _, name := range []string{"Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding"} {
		h.Del(name)
	}
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
}

func scrubHeader(h http.Header, m *matcher) {
	if m == nil {
		return
	}
	for _, values := range h {
		for i := range values {
			values[i] = m.masked(values[i])
		}
	}
}

// failed answers for an upstream that did not.
func (c *call) failed(_ http.ResponseWriter, out *http.Request, err error) {
	var r refusal
	switch {
	case errors.As(err, &r):
		c.refuse(r)
		return
	case c.in.Context().Err() != nil:
		panic(http.ErrAbortHandler)
	case errors.Is(err, door.ErrNotAllowed):
		c.line.Error = err.Error()
		c.refuse(refusal{http.StatusBadGateway, errors.New("the upstream's address is not one that the operator allows")})
		return
	}
	c.door.failed.Add(1)
	c.line.Error = c.gen.forms(c.door).masked(err.Error())
	status, why := http.StatusBadGateway, "the upstream cannot be reached, or broke off"
	if c.upload != nil && c.upload.failure() != nil {
		status, why = http.StatusBadRequest, "the request's body broke off, or did not go on for too long"
	}
	c.say(status, why)
}

// isGRPC reports whether a request is one of gRPC.
func isGRPC(h http.Header) bool {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+")
}

// An origin is where a door's requests go, and the path before theirs.
type origin struct {
	scheme, host string
	path         path // before that of each request; without segments: none
}

// newOrigin reads what a block has for an upstream. An error has nothing of the text: there may be a password in it.
func newOrigin(text string) (origin, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" || u.User != nil ||
		u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || !httpguts.ValidHostHeader(u.Host) {
		return origin{}, errors.New(`it is not an origin such as "https://api.example.com/v1"`)
	}
	o := origin{scheme: u.Scheme, host: u.Host}
	if base := strings.TrimSuffix(u.EscapedPath(), "/"); base != "" {
		o.path, err = judgePath(base, true)
	}
	return o, err
}

// set has a request go to the origin. The path stays.
func (o origin) set(r *http.Request) {
	r.URL.Scheme, r.URL.Host, r.Host = o.scheme, o.host, o.host
	r.URL.User, r.URL.Opaque = nil, ""
}

// same reports whether a URL is one of the origin.
func (o origin) same(u *url.URL) bool {
	port := func(scheme, host string) string {
		if p := (&url.URL{Host: host}).Port(); p != "" {
			return p
		}
		return map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return u.User == nil && u.Scheme == o.scheme && port(u.Scheme, u.Host) == port(o.scheme, o.host) &&
		strings.EqualFold(u.Hostname(), (&url.URL{Host: o.host}).Hostname())
}

// relative returns a Location of the upstream as one of the door, if it is within what the door reaches. All others
// stay: the task may follow them by itself, without the credential.
func (o origin) relative(location, segment string) string {
	u, err := url.Parse(location)
	if err != nil || u.Opaque != "" {
		return location
	}
	if u.Host == "" && u.Scheme == "" && !strings.HasPrefix(location, "/") {
		return location // relative to the request's own path
	}
	if u.Host != "" && u.Scheme == "" {
		u.Scheme = o.scheme
	}
	if u.Host != "" && !o.same(u) {
		return location
	}
	rest, within := strings.CutPrefix(u.EscapedPath(), o.path.raw)
	if !within || rest != "" && rest[0] != '/' || strings.HasPrefix(rest, "//") {
		return location
	}
	if rest == "" {
		rest = "/"
	}
	if segment != "" {
		rest = "/" + segment + rest
	}
	if u.RawQuery != "" || u.ForceQuery {
		rest += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		rest += "#" + u.EscapedFragment()
	}
	return rest
}
