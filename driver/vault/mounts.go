package vault

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// mountTTL is how long what is known of a mount is believed: an operator may mount something else there.
const mountTTL = 5 * time.Minute

// mount is what Vault's mount table says of where a path lives.
type mount struct {
	path      string // with its trailing slash: "secret/"
	engine    string // "kv", "database", "pki", ...
	v2        bool   // KV version 2
	asked     time.Time
	concealed bool // there may be one in a child namespace: OpenBao does not tell those of it who may read there
}

// mounts remembers the answers for all sessions of a client. They are no secret: Vault gives them to any token that may
// do anything at all below the mount. What one token may not know is remembered for that token only (Caller.mountOf),
// and no failure is remembered at all: consul-template does, and then reads KV v2 paths as v1 for ever (consul-template
// #2149).
type mounts struct {
	mu    sync.Mutex
	known map[string]mount // by namespace and mount path
}

// mountOf returns the mount that serves a request's path, without a path where the token may not know it, or there is
// none. That a token may not know is remembered for as long as what Vault tells is believed: each poll would ask again
// otherwise, and each denial is in Vault's audit log.
func (c *Caller) mountOf(ctx context.Context, as *api.Client, req Request) (mount, error) {
	if m, ok := c.client.mounts.find(c.Namespace, req.Path); ok {
		return m, nil
	}
	c.mu.Lock()
	at, hid := c.hidden[req.Path]
	c.mu.Unlock()
	unknown := mount{concealed: c.Namespace != ""}
	if hid && time.Since(at) < mountTTL {
		return unknown, nil
	}
	m, err := c.client.askMount(ctx, as, c.Namespace, req)
	switch {
	case m.path != "":
		return m, nil
	case err != nil && !refused(err), errors.Is(err, ErrDenied) && c.uncertain() > 0 && !tokenIsKnown(err):
		return mount{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.hidden, func(_ string, at time.Time) bool { return time.Since(at) >= mountTTL })
	if c.hidden == nil {
		c.hidden = map[string]time.Time{}
	}
	c.hidden[req.Path] = time.Now()
	return unknown, nil
}

// refused reports an answer that is none to the question for a mount: the request itself will be refused in better
// words.
func refused(err error) bool {
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid)
}

// tokenIsKnown reports a denial by a Vault that knows the token, and looked for what it may do
// (vault/logical_system.go, pathInternalUIMountRead).
func tokenIsKnown(denial error) bool {
	var e *Error
	return errors.As(denial, &e) && strings.Contains(e.Detail, "preflight capability check")
}

// A Place is where Vault has what a request asks for. Without an Engine nothing is mounted there, or the token may not
// know.
type Place struct {
	Path   string // as Vault's API has it
	Mount  string // with a slash at its end
	Engine string // "kv", "database", ...
	V2     bool   // KV version 2
}

// Locate returns the place of a request, as far as the token may know it.
func (c *Caller) Locate(ctx context.Context, req Request) (Place, error) {
	as, err := c.api()
	if err != nil {
		return Place{}, err
	}
	req = req.Clean()
	if err := CheckPath(req.Path); err != nil {
		return Place{}, err
	}
	m, known := c.client.mounts.find(c.Namespace, req.Path)
	if !known {
		if m, err = c.client.askMount(ctx, as, c.Namespace, req); refused(err) {
			err = nil
		}
	}
	return Place{m.apiPath(req.Op, req.Path), m.path, m.engine, m.v2}, err
}

// askMount asks Vault for the mount that serves a request's path.
func (c *Client) askMount(ctx context.Context, as *api.Client, namespace string, req Request) (mount, error) {
	answer, err := as.Logical().ReadWithContext(ctx, "sys/internal/ui/mounts/"+req.Path)
	if err != nil || answer == nil {
		return mount{}, c.fail(string(req.Op)+" "+req.Path, err)
	}
	return c.mounts.learn(namespace, req.Path, answer.Data), nil
}

func (m *mounts) find(namespace, path string) (mount, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for prefix := path + "/"; ; {
		if known, ok := m.known[namespace+"|"+prefix]; ok && time.Since(known.asked) < mountTTL {
			return known, true
		}
		cut := strings.LastIndex(strings.TrimSuffix(prefix, "/"), "/")
		if cut < 0 {
			return mount{}, false
		}
		prefix = prefix[:cut+1]
	}
}

// learn takes note of what Vault answered when asked for the mount of a path in a namespace, and returns it. An answer
// that is about something else is none.
func (m *mounts) learn(namespace, path string, data map[string]any) mount {
	found := mount{path: serving(namespace, path, data), asked: time.Now()}
	if found.path == "" {
		return mount{}
	}
	found.engine, _ = data["type"].(string)
	options, _ := data["options"].(map[string]any)
	found.v2 = found.engine == "kv" && options["version"] == "2"
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[string]mount{}
	}
	m.known[namespace+"|"+found.path] = found
	return found
}

// serving is the beginning of path that an answer says is a mount, empty where it says nothing of that path. Vault
// leaves out the auth/ before the name of an auth method, which an engine may have, too, and it puts the whole
// namespace before a mount in a child of the namespace that it was asked in (vault/logical_system.go,
// pathInternalUIMountRead).
func serving(namespace, path string, data map[string]any) string {
	told, _ := data["path"].(string)
	below, _ := strings.CutPrefix(told, strings.Trim(namespace, "/")+"/")
	candidates := []string{told, below}
	if strings.HasPrefix(path, "auth/") {
		candidates = []string{"auth/" + told}
	}
	for _, prefix := range candidates {
		if strings.HasSuffix(prefix, "/") && strings.HasPrefix(path+"/", prefix) {
			return prefix
		}
	}
	return ""
}

// shows reports that path is where KV v2 shows data.
func (m mount) shows(path string) bool { return m.v2 && strings.HasPrefix(path, m.path+"data/") }

// apiPath is path as Vault's API wants it: on a KV v2 mount the path of the `vault kv` command, secret/app, becomes
// secret/data/app, and secret/metadata/app for a list. A path that is one of the API's own is left alone. There is
// nothing to read or to list at the others, secret/config/app for one: these are secrets' names.
func (m mount) apiPath(op Op, path string) string {
	rest, below := strings.CutPrefix(path+"/", m.path)
	if !m.v2 || !below {
		return path
	}
	switch word, name, _ := strings.Cut(rest, "/"); word {
	case "data", "metadata", "subkeys":
		return path
	case "delete", "undelete", "destroy":
		if op == Write && name != "" {
			return path
		}
	}
	if op == List {
		return strings.TrimSuffix(m.path+"metadata/"+rest, "/")
	}
	return strings.TrimSuffix(m.path+"data/"+rest, "/")
}
