package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver/sched"
)

const (
	// lookEvery is how often a token and a token role that are good are looked at again, where the token is not renewed sooner.
	lookEvery = time.Hour
	// doubtEvery is how often tasks that miss their token can make it be looked at.
	doubtEvery = time.Second
)

// issuer makes tokens for tasks by a token role, with a token of the cluster's own, as Nomad's servers did until 1.9
// (https://developer.hashicorp.com/vault/docs/concepts/tokens#token-roles). Its chore renews that token, follows the file that it is in, and finds
// out whether token and role are good: as long as they are not, no task gets a token.
type issuer struct {
	client  *Client
	chore   *sched.Chore
	advised map[string]bool // what was logged of the present token and role; the chore's own

	mu      sync.Mutex // guards what follows
	changed func()     // told when status says something else
	token   string     // the cluster's own, as looked at last
	off     error      // why no task gets a token; nil: they do
	looked  time.Time  // when that was found out
	upkeep  upkeep

	settled chan struct{} // closed when it is found out anew
}

// unlooked is why no task gets a token at first.
func unlooked() error {
	return &Error{Class: errNotYet, Op: "look up the cluster's own token", Detail: "it was not looked up yet"}
}

func newIssuer(c *Client) *issuer {
	i := &issuer{client: c, changed: func() {}, advised: map[string]bool{}, off: unlooked(), upkeep: newUpkeep(),
		settled: make(chan struct{})}
	i.chore = c.sched.Add(i.step)
	return i
}

// tell has changed called when status says something else.
func (i *issuer) tell(changed func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changed = changed
}

// status is one line for the operator.
func (i *issuer) status() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.said()
}

func (i *issuer) said() string {
	if i.off != nil {
		return i.off.Error()
	}
	return Ready
}

// Ready is the status of a cluster that makes tokens by its token role.
const Ready = "ready"

// step looks at the token when it is due or another one is in its file.
func (i *issuer) step(ctx context.Context) time.Time {
	i.mu.Lock()
	known, works, due := i.token, i.off == nil, i.upkeep.due(time.Now())
	i.mu.Unlock()
	own, err := i.client.cluster.ownToken()
	if err != nil && works { // somebody writes the file, or has removed it: the token that is known is good until Vault says otherwise
		i.advise(err.Error())
		own, err = known, nil
	}
	switch {
	case err != nil:
		i.settle(ctx, "", Lease{}, err)
	case own != known || due:
		if own != known {
			clear(i.advised)
		}
		lease, err := i.look(ctx, own)
		i.settle(ctx, own, lease, err)
	}
	return i.next()
}

func (i *issuer) next() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.client.cluster.TokenFile == "" {
		return i.upkeep.at
	}
	return sched.Earlier(i.upkeep.at, time.Now().Add(followEvery))
}

// settle takes note of what was found out of a token. An outage says nothing of one that was good before.
func (i *issuer) settle(ctx context.Context, own string, l Lease, err error) {
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	i.mu.Lock()
	before, works := i.said(), i.off == nil
	switch {
	case err == nil:
		i.token, i.off = own, nil
		at := now.Add(lookEvery - fraction(lookEvery/10, l.Jitter))
		if !l.Ends.IsZero() {
			at = sched.Earlier(at, sched.Later(l.renewAt(), now.Add(doubtEvery)))
		}
		i.upkeep.well(at)
	case unasked(err) && works:
		i.upkeep.at = now.Add(i.upkeep.patient.Next())
	default:
		i.token, i.off = own, hush(err)
		i.upkeep.at = now.Add(i.upkeep.patient.Next())
	}
	i.looked = now
	close(i.settled)
	i.settled = make(chan struct{})
	after, changed := i.said(), i.changed
	i.mu.Unlock()
	switch log := i.client.logger; {
	case after == before:
		return
	case after == Ready:
		log.Info("tasks get tokens by the token role", "role", i.client.cluster.Role)
	default:
		log.Warn("tasks get no tokens", "error", after)
	}
	changed()
}

// advise logs once what is not wrong but could be better.
func (i *issuer) advise(text string) {
	if !i.advised[text] {
		i.advised[text] = true
		i.client.logger.Warn(text)
	}
}

