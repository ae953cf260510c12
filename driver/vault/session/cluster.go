// Package session keeps what a task has from Vault alive. A Session is one token and everything read with it; a Cluster
// is what the sessions at one Vault share, with a scheduler that renews, polls and replaces for them.
//
// A Session answers each question once. Begin starts a Reading, a consistent look at those answers; Commit says that a
// reading is in use now, after which Changed tells when something it showed has been replaced. Nothing here acts on the
// task, and nothing here prints a secret.
package session

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/tokenrole"
)

// closeLanes is how many sessions of a cluster are closed at once: a node whose thousand tasks end together is no storm
// for Vault.
const closeLanes = 16

// Cluster is what the sessions at one Vault share.
type Cluster struct {
	client    *vault.Client
	scheduler *sched.Scheduler
	issuer    *tokenrole.Issuer // nil: tasks log in
	closing   sched.Lanes       // sessions that are being closed
	logger    hclog.Logger
}

// NewCluster prepares a cluster without talking to Vault. An error is a mistake in its configuration and names the
// field. Whoever made a cluster closes it.
func NewCluster(config vault.Cluster, logger hclog.Logger) (*Cluster, error) {
	client, err := vault.NewClient(config, logger)
	if err != nil {
		return nil, err
	}
	c := NewClusterOf(client, logger)
	if config.Issues() {
		if c.issuer, err = tokenrole.New(client, c.scheduler, c.logger); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// NewClusterOf is NewCluster with a client that is there already. Its tasks log in, or have a token.
func NewClusterOf(client *vault.Client, logger hclog.Logger) *Cluster {
	return &Cluster{client: client, scheduler: sched.New(), closing: sched.NewLanes(closeLanes),
		logger: logger.With("vault", client.Cluster().Name)}
}

// Config returns what the cluster was made from.
func (c *Cluster) Config() vault.Cluster { return c.client.Cluster() }

// Serve begins to look after the cluster's own token, where it has one. It calls changed, which must not block, when
// Status changes.
func (c *Cluster) Serve(changed func()) {
	if c.issuer != nil {
		c.issuer.Serve(changed)
	}
}

// Status is tokenrole.Ready, or says on one line why the cluster's own token or its token role does not work. It is
// empty for a cluster that tasks log in to.
func (c *Cluster) Status() string {
	if c.issuer == nil {
		return ""
	}
	return c.issuer.Status()
}

// Close ends all upkeep, leaves the sessions as they are, and returns when no request is under way any more that
// creates something, which would be lost. It may be called again.
func (c *Cluster) Close() {
	c.scheduler.Close()
	c.client.Close()
}

// Options of a session.
type Options struct {
	Login Login
	// Notify receives notices, one at a time, from the goroutine that met them; it must not block or call the session.
	Notify func(Notice)
	// Changed is what the method Changed returns: one channel, with room for one, may serve several sessions of a task.
	// Nil: the session makes its own.
	Changed chan struct{}
}

// Open obtains a token and returns a session. It tries until ctx ends as long as waiting can help; the error is then
// the last one met.
func (c *Cluster) Open(ctx context.Context, o Options) (*Session, error) {
	s := c.newSession(o)
	err := s.firstToken(ctx)
	if err != nil {
		s.chore.End()
		return nil, err
	}
	s.lease, s.used = s.token.Lease, s.token.N
	s.upkeep.backoff.Jitter = s.lease.Jitter
	s.upkeep.at = s.token.due(s.lease, time.Now())
	s.wake()
	return s, nil
}

func (c *Cluster) newSession(o Options) *Session {
	s := &Session{cluster: c, role: o.Login.Role, namespace: o.Login.Namespace, logins: newCtxLock(),
		notify: o.Notify, changed: o.Changed, upkeep: newUpkeep(), items: map[string]*item{}}
	if s.namespace == "" {
		s.namespace = c.Config().Namespace
	}
	if s.role == "" && c.issuer == nil {
		s.role = c.Config().Role
	}
	if s.changed == nil {
		s.changed = make(chan struct{}, 1)
	}
	s.source = s.sourceOf(o.Login)
	s.chore = c.scheduler.Add(s.step)
	return s
}
