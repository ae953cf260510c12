package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"golang.org/x/time/rate"

	"nomad-driver-vault/driver/sched"
)

// Cluster is how one Vault is reached and logged in to: a vault "name" {} block of the plugin's config, with the field
// names of the agent's own vault block (https://developer.hashicorp.com/nomad/docs/configuration/vault).
type Cluster struct {
	Name      string // the block's label; "default" when a task names none
	Address   string // https://vault.example:8200
	Namespace string // default for tasks that name none
	AuthPath  string // jwt_auth_backend_path: where the JWT auth method is mounted
	Role      string // create_from_role: for tasks that name none; empty: the auth method's own default role

	// With a token of its own the cluster makes the tokens of tasks by the token role Role, and nobody logs in. TokenFile is where that token is
	// instead of in Token.
	Token     Token
	TokenFile string

	CAFile, CAPath, CertFile, KeyFile, TLSServerName string
	TLSSkipVerify                                    bool

	// RateLimit is how many requests a second the cluster gets from this node at most, and how many at once after a pause: "50" or "50:100".
	// Empty: as many as there are. It is written as VAULT_RATE_LIMIT is (https://developer.hashicorp.com/vault/docs/commands#vault_rate_limit).
	RateLimit string

	// Dial connects to the address; nil: over the network. No config sets it: vaulttest.Server does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

const (
	// closeSideBySide is how many sessions are closed at once: a node whose thousand tasks end together is no storm for Vault.
	closeSideBySide = 16
	// maxIdle bounds the sockets to one cluster that are kept open: HTTP/2 needs one, HTTP/1.1 behind some load balancers needs a few. Nothing bounds
	// those in use: requests that hang would keep the others waiting.
	maxIdle = 16
	// silence is how long a shared HTTP/2 connection may say nothing before it is asked whether it is there, and then how
	// long it may take to answer. A firewall that forgot the connection would otherwise hold every task's requests until
	// TCP gives up, after a quarter of an hour.
	silence = 4 * time.Second
	// dialWithin is how long it may take to connect, and then how long the TLS handshake.
	dialWithin = 5 * time.Second
	// mostAnswer bounds an answer as it is unpacked: a kilobyte of gzip can be a megabyte. An entry of KV has one at
	// most where Vault's storage is not told otherwise, and a list with this length has some 400,000 names.
	mostAnswer = 16 << 20
)

// Issues reports that the cluster makes tokens by a token role.
func (c *Cluster) Issues() bool { return c.Token != "" || c.TokenFile != "" }

// Client talks to one cluster for every task of the plugin: one transport, and what is known of the cluster's mounts.
type Client struct {
	cluster Cluster
	base    *api.Client
	sched   *sched.Scheduler
	logger  hclog.Logger
	mounts  mounts
	issuer  *issuer       // nil: tasks log in
	ahead   *atomic.Int64 // how far Vault's clock is ahead of ours, in nanoseconds

	creating creations
	revoking sched.Lanes    // sessions that are being closed
	jitter   func() float64 // in [0,1), for each lease another
}

// NewClient prepares a client without talking to Vault. An error is a mistake in the cluster's configuration and names
// the field. Whoever made a client closes it.
func NewClient(c Cluster, logger hclog.Logger) (*Client, error) {
	u, err := url.Parse(c.Address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("vault %q: address %q is not a URL such as https://vault.example:8200", c.Name, c.Address)
	}
	if u.User != nil {
		return nil, fmt.Errorf("vault %q: address holds a user name or password: leave them out", c.Name)
	}
	conf := api.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("vault %q: read VAULT_ environment: %w", c.Name, conf.Error)
	}
	conf.Address = c.Address
	conf.MaxRetries = 0 // the library repeats any verb: a repeated read of database/creds mints a second user
	err = conf.ConfigureTLS(&api.TLSConfig{CACert: c.CAFile, CAPath: c.CAPath, ClientCert: c.CertFile,
		ClientKey: c.KeyFile, TLSServerName: c.TLSServerName, Insecure: c.TLSSkipVerify})
	if err != nil {
		return nil, fmt.Errorf("vault %q: ca_file, ca_path, cert_file or key_file: %w", c.Name, err)
	}
	limit, err := rateLimit(c.RateLimit)
	if err == nil {
		err = c.checkSource()
	}
	if err != nil {
		return nil, fmt.Errorf("vault %q: %w", c.Name, err)
	}
	transport := transport{conf.HttpClient.Transport.(*http.Transport), u, limit, new(atomic.Int64)}
	c.shape(transport.Transport)
	conf.HttpClient.Transport = transport
	base, err := api.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("vault %q: %w", c.Name, err)
	}
	client := &Client{cluster: c, base: base, sched: sched.New(), logger: logger.With("vault", c.Name), ahead: transport.ahead,
		revoking: sched.NewLanes(closeSideBySide), jitter: rand.Float64}
	if c.Issues() {
		client.issuer = newIssuer(client)
	}
	return client, nil
}

