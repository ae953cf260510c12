package httpdoor

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"nomad-driver-vault/driver/door"
)

// api is the kind of a door to an HTTP API.
type api struct {
	*door.HTTP
	origin     origin
	patterns   []pattern // none: all paths
	parameters names     // of the credential
}

func newAPI(spec *door.HTTP) (*api, error) {
	a := &api{HTTP: spec, parameters: namesOf(spec.Query...)}
	var err error
	if a.origin, err = newOrigin(spec.URL); err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if a.patterns, err = newPatterns(spec.Paths); err != nil {
		return nil, err
	}
	for _, method := range spec.Methods {
		if !httpguts.ValidHeaderFieldName(method) || method == http.MethodConnect || method == http.MethodTrace {
			return nil, fmt.Errorf("methods: %q is not a method that a door passes on", method)
		}
	}
	for _, name := range spec.Header {
		if !httpguts.ValidHeaderFieldName(name) || connectionHeaders.has(name) {
			return nil, fmt.Errorf("header: %q is not a header that a credential can be in", name)
		}
	}
	if slices.Contains(spec.Query, "") {
		return nil, errors.New("query: a parameter has no name")
	}
	if !slices.Contains([]door.Scrub{"", door.ScrubFull, door.ScrubHeaders, door.ScrubOff}, spec.Scrub) {
		return nil, fmt.Errorf("scrub %q is unknown: use %q, %q or %q", spec.Scrub, door.ScrubFull, door.ScrubHeaders,
			door.ScrubOff)
	}
	return a, nil
}

// connectionHeaders belong to a connection, or say how a request is to be read.
var connectionHeaders = namesOf("Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Connection", "Te",
	"Trailer", "Transfer-Encoding", "Upgrade", "Accept-Encoding", "Expect")

func newPatterns(paths []string) (all []pattern, err error) {
	for _, text := range paths {
		p, err := newPattern(text)
		if err != nil {
			return nil, fmt.Errorf("paths: %q: %w", text, err)
		}
		all = append(all, p)
	}
	return all, nil
}

func (a *api) judge(r *http.Request) (target, error) {
	raw, query, question := strings.Cut(r.RequestURI, "?")
	p, err := judgePath(raw, encodedSlashes(a.EncodedSlash))
	if err != nil {
		return target{}, refusal{http.StatusBadRequest, err}
	}
	kept, err := judgeQuery(query, a.parameters)
	switch {
	case err != nil:
		return target{}, refusal{http.StatusBadRequest, err}
	case len(a.Methods) > 0 && !slices.Contains(a.Methods, r.Method):
		return target{}, errors.New("the method is not among the door's methods")
	case len(a.patterns) > 0 && !matchesAny(a.patterns, p.segments):
		return target{}, errors.New("the path is not among the door's paths")
	}
	return target{path: a.origin.path.join(p), query: kept, question: question}, nil
}

// usable says what of the credential is missing, or cannot be sent. A credential that is not whole is none.
func (a *api) usable(c *door.Credential) error {
	if len(c.Header) != len(a.Header) || len(c.Query) != len(a.Query) {
		return errors.New("it does not have the headers and parameters of the door's block")
	}
	for _, name := range a.Header {
		if value := c.Header[name]; value == "" || !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("header %q is empty, or has a line break", name)
		}
	}
	for _, name := range a.Query {
		if c.Query[name] == "" {
			return fmt.Errorf("query parameter %q is empty", name)
		}
	}
	if a.ClientCert && len(c.CertPEM) == 0 {
		return errors.New("there is no client certificate")
	}
	return nil
}

func (a *api) secrets(c *door.Credential) (all []string) {
	for _, value := range c.Header {
		all = append(all, secretsOf(value)...)
	}
	for _, value := range c.Query {
		all = append(all, value)
	}
	return all
}

func (a *api) add(out *http.Request, _ target, c *door.Credential) {
	for name, value := range c.Header {
		out.Header.Set(name, value)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Query)) {
		if out.URL.RawQuery != "" {
			out.URL.RawQuery += "&"
		}
		out.URL.RawQuery += url.QueryEscape(name) + "=" + url.QueryEscape(c.Query[name])
	}
}

func (a *api) denied(res *http.Response) bool { return res.StatusCode == http.StatusUnauthorized }

func (a *api) elsewhere(*http.Request, *http.Response) *origin { return nil }
