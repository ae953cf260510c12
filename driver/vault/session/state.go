package session

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// saved is a session at rest: all that it takes to go on with the same token and the same leases in another process.
type saved struct {
	Cluster   string      `json:"cluster"`
	Address   string      `json:"address"` // of the cluster, whose token is shown to no other
	Role      string      `json:"role"`
	Namespace string      `json:"namespace"`
	Token     *token      `json:"token"`
	Lease     vault.Lease `json:"lease"` // of the token
	Used      int         `json:"used"`
	Items     []savedItem `json:"items,omitempty"`
	Retired   []*token    `json:"retired,omitempty"`
	Spent     []spent     `json:"spent,omitempty"`
	Leaves    bool        `json:"leaves,omitempty"`
}

type savedItem struct {
	Request vault.Request `json:"request"`
	Secret  *vault.Secret `json:"secret"`
	Lease   vault.Lease   `json:"lease"`
	Gone    bool          `json:"gone,omitempty"`
	InUse   bool          `json:"in_use,omitempty"`
	Used    *vault.Secret `json:"used,omitempty"` // only where it differs from Secret
	Held    []savedItem   `json:"held,omitempty"`
	Minted  []time.Time   `json:"minted,omitempty"`
}

func (it *item) save() savedItem {
	one := savedItem{Request: it.req, Secret: it.secret, Lease: it.lease, Gone: it.gone, InUse: it.used != nil,
		Minted: it.minted}
	for _, old := range it.held {
		one.Held = append(one.Held, old.save())
	}
	if it.used != it.secret {
		one.Used = it.used
	}
	return one
}

// Save returns the session for Adopt. It holds the token and every secret: it belongs in memory-backed files that only
// root can read, and nowhere else.
func (s *Session) Save() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := saved{Cluster: s.cluster.Config().Name, Address: s.cluster.Config().Address, Role: s.role,
		Namespace: s.namespace, Token: s.token, Lease: s.lease,
		Used: s.used, Retired: s.retired, Spent: s.spent, Leaves: s.revocationDenied}
	for _, it := range s.items {
		out.Items = append(out.Items, it.save())
	}
	return json.Marshal(out)
}

// Adopt returns the session that Save described, without asking Vault: the same token, leases and secrets, as the
// process before this one used them. What Vault thinks of them is asked next, in the background. An error means that
// the state is not usable, or was not this login's, and a new session must be opened.
func (c *Cluster) Adopt(state []byte, o Options) (*Session, error) {
	in, err := decode(state)
	if err != nil {
		return nil, fmt.Errorf("decode saved session: %w", err)
	}
	if in.Address != "" && in.Address != c.Config().Address { // older states have none
		return nil, fmt.Errorf("adopt session: %w: its token is from %s, and %s has the address %s",
			ErrElsewhere, in.Address, c.Config().Block(), c.Config().Address)
	}
	s := c.newSession(o)
	if in.Cluster != c.Config().Name || in.Role != s.role || in.Namespace != s.namespace {
		s.chore.End()
		return nil, fmt.Errorf("adopt session: it belongs to role %q in namespace %q of vault %q",
			in.Role, in.Namespace, in.Cluster)
	}
	s.resume(in, time.Now())
	if s.stale() {
		s.signalChanged()
	}
	s.wake()
	return s, nil
}

// ErrElsewhere is what Adopt returns for the session of another Vault than the client's. Nothing was sent: a client of
// that Vault can adopt it.
var ErrElsewhere = errors.New("the session is of another Vault")

// decode returns a state that is complete, as far as it can be seen.
func decode(state []byte) (*saved, error) {
	var in saved
	dec := json.NewDecoder(bytes.NewReader(state))
	dec.UseNumber() // as vault/api decodes answers, so that a secret compares equal to itself
	if err := dec.Decode(&in); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows it")
	}
	for _, t := range in.tokens() {
		if t == nil || t.Value == "" {
			return nil, errors.New("it lacks a token")
		}
	}
	for _, one := range in.Items {
		if one.Secret == nil {
			return nil, fmt.Errorf("it has no answer to %s %s", one.Request.Op, one.Request.Path)
		}
	}
	return &in, nil
}

// tokens are all that the session has.
func (in *saved) tokens() []*token {
	all := append([]*token{in.Token}, in.Retired...)
	for _, sp := range in.Spent {
		if sp.Token != nil {
			all = append(all, sp.Token)
		}
	}
	return all
}

// verifyWithin spreads the first requests of sessions that were adopted together.
const verifyWithin = 3 * time.Second

// resume takes over what was saved, and makes due what only Vault can tell: whether the token and the leases still
// live.
func (s *Session) resume(in *saved, now time.Time) {
	for _, t := range in.tokens() {
		s.attach(t)
	}
	s.token, s.lease, s.used, s.revocationDenied = in.Token, in.Lease.Resumed(now), in.Used, in.Leaves
	s.retired, s.spent, s.upkeep.backoff.Jitter = in.Retired, in.Spent, s.lease.Jitter
	s.forgetEnded(now)
	s.unverified, s.upkeep.at = true, now.Add(sched.Fraction(verifyWithin, s.lease.Jitter))
	for _, one := range in.Items {
		it := newItem(one.Request, one.Secret)
		it.lease, it.gone, it.minted = one.Lease.Resumed(now), one.Gone, one.Minted
		if it.used = one.Used; it.used == nil && one.InUse {
			it.used = one.Secret
		}
		for _, old := range one.Held {
			// a reading shows it until there is another
			if handle := old.Secret.Handle(); handle == it.used.Handle() || handle == it.secret.Handle() {
				it.hold(old.Secret, old.Lease.Resumed(now), now)
			} else { // no reading of that process can commit any more
				s.spend(newItem(old.Request, old.Secret), now, 0)
			}
		}
		it.plan(now)
		s.items[it.req.Key()] = it
	}
	for it := range s.kept {
		if it.renew {
			it.at = now.Add(sched.Fraction(verifyWithin, it.lease.Jitter))
		}
	}
}