// Serve begins to look after the cluster's own token, where it has one. It calls changed, which must not block, when Status says something else.
func (c *Client) Serve(changed func()) {
	if c.issuer != nil {
		c.issuer.tell(changed)
		c.issuer.chore.Wake(time.Now())
	}
}

// Status is Ready, or says on one line why the cluster's own token or its token role does not work. It is empty for a cluster that tasks log in to.
func (c *Client) Status() string {
	if c.issuer == nil {
		return ""
	}
	return c.issuer.status()
}

// rateLimit reads a Cluster's RateLimit; its bucket is full.
func rateLimit(text string) (*rate.Limiter, error) {
	if text == "" {
		return rate.NewLimiter(rate.Inf, 0), nil
	}
	perSecond, most, both := strings.Cut(text, ":")
	limit, err := strconv.ParseFloat(perSecond, 64)
	burst := int(math.Ceil(limit))
	if err == nil && both {
		burst, err = strconv.Atoi(most)
	}
	if err != nil || !(limit > 0 && limit <= farAway) || burst < 1 {
		return nil, fmt.Errorf("rate_limit %q is not a number of requests a second, or that and a burst, such as \"50\" or \"50:100\"", text)
	}
	return rate.NewLimiter(rate.Limit(limit), burst), nil
}

// shape makes the transport one that many tasks can share.
func (c *Cluster) shape(t *http.Transport) {
	t.MaxIdleConnsPerHost = maxIdle
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: silence}
	t.DialContext, t.TLSHandshakeTimeout = (&net.Dialer{Timeout: dialWithin}).DialContext, dialWithin
	if c.Dial != nil {
		t.DialContext = c.Dial
	}
}

// finishWithin is how long a request that makes something goes on when nobody waits for its answer any more.
const finishWithin = 5 * time.Second

const (
	// answerWithin is how long Vault may take to answer, before a connection that may have gone silent is given up for another one. After each attempt
	// that got no answer in time the next one may take twice as long, for there are Vaults that are slow.
	answerWithin = 8 * time.Second
	// answerMost bounds that, and answerLeast is what a request has in any case, however near the end of what it is about.
	answerMost, answerLeast = time.Minute, 2 * time.Second
	// makingTakes is how many times as long a request that makes something may take: what Vault makes for one that is given up is lost.
	makingTakes = 3
)

// patience is how long a request may take after so many attempts in a row that got no answer in time.
func patience(slow int) time.Duration { return min(answerWithin<<min(slow, 6), answerMost) }

type (
	makingKey struct{} // of the context of who waits for a request that makes something
	limitKey  struct{} // of how long a request may take
)

// limited returns a context in which each request may take that long, once it is sent.
func limited(ctx context.Context, each time.Duration) context.Context {
	return context.WithValue(ctx, limitKey{}, each)
}

// making returns the context of a request that makes something, and what to call when it is over. It is sent once, and not cut off as soon
// as ctx ends: Vault forgets the database user that it has just made for a request that is cut off, and nobody revokes that one. The client's
// Close waits for it.
func (c *Client) making(ctx context.Context) (making context.Context, done func()) {
	release := c.creating.begin()
	end, bounded := ctx.Deadline()
	if !bounded {
		end = time.Now().Add(farAway * time.Second)
	}
	making, cut := context.WithDeadline(context.WithValue(context.WithoutCancel(ctx), makingKey{}, ctx), end.Add(finishWithin))
	if each, has := ctx.Value(limitKey{}).(time.Duration); has {
		making = limited(making, min(makingTakes*each, answerMost))
	}
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			time.AfterFunc(finishWithin, cut)
		}
	})
	return making, func() {
		stop()
		cut()
		release()
	}
}

