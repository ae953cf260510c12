// Package tokenrole makes tokens for tasks by a token role of Vault, with a token of the cluster's own, as Nomad's
// servers did until 1.9 (https://developer.hashicorp.com/vault/docs/concepts/tokens#token-roles).
package tokenrole

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

const (
	// checkEvery is how often a token and a token role that work are checked again, where the token is not renewed sooner.
	checkEvery = time.Hour
	// recheckEvery is how often tasks that miss their token can have it checked.
	recheckEvery = time.Second
	// readEvery is how often the token's file is read.
	readEvery = 5 * time.Second
)

// Ready is the status of a cluster that makes tokens by its token role.
const Ready = "ready"

// Issuer looks after the token of a cluster's own: it renews that token, reads the file that it is in again, and finds
// out whether token and token role work. As long as they do not, no task gets a token.
type Issuer struct {
	client  *vault.Client
	cluster vault.Cluster
	logger  hclog.Logger
	chore   *sched.Chore
	advised map[string]bool // what was logged of the present token and role; the chore's run owns it

	mu        sync.Mutex // guards what follows
	onChange  func()     // called when Status changes
	token     string     // the cluster's own, as checked last
	broken    error      // why no task gets a token; nil: they do
	checkedAt time.Time
	checked   chan struct{} // closed after the next check
	dueAt     time.Time     // of the next check
	backoff   sched.Backoff // of checks that failed
}

// errUnchecked is why no task gets a token at first.
func errUnchecked() error {
	return &vault.Error{Class: vault.ErrNotYet, Op: "look up the cluster's own token", Detail: "it was not looked up yet"}
}

// New returns the issuer of the client's cluster, which begins its work with Serve. The error names the field of a
// cluster that cannot make tokens as it is configured.
func New(client *vault.Client, scheduler *sched.Scheduler, logger hclog.Logger) (*Issuer, error) {
	cluster := client.Cluster()
	if err := validate(cluster); err != nil {
		return nil, fmt.Errorf("vault %q: %w", cluster.Name, err)
	}
	i := &Issuer{client: client, cluster: cluster, logger: logger, onChange: func() {}, advised: map[string]bool{},
		broken:  errUnchecked(),
		backoff: sched.Backoff{First: time.Second, Most: time.Minute}, checked: make(chan struct{})}
	i.chore = scheduler.Add(i.step)
	return i, nil
}

// Serve begins to look after the token. It calls changed, which must not block, when Status changes.
func (i *Issuer) Serve(changed func()) {
	i.mu.Lock()
	i.onChange = changed
	i.mu.Unlock()
	i.chore.Wake(time.Now())
}

// Status is Ready, or says on one line why no task gets a token.
func (i *Issuer) Status() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.status()
}

// status is Status with mu held.
func (i *Issuer) status() string {
	if i.broken != nil {
		return i.broken.Error()
	}
	return Ready
}

// step checks the token when it is due or another one is in its file.
func (i *Issuer) step(ctx context.Context) time.Time {
	i.mu.Lock()
	known, works, due := i.token, i.broken == nil, !i.dueAt.IsZero() && !i.dueAt.After(time.Now())
	i.mu.Unlock()
	own, err := readOwnToken(i.cluster)
	// somebody writes the file, or has removed it: the known token is good until Vault says otherwise
	if err != nil && works {
		i.advise(err.Error())
		own, err = known, nil
	}
	switch {
	case err != nil:
		i.recordCheck(ctx, "", vault.Lease{}, err)
	case own != known || due:
		if own != known {
			clear(i.advised)
		}
		lease, err := i.check(ctx, own)
		i.recordCheck(ctx, own, lease, err)
	}
	return i.next()
}

func (i *Issuer) next() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cluster.TokenFile == "" {
		return i.dueAt
	}
	return sched.Earlier(i.dueAt, time.Now().Add(readEvery))
}

