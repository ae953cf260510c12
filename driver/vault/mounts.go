package vault

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// mountTTL is how long what is known of a mount is believed: an operator may mount something else there.
const mountTTL = 5 * time.Minute

// mount is what Vault's mount table says of where a path lives.
type mount struct {
	path   string // with its trailing slash: "secret/"
	engine string // "kv", "database", "pki", ...
	v2     bool   // KV version 2
	asked  time.Time
}

// mounts remembers the answers for all sessions of a client. They are no secret: Vault gives them to any token that may
// do anything at all below the mount. Failures are not remembered: consul-template does, and then reads KV v2 paths as
// v1 for ever (consul-template #2149).
type mounts struct {
	mu    sync.Mutex
	known map[string]mount // by namespace and mount path
}

// mountOf returns the mount that serves path, zero when the token may not know.
func (c *Client) mountOf(ctx context.Context, as *api.Client, namespace, path string) (mount, error) {
	if m, ok := c.mounts.find(namespace, path); ok {
		return m, nil
	}
	answer, err := as.Logical().ReadWithContext(ctx, "sys/internal/ui/mounts/"+path)
	var refused *api.ResponseError
	if errors.As(err, &refused) && classOf(refused.StatusCode) != ErrUnavailable {
		return mount{}, nil // no rights below that mount, or none there: the read itself will say so in better words
	}
	if err != nil {
		return mount{}, err
	}
	if answer == nil {
		return mount{}, nil
	}
	return c.mounts.learn(namespace, answer.Data), nil
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

func (m *mounts) learn(namespace string, data map[string]any) mount {
	found := mount{asked: time.Now()}
	found.path, _ = data["path"].(string)
	found.engine, _ = data["type"].(string)
	options, _ := data["options"].(map[string]any)
	found.v2 = found.engine == "kv" && options["version"] == "2"
	if found.path == "" {
		return mount{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[string]mount{}
	}
	m.known[namespace+"|"+found.path] = found
	return found
}

// keeps reports that an engine of that type only keeps what somebody wrote: to read it issues nothing.
func keeps(engine string) bool { return engine == "kv" || engine == "generic" || engine == "cubbyhole" }

// shows reports that path is where KV v2 shows data.
func (m mount) shows(path string) bool { return m.v2 && strings.HasPrefix(path, m.path+"data/") }

// apiPath is path as Vault's API wants it: on a KV v2 mount the path of the `vault kv` command, secret/app, becomes
// secret/data/app, and secret/metadata/app for a list. A path that already starts with one of the API's own words is
// left alone.
func (m mount) apiPath(op Op, path string) string {
	rest, below := strings.CutPrefix(path+"/", m.path)
	if !m.v2 || !below {
		return path
	}
	word, _, _ := strings.Cut(rest, "/")
	switch word {
	case "data", "metadata", "subkeys", "config", "delete", "undelete", "destroy":
		return path
	}
	if op == List {
		return strings.TrimSuffix(m.path+"metadata/"+rest, "/")
	}
	return strings.TrimSuffix(m.path+"data/"+rest, "/")
}
