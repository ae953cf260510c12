package driver

import (
	"maps"
	"reflect"
	"slices"
	"sync"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"

	"github.com/hashicorp/go-hclog"
)

// clusters is what the operator configured, and a client for each cluster of it.
type clusters struct {
	logger hclog.Logger

	mu      sync.Mutex // guards what follows
	config  config.Operator
	clients map[string]*session.Cluster // by cluster name
	made    []*session.Cluster          // all that were ever made: sessions may still use one that was replaced
	serving bool                        // serve was called
	news    chan struct{}               // closed when what Clusters returns changes
}

func newClusters(logger hclog.Logger, name string) *clusters {
	return &clusters{logger: logger, config: config.Operator{Name: name}, clients: map[string]*session.Cluster{},
		news: make(chan struct{})}
}

// serve has the clusters' own tokens looked after from now on.
func (c *clusters) serve() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving = true
	c.serveClients()
}

// Serving reports whether Serve was called.
func (c *clusters) Serving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.serving
}

// closeClients returns when nothing is asked of Vault any more.
func (c *clusters) closeClients() {
	c.mu.Lock()
	made := c.made
	c.mu.Unlock()
	var all sync.WaitGroup
	for _, client := range made {
		all.Go(client.Close)
	}
	all.Wait()
}

// Configure sets what the operator configured. It does not talk to Vault and may be called again: a cluster that is
// configured as before keeps its client, with all that this knows and bounds.
func (c *clusters) Configure(op config.Operator) error {
	if err := op.Validate(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clients := map[string]*session.Cluster{}
	for _, cluster := range op.Clusters {
		if old := c.clients[cluster.Name]; old != nil && alike(old.Config(), cluster) {
			clients[cluster.Name] = old
			continue
		}
		client, err := session.NewCluster(cluster, c.logger)
		if err != nil {
			return err
		}
		c.made = append(c.made, client)
		clients[cluster.Name] = client
	}
	c.config, c.clients = op, clients
	if c.serving {
		c.serveClients()
	}
	return nil
}

// alike reports whether two clusters are configured alike.
func alike(a, b vault.Cluster) bool {
	a.Dial, b.Dial = nil, nil // no part of what can be configured
	return reflect.DeepEqual(a, b)
}

// serveClients has the clusters' own tokens looked after. Call with mu held.
func (c *clusters) serveClients() {
	for _, client := range c.clients {
		client.Serve(c.announce)
	}
}

// announce tells those who wait that the status of a cluster has changed.
func (c *clusters) announce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.news)
	c.news = make(chan struct{})
}

// Clusters returns the status of each cluster that makes tokens by a token role, by name, and what is closed when
// that changes.
func (c *clusters) Clusters() (status map[string]string, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	status = map[string]string{}
	for name, client := range c.clients {
		if text := client.Status(); text != "" {
			status[name] = text
		}
	}
	return status, c.news
}

func (c *clusters) configured() config.Operator {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config
}

// client returns the client of a cluster.
func (c *clusters) client(cluster string) (*session.Cluster, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[cluster]; client != nil {
		return client, nil
	}
	_, err := c.config.Cluster(cluster)
	return nil, err
}

// clientOf returns a client of the Vault that has issued a session, by whatever name it is configured now; nil: there
// is none.
func (c *clusters) clientOf(o session.Origin) *session.Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	if named := c.clients[o.Cluster]; named != nil && (o.Address == "" || named.Config().Address == o.Address) {
		return named
	}
	for _, name := range slices.Sorted(maps.Keys(c.clients)) {
		if client := c.clients[name]; client.Config().Address == o.Address {
			return client
		}
	}
	return nil
}
