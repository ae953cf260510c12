package httpdoor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"nomad-driver-vault/driver/door"
)

// Placeholder is the token for clients that insist on one. A door to Vault takes it for none.
const Placeholder = "door"

// vault is the kind of a door to Vault's own API. The task uses its token and cannot get it, nor another one that is
// made with it and would outlive the task.
type vault struct {
	*door.Vault
	origin   origin
	patterns []pattern // none: the token's policies are enough
}

func newVault(spec *door.Vault) (*vault, error) {
	v := &vault{Vault: spec}
	var err error
	if v.origin, err = newOrigin(spec.Address); err != nil {
		return nil, fmt.Errorf("address: %w", err)
	}
	if !httpguts.ValidHeaderFieldValue(spec.Namespace) {
		return nil, errors.New("namespace: it has a byte that cannot be sent")
	}
	v.patterns, err = newPatterns(spec.Paths)
	return v, err
}

// always are paths that paths does not narrow: what clients ask about the token itself and about the server, and the
// mount of a path, which the vault command asks for before each kv command.
var always = []pattern{
	{"auth", "token", "lookup-self"}, {"auth", "token", "renew-self"},
	{"sys", "wrapping", "lookup"}, {"sys", "wrapping", "unwrap"},
	{"sys", "internal", "ui", "mounts", "*"}, {"sys", "health"}, {"sys", "seal-status"}, {"sys", "leader"},
}

func (v *vault) judge(r *http.Request) (target, error) {
	raw, query, question := strings.Cut(r.RequestURI, "?")
	p, err := judgePath(raw, false)
	if err != nil {
		return target{}, refusal{http.StatusBadRequest, err}
	}
	if _, err := judgeQuery(query, nil); err != nil {
		return target{}, refusal{http.StatusBadRequest, err}
	}
	if p.segments[0] != "v1" || len(p.segments) < 2 {
		return target{}, errors.New("the path is not one of Vault's API, which begins with /v1/")
	}
	path := p.segments[1:]
	if lists(r.Method, query) && path[len(path)-1] != "" {
		path = append(slices.Clip(path), "") // as Vault does
	}
	if len(v.patterns) > 0 && !matchesAny(v.patterns, path) && !matchesAny(always, path) {
		return target{}, errors.New("the path is not among the door's paths")
	}
	if err := v.judgeNamespace(r.Header); err != nil {
		return target{}, err
	}
	token := ownToken(r.Header)
	if unwraps := len(path) == 3 && path[0] == "sys" && path[1] == "wrapping"; !v.Passthrough && !unwraps {
		token = ""
	}
	if token == "" {
		if err := judgeToken(path, wraps(r.Header)); err != nil {
			return target{}, err
		}
	}
	return target{path: v.origin.path.join(p), query: query, question: question, token: token}, nil
}

// lists reports whether a request lists what is below its path (vault/http/logical.go).
func lists(method, query string) bool {
	values, _ := url.ParseQuery(query) // it was judged
	list, _ := strconv.ParseBool(values.Get("list"))
	return method == "LIST" || method == http.MethodGet && list
}

// wraps reports whether a request may ask for its answer to be wrapped, as whatever is before Vault may spell it.
func wraps(h http.Header) bool {
	for name := range h {
		if spelling(name) == "x-vault-wrap-ttl" {
			return true
		}
	}
	return false
}

// ownToken returns the token that a client has sent, in one of the two headers in which Vault looks for it.
func ownToken(h http.Header) string {
	token := h.Get("X-Vault-Token")
	if scheme, bearer, ok := strings.Cut(h.Get("Authorization"), " "); token == "" && ok && scheme == "Bearer" {
		token = strings.TrimSpace(bearer)
	}
	if token == Placeholder {
		return ""
	}
	return token
}

func (v *vault) judgeNamespace(h http.Header) error {
	for _, namespace := range h.Values("X-Vault-Namespace") {
		if strings.Trim(namespace, "/") != strings.Trim(v.Namespace, "/") {
			return errors.New("the namespace is not the door's: leave the header out, or use the path for one below it")
		}
	}
	return nil
}

// judgeToken refuses requests whose answer would have a token that the task can take elsewhere. A namespace can be the
// beginning of a path (Vault Enterprise), so these are looked for everywhere in it; a secret whose own path has the
// segments auth/token, or auth and login, is refused too.
func judgeToken(path []string, wrapped bool) error {
	path = slices.Clone(path)
	if path[len(path)-1] == "" {
		path = path[:len(path)-1]
	}
	for i, segment := range path {
		rest := path[i+1:]
		switch {
		case segment != "auth" || len(rest) == 0:
			continue
		case wrapped:
			return errors.New("an answer about tokens is not wrapped: it could be unwrapped without the door")
		case rest[0] == "token" && (i > 0 || !matchesAny(always, path)):
			return errors.New("tokens are not made, looked up or revoked through a door, " +
				"but for lookup-self and renew-self")
		case rest[0] != "token" && (slices.Contains(rest, "login") || slices.Contains(rest, "callback")):
			return errors.New("a task does not log in through a door: the door has its token")
		}
	}
	return nil
}

func (v *vault) usable(c *door.Credential) error {
	if c.Token == "" || !httpguts.ValidHeaderFieldValue(c.Token) {
		return errors.New("there is no token")
	}
	return nil
}

func (v *vault) secrets(c *door.Credential) []string { return []string{c.Token} }

func (v *vault) add(out *http.Request, t target, c *door.Credential) {
	out.Header.Set("X-Vault-Token", c.Token)
	if t.token != "" {
		out.Header.Set("X-Vault-Token", t.token)
	}
	if v.Namespace != "" {
		out.Header.Set("X-Vault-Namespace", v.Namespace)
	}
}

// denied reports whether Vault does not know the token. It says so in the text of a 403, which is also the status of
// what the policies do not allow (vault/request_handling.go; 1.21 says "invalid token", earlier ones "bad token").
func (v *vault) denied(res *http.Response) bool {
	if res.StatusCode != http.StatusForbidden {
		return false
	}
	const enough = 4 << 10
	start, _ := io.ReadAll(io.LimitReader(res.Body, enough)) // the error comes again when the rest is read
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), res.Body), res.Body}
	return bytes.Contains(start, []byte("invalid token")) || bytes.Contains(start, []byte("bad token"))
}

// elsewhere returns the active node to which a standby sends the request. It would be of no use to the task: its
// address is not the door's.
func (v *vault) elsewhere(out *http.Request, res *http.Response) *origin {
	if res.StatusCode != http.StatusTemporaryRedirect {
		return nil
	}
	u, err := url.Parse(res.Header.Get("Location"))
	if err != nil || u.User != nil || u.EscapedPath() != out.URL.EscapedPath() || u.Hostname() == "" ||
		u.Scheme != "https" && u.Scheme != v.origin.scheme || !httpguts.ValidHostHeader(u.Host) {
		return nil
	}
	return &origin{scheme: u.Scheme, host: u.Host}
}