// look renews the cluster's own token and checks its rights and the token role.
func (i *issuer) look(ctx context.Context, own string) (Lease, error) {
	as, err := i.client.as(own, i.client.cluster.Namespace)
	if err != nil {
		return Lease{}, err
	}
	lease, err := i.renew(ctx, as)
	if err == nil {
		err = i.checkRights(ctx, as)
	}
	if err == nil {
		err = i.checkRole(ctx, as)
	}
	return lease, err
}

func (i *issuer) renew(ctx context.Context, as *api.Client) (Lease, error) {
	now := time.Now()
	known, err := i.client.lookUpSelf(ctx, as, "look up the cluster's own token")
	if err != nil {
		return Lease{}, i.explainOwn(err, "auth/token/lookup-self", "read")
	}
	ttl, _ := known.TokenTTL()
	renewable, _ := known.TokenIsRenewable()
	switch {
	case ttl == 0: // a root token
		return newLease("", 0, false, now, i.client.jitter()), nil
	case !renewable:
		i.advise("the cluster's own token is not renewable, and ends with its TTL: make one with vault token create -orphan -period=72h")
		return newLease("", ttl, false, now, i.client.jitter()), nil
	case known.Data["period"] == nil:
		i.advise("the cluster's own token is not periodic, and ends with its maximum TTL: make one with vault token create -orphan -period=72h")
	}
	answer, err := as.Auth().Token().RenewSelfWithContext(ctx, 0)
	err = i.client.fail("renew the cluster's own token", err)
	switch {
	case unasked(err):
		return Lease{}, err
	case err != nil:
		i.advise(i.explainOwn(err, "auth/token/renew-self", "update").Error())
	case answer != nil && answer.Auth != nil:
		ttl = span(answer.Auth.LeaseDuration)
	}
	return newLease("", ttl, true, now, i.client.jitter()), nil
}

// explainOwn adds to a denial of what was asked with the cluster's own token what to do.
func (i *issuer) explainOwn(err error, path, capability string) error {
	c := i.client.cluster
	if unknown(err) {
		return hinted(err, fmt.Sprintf("put a token that is valid into %s of %s", c.field(), i.client.block()))
	}
	return hinted(err, fmt.Sprintf("a policy of the cluster's own token must have: path %q { capabilities = [%q] }", path, capability))
}

// checkRights asks whether the token may do what it is for. A token that may not even ask that finds out when it is used.
func (i *issuer) checkRights(ctx context.Context, as *api.Client) error {
	const byAccessor = "auth/token/revoke-accessor"
	create := i.path()
	answer, err := as.Logical().WriteWithContext(ctx, "sys/capabilities-self", map[string]any{"paths": []string{create, byAccessor}})
	err = i.client.fail("look up the rights of the cluster's own token", err)
	if unasked(err) {
		return err
	}
	if err != nil || answer == nil {
		return nil
	}
	if !may(answer, create) {
		return i.explainOwn(&Error{Class: ErrDenied, Op: i.op(), Detail: "the cluster's own token has no right to"}, create, "update")
	}
	if !may(answer, byAccessor) {
		i.advise(fmt.Sprintf("tokens that may not revoke themselves will end with their TTL: %q is not granted to the cluster's own token", byAccessor))
	}
	return nil
}

func may(answer *api.Secret, path string) bool {
	granted, _ := answer.Data[path].([]any)
	return slices.Contains(granted, any("update")) || slices.Contains(granted, any("root"))
}

func (i *issuer) path() string { return "auth/token/create/" + i.client.cluster.Role }

func (i *issuer) op() string {
	return fmt.Sprintf("make a token by token role %q of vault %q", i.client.cluster.Role, i.client.cluster.Name)
}

// checkRole returns an error where the role's tokens would not live as long as tasks do.
func (i *issuer) checkRole(ctx context.Context, as *api.Client) error {
	name := i.client.cluster.Role
	op, path := fmt.Sprintf("check token role %q", name), "auth/token/roles/"+name
	role, err := as.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return i.explainOwn(i.client.fail(op, err), path, "read")
	}
	if role == nil {
		return &Error{Class: ErrNotFound, Op: op, Detail: "there is no such role",
			Hint: fmt.Sprintf("vault write %s token_period=72h orphan=true disallowed_policies=..., or correct create_from_role in %s", path, i.client.block())}
	}
	wrong := func(detail, hint string) error {
		return &Error{Class: ErrInvalid, Op: op, Detail: detail, Hint: fmt.Sprintf("vault write %s %s", path, hint)}
	}
	switch {
	case seconds(role, "token_period")+seconds(role, "period") <= 0:
		return wrong("token_period is 0: its tokens would end while tasks run", "token_period=72h")
	case seconds(role, "token_explicit_max_ttl")+seconds(role, "explicit_max_ttl") > 0:
		return wrong("token_explicit_max_ttl is set: its tokens would end while tasks run", "token_explicit_max_ttl=0")
	case role.Data["renewable"] == false:
		return wrong("renewable is false: its tokens would end while tasks run", "renewable=true")
	}
	if role.Data["orphan"] == false {
		i.advise(fmt.Sprintf("token role %q has orphan = false: when the cluster's own token ends, the tokens of all tasks end with it", name))
	}
	return nil
}

