// Package vault is the wire to Vault: a Client for each cluster, and a Caller for each token. It knows how a request is
// sent once and bounded, what an answer means, and which of the errors waiting can cure. It keeps nothing current:
// package session does.
//
// Nothing here prints a secret.
package vault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
)

// Cluster is how one Vault is reached and logged in to: a vault "name" {} block of the plugin's config, with the field
// names of the agent's own vault block (https://developer.hashicorp.com/nomad/docs/configuration/vault).
type Cluster struct {
	Name      string // the block's label; "default" when a task names none
	Address   string // https://vault.example:8200, or unix:///run/vault.sock of a Vault Agent or Proxy on the node
	Namespace string // default for tasks that name none
	AuthPath  string // jwt_auth_backend_path: where the JWT auth method is mounted
	Role      string // create_from_role: for tasks that name none; empty: the auth method's own default role

	// With a token of its own the cluster makes the tokens of tasks by the token role Role, and nobody logs in (package
	// tokenrole). TokenFile is where that token is instead of in Token.
	Token     Token
	TokenFile string

	CAFile, CAPath, CertFile, KeyFile, TLSServerName string
	TLSSkipVerify                                    bool

	// RateLimit is how many requests a second the cluster gets from this node at most, and how many at once after a pause:
	// "50" or "50:100". Empty: as many as there are. It is written as VAULT_RATE_LIMIT is
	// (https://developer.hashicorp.com/vault/docs/commands#vault_rate_limit).
	RateLimit string

	// Dial connects to the address; nil: over the network. No config sets it: vaulttest.Server does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Issues reports that the cluster makes tokens by a token role.
func (c *Cluster) Issues() bool { return c.Token != "" || c.TokenFile != "" }

// Block is where the operator finds the cluster's settings, as messages name it.
func (c Cluster) Block() string { return fmt.Sprintf("the plugin's vault %q block", c.Name) }

// Client reaches one cluster: one transport for every task of the plugin, and what is known of the cluster's mounts.
type Client struct {
	// Jitter returns a number in [0,1), for each lease another. A test that wants to live through the same once more
	// replaces it before the first request.
	Jitter func() float64

	cluster  Cluster
	base     *api.Client
	logger   hclog.Logger
	mounts   mounts
	ahead    *atomic.Int64 // how far Vault's clock is ahead of ours, in nanoseconds
	creating creations
}

// NewClient prepares a client without talking to Vault. An error is a mistake in the cluster's configuration and names
// the field. Whoever made a client closes it.
func NewClient(c Cluster, logger hclog.Logger) (*Client, error) {
	u, dial, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	if u.User != nil {
		return nil, fmt.Errorf("vault %q: address holds a user name or password: leave them out", c.Name)
	}
	conf := api.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("vault %q: read VAULT_ environment: %w", c.Name, conf.Error)
	}
	conf.Address = u.String()
	conf.MaxRetries = 0 // the library repeats any verb: a repeated read of database/creds mints a second user
	err = conf.ConfigureTLS(&api.TLSConfig{CACert: c.CAFile, CAPath: c.CAPath, ClientCert: c.CertFile,
		ClientKey: c.KeyFile, TLSServerName: c.TLSServerName, Insecure: c.TLSSkipVerify})
	if err != nil {
		return nil, fmt.Errorf("vault %q: ca_file, ca_path, cert_file or key_file: %w", c.Name, err)
	}
	limit, err := rateLimit(c.RateLimit)
	if err != nil {
		return nil, fmt.Errorf("vault %q: %w", c.Name, err)
	}
	transport := transport{conf.HttpClient.Transport.(*http.Transport), u, limit, new(atomic.Int64)}
	shape(transport.Transport, dial)
	conf.HttpClient.Transport = transport
	base, err := api.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("vault %q: %w", c.Name, err)
	}
	return &Client{Jitter: rand.Float64, cluster: c, base: base, logger: logger.With("vault", c.Name),
		ahead: transport.ahead}, nil
}

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// endpoint returns what requests are addressed to, and how it is connected to. The Vault API's own way to a socket
// would change the transport that all its clients share.
func (c *Cluster) endpoint() (*url.URL, dialer, error) {
	network := &net.Dialer{Timeout: dialWithin}
	u, err := url.Parse(c.Address)
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return &url.URL{Scheme: "http", Host: "localhost"}, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return network.DialContext(ctx, "unix", u.Path)
		}, nil
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, nil, fmt.Errorf("vault %q: address %q is not a URL such as https://vault.example:8200 or "+
			"unix:///run/vault.sock", c.Name, c.Address)
	case c.Dial != nil:
		return u, c.Dial, nil
	}
	return u, network.DialContext, nil
}

// Cluster returns the configuration the client was made from.
func (c *Client) Cluster() Cluster { return c.cluster }

// Close returns when no request is under way that creates something, which would be lost. It may be called again.
func (c *Client) Close() {
	c.creating.end()
	c.base.CloneConfig().HttpClient.Transport.(transport).Transport.CloseIdleConnections()
}

// At returns a client that reaches the same Vault in the same way, with the JWT auth method at another path.
func (c *Client) At(authPath string) *Client {
	cluster := c.cluster
	cluster.AuthPath = authPath
	return &Client{Jitter: c.Jitter, cluster: cluster, base: c.base, logger: c.logger, ahead: c.ahead}
}

// Answers asks Vault what costs nothing. It returns nil for a Vault that is sealed or on standby, too.
func (c *Client) Answers(ctx context.Context) error {
	as, err := c.as("", "")
	if err != nil {
		return err
	}
	_, err = as.Sys().HealthWithContext(ctx)
	return c.fail("look up health", err)
}

// as returns an API client that speaks for one token in one namespace over the shared transport.
func (c *Client) as(token, namespace string) (*api.Client, error) {
	clone, err := c.base.Clone()
	if err != nil {
		return nil, fmt.Errorf("clone vault client: %w", err)
	}
	clone.SetToken(token)
	clone.SetNamespace(namespace)
	return clone, nil
}