// creations are the requests under way that make something.
type creations struct {
	mu    sync.Mutex // guards ended
	ended bool
	all   sync.WaitGroup
}

// begin has end wait until done is called. After end it does nothing.
func (c *creations) begin() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return func() {}
	}
	c.all.Add(1)
	return c.all.Done
}

// end returns when none is under way.
func (c *creations) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.all.Wait()
}

// transport sends the request of a context by making one time only: net/http by itself repeats a GET whose answer was lost on a kept
// connection, and a second GET of database/creds is a second user. It keeps to the rate limit, here rather than in the Vault API's own
// limiter, which lets a request pass when its deadline is too near to wait. It bounds what an answer can be, and where it can
// send us. And it looks at Vault's clock.
type transport struct {
	*http.Transport
	address *url.URL
	limit   *rate.Limiter
	ahead   *atomic.Int64
}

// CloseIdleConnections does nothing: the Vault API's library calls it after each request that failed, and they are the connections of every task.
func (t transport) CloseIdleConnections() {}

// errThrottled is why a request was not sent whose time would have been over before its turn.
var errThrottled = errors.New("too many requests before it")

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	if waiting, making := ctx.Value(makingKey{}).(context.Context); making {
		ctx = waiting // as long as nothing is sent
	}
	if ctx != r.Context() && r.Method == http.MethodGet {
		r = r.WithContext(r.Context())                               // a copy: a RoundTripper must not change what it is given
		r.Body, r.GetBody = io.NopCloser(strings.NewReader("")), nil // a body that cannot be had twice is not sent twice
	}
	if t.limit.Wait(ctx) != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, cmp.Or(ctx.Err(), errThrottled)
	}
	within, _ := r.Context().Value(limitKey{}).(time.Duration)
	answer, err := t.send(r, within)
	if err != nil {
		return nil, err
	}
	t.compare(answer.Header.Get("Date"), time.Now())
	answer.Body = http.MaxBytesReader(nil, answer.Body, mostAnswer)
	if err := t.checkRedirect(r, answer); err != nil {
		answer.Body.Close()
		return nil, err
	}
	return answer, nil
}

// send is RoundTrip for a request whose turn it is. The answer must have been read within that time, zero: there is no limit.
// Where there is none in time, the connections that nobody uses at the moment may be as dead: without HTTP/2 each of them would
// cost another attempt.
func (t transport) send(r *http.Request, within time.Duration) (*http.Response, error) {
	if within == 0 {
		return t.Transport.RoundTrip(r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), within)
	answer, err := t.Transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			t.Transport.CloseIdleConnections()
		}
		return nil, err
	}
	answer.Body = body{answer.Body, cancel}
	return answer, nil
}

// body is that of an answer, whose end is the end of the request.
type body struct {
	io.ReadCloser
	over context.CancelFunc
}

func (b body) Close() error {
	defer b.over()
	return b.ReadCloser.Close()
}

// sameTime is what two clocks may differ by that tell the same time: answers are dated in whole seconds, and are some time on their way.
const sameTime = 5 * time.Second

// compare takes note of the clock of who dated an answer (RFC 9110 §6.6.1). The few answers that tell an end as a point in time are
// understood by it.
func (t transport) compare(date string, now time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		return
	}
	ahead := at.Sub(now)
	if ahead.Abs() < sameTime {
		ahead = 0
	}
	t.ahead.Store(int64(ahead))
}

// Cluster returns the configuration the client was made from.
func (c *Client) Cluster() Cluster { return c.cluster }

// Close ends all that the client asks of Vault by itself, leaves its sessions as they are, and returns when no request is under way any more:
// what one of them makes would be lost. It may be called again.
func (c *Client) Close() {
	c.sched.Close()
	c.creating.end()
	c.base.CloneConfig().HttpClient.Transport.(transport).Transport.CloseIdleConnections()
}

// answers asks Vault what costs nothing. It is nil for a Vault that is sealed or on standby, too.
func (c *Client) answers(ctx context.Context) error {
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