func seconds(role *api.Secret, field string) int64 {
	number, _ := role.Data[field].(json.Number)
	n, _ := number.Int64()
	return n
}

// doubt makes the chore look at the token, unless it has just done so, and reports whether it will. Call with mu held.
func (i *issuer) doubt() bool {
	now := time.Now()
	if now.Sub(i.looked) < doubtEvery {
		return false
	}
	i.upkeep.at = now
	i.chore.Wake(now)
	return true
}

// own returns the cluster's own token. Where it did not work, it is looked at again first, for which this waits until patience ends.
func (i *issuer) own(patience context.Context) (string, error) {
	i.mu.Lock()
	again, settled := i.off != nil && i.doubt(), i.settled
	i.mu.Unlock()
	if again {
		select {
		case <-settled:
		case <-patience.Done():
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var e *Error
	if !errors.As(i.off, &e) {
		return i.token, i.off
	}
	why := *e // a caller may change it
	return "", &why
}

// issue makes token number n of a session. It asks once.
func (i *issuer) issue(ctx, patience context.Context, login Login, n int) (*token, error) {
	own, err := i.own(patience)
	if err != nil {
		return nil, err
	}
	as, err := i.client.as(own, i.client.cluster.Namespace)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	answer, err := as.Auth().Token().CreateWithRoleWithContext(ctx, &api.TokenCreateRequest{Policies: login.Policies,
		DisplayName: login.DisplayName, Metadata: login.Metadata}, i.client.cluster.Role)
	if err != nil {
		return nil, i.explain(i.client.fail(i.op(), err))
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return nil, &Error{Class: ErrInvalid, Op: i.op(), Detail: "the answer has no token"}
	}
	t := newToken(n, answer.Auth, now, i.client.jitter())
	i.client.logger.Debug("made a token", "role", i.client.cluster.Role, "accessor", t.Accessor, "policies", t.Policies, "ttl", t.Lease.TTL)
	return t, nil
}

// explain adds to a token that was refused what to do, and has the chore find out what else has changed.
func (i *issuer) explain(err error) error {
	var e *Error
	if !errors.As(err, &e) || unasked(err) {
		return err
	}
	i.mu.Lock()
	i.doubt()
	i.mu.Unlock()
	role := fmt.Sprintf("token role %q", i.client.cluster.Role)
	switch says := func(text string) bool { return strings.Contains(e.Detail, text) }; {
	case unknown(err):
		e.Class = errNotYet // there may be another one in token_file
		e.Hint = fmt.Sprintf("put a token that is valid into %s of %s", i.client.cluster.field(), i.client.block())
	case says("allowed policies"), says("disallowed by this role"):
		e.Hint = fmt.Sprintf("correct policies in the task's vault block, or allowed_policies and disallowed_policies of %s", role)
	case says("subset of parent"):
		e.Hint = fmt.Sprintf("set allowed_policies or disallowed_policies of %s", role)
	default:
		return i.explainOwn(err, i.path(), "update")
	}
	return err
}

// revoke ends a token that may not do so itself. One that Vault does not know has ended already.
func (i *issuer) revoke(ctx context.Context, accessor string) error {
	i.mu.Lock()
	own := i.token
	i.mu.Unlock()
	if own == "" {
		return unlooked()
	}
	as, err := i.client.as(own, i.client.cluster.Namespace)
	if err != nil {
		return err
	}
	err = i.client.fail("revoke token by accessor", as.Auth().Token().RevokeAccessorWithContext(ctx, accessor))
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return i.explainOwn(err, "auth/token/revoke-accessor", "update")
}
