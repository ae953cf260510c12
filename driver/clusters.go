package driver

import (
	"maps"
	"reflect"
	"slices"
	"sync"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
)

// closeClients returns when nothing is asked of Vault any more.
func (d *Driver) closeClients() {
	d.mu.Lock()
	made := d.made
	d.mu.Unlock()
	var all sync.WaitGroup
	for _, client := range made {
		all.Go(client.Close)
	}
	all.Wait()
}

// Configure sets what the operator configured. It does not talk to Vault and may be called again: a cluster that is
// configured as before keeps its client, with all that this knows and bounds.
func (d *Driver) Configure(c config.Operator) error {
	if err := c.Validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clients := map[string]*session.Cluster{}
	for _, cluster := range c.Clusters {
		if old := d.clients[cluster.Name]; old != nil && alike(old.Config(), cluster) {
			clients[cluster.Name] = old
			continue
		}
		client, err := session.NewCluster(cluster, d.logger)
		if err != nil {
			return err
		}
		d.made = append(d.made, client)
		clients[cluster.Name] = client
	}
	d.config, d.clients = c, clients
	if d.serving {
		d.serveClients()
	}
	return nil
}

// alike reports whether two clusters are configured alike.
func alike(a, b vault.Cluster) bool {
	a.Dial, b.Dial = nil, nil // no part of what can be configured
	return reflect.DeepEqual(a, b)
}

// serveClients has the clusters' own tokens looked after. Call with mu held.
func (d *Driver) serveClients() {
	for _, client := range d.clients {
		client.Serve(d.announce)
	}
}

// announce tells those who wait that the status of a cluster has changed.
func (d *Driver) announce() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.news)
	d.news = make(chan struct{})
}

// Clusters returns the status of each cluster that makes tokens by a token role, by name, and what is closed when
// that changes.
func (d *Driver) Clusters() (status map[string]string, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	status = map[string]string{}
	for name, client := range d.clients {
		if text := client.Status(); text != "" {
			status[name] = text
		}
	}
	return status, d.news
}

func (d *Driver) configured() config.Operator {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config
}

// client returns the client of a cluster.
func (d *Driver) client(cluster string) (*session.Cluster, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.clients[cluster]; c != nil {
		return c, nil
	}
	_, err := d.config.Cluster(cluster)
	return nil, err
}

// env is what the credentials of a task need of the plugin.
func (d *Driver) env() credentials.Env {
	permit := func(block config.Vault, namespace string) error { return d.configured().PermitVault(block, namespace) }
	return credentials.Env{Client: d.client, ClientOf: d.clientOf, Permit: permit, Plugin: d.configured().Name,
		Done: d.ctx.Done(), Logger: d.logger}
}

// clientOf returns a client of the Vault that has issued a session, by whatever name it is configured now; nil: there
// is none.
func (d *Driver) clientOf(o session.Origin) *session.Cluster {
	d.mu.Lock()
	defer d.mu.Unlock()
	if named := d.clients[o.Cluster]; named != nil && (o.Address == "" || named.Config().Address == o.Address) {
		return named
	}
	for _, name := range slices.Sorted(maps.Keys(d.clients)) {
		if client := d.clients[name]; client.Config().Address == o.Address {
			return client
		}
	}
	return nil
}