// recordCheck stores the result of a check of the token own, whose lease is l. If Vault could not be asked, a token
// that worked still does.
func (i *Issuer) recordCheck(ctx context.Context, own string, l vault.Lease, err error) {
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	i.mu.Lock()
	before, works := i.status(), i.broken == nil
	switch {
	case err == nil:
		i.token, i.broken = own, nil
		i.dueAt = now.Add(checkEvery - sched.Fraction(checkEvery/10, l.Jitter))
		if !l.Ends.IsZero() {
			i.dueAt = sched.Earlier(i.dueAt, sched.Later(l.RenewAt(), now.Add(recheckEvery)))
		}
		i.backoff.Reset()
	case vault.Unreachable(err) && works:
		i.dueAt = now.Add(i.backoff.Next())
	default:
		i.token, i.broken = own, vault.MarkNothingIssued(err)
		i.dueAt = now.Add(i.backoff.Next())
	}
	i.checkedAt = now
	close(i.checked)
	i.checked = make(chan struct{})
	after, changed := i.status(), i.onChange
	i.mu.Unlock()
	switch {
	case after == before:
		return
	case after == Ready:
		i.logger.Info("tasks get tokens by the token role", "role", i.cluster.Role)
	default:
		i.logger.Warn("tasks get no tokens", "error", after)
	}
	changed()
}

// recheck has the chore check the token, unless it has just done so, and reports whether it will. Call with mu held.
func (i *Issuer) recheck() bool {
	now := time.Now()
	if now.Sub(i.checkedAt) < recheckEvery {
		return false
	}
	i.dueAt = now
	i.chore.Wake(now)
	return true
}

// workingToken returns the cluster's own token. One that did not work is checked again first, for which this waits
// until patience ends.
func (i *Issuer) workingToken(patience context.Context) (string, error) {
	i.mu.Lock()
	again, checked := i.broken != nil && i.recheck(), i.checked
	i.mu.Unlock()
	if again {
		select {
		case <-checked:
		case <-patience.Done():
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var e *vault.Error
	if !errors.As(i.broken, &e) {
		return i.token, i.broken
	}
	why := *e // a caller may change it
	return "", &why
}

// as asks Vault with the cluster's own token.
func (i *Issuer) as(own string) *vault.Caller {
	return i.client.As(vault.Auth{Value: own}, "", i.cluster.Namespace)
}

// explain adds to a token that Vault refused to make what to do, and has the chore find out what else has changed.
func (i *Issuer) explain(err error) error {
	var e *vault.Error
	if !errors.As(err, &e) || vault.Unreachable(err) {
		return err
	}
	i.mu.Lock()
	i.recheck()
	i.mu.Unlock()
	role := fmt.Sprintf("token role %q", i.cluster.Role)
	switch says := func(text string) bool { return strings.Contains(e.Detail, text) }; {
	case vault.UnknownToken(err):
		e.Class = vault.ErrNotYet // there may be another one in token_file
		e.Hint = fmt.Sprintf("put a token that is valid into %s of %s", tokenField(i.cluster), i.cluster.Block())
	case says("allowed policies"), says("disallowed by this role"):
		e.Hint = fmt.Sprintf("correct policies in the task's vault block, "+
			"or allowed_policies and disallowed_policies of %s", role)
	case says("subset of parent"):
		e.Hint = fmt.Sprintf("set allowed_policies or disallowed_policies of %s", role)
	default:
		return i.explainDenial(err, i.createPath(), "update")
	}
	return err
}

// A Source makes the tokens of one session by the token role. It is a session.TokenSource.
type Source struct {
	issuer  *Issuer
	request vault.TokenRequest
}

// Source returns what makes tokens of that kind.
func (i *Issuer) Source(r vault.TokenRequest) Source { return Source{issuer: i, request: r} }

// Obtain makes a token. It asks once, and before that waits until patience ends for a token of the cluster's own that
// works.
func (s Source) Obtain(ctx, patience context.Context) (vault.Auth, error) {
	own, err := s.issuer.workingToken(patience)
	if err != nil {
		return vault.Auth{}, err
	}
	auth, err := s.issuer.as(own).CreateToken(ctx, s.issuer.cluster.Role, s.request)
	return auth, s.issuer.explain(err)
}

// Superseded returns false: nobody else replaces the tokens.
func (s Source) Superseded(vault.Auth) bool { return false }

// RevokeDenied ends a token whose policies do not let it revoke itself. One that Vault does not know has ended already.
func (s Source) RevokeDenied(ctx context.Context, a vault.Auth, _ error) error {
	i := s.issuer
	i.mu.Lock()
	own := i.token
	i.mu.Unlock()
	if own == "" {
		return errUnchecked()
	}
	err := i.as(own).RevokeAccessor(ctx, a.Accessor)
	if errors.Is(err, vault.ErrInvalid) || errors.Is(err, vault.ErrNotFound) {
		return nil
	}
	return i.explainDenial(err, "auth/token/revoke-accessor", "update")
}

// WaitsFor says what Obtain waits for.
func (s Source) WaitsFor() string { return "Vault to make a token" }
