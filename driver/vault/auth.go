package vault

import (
	"fmt"
	"time"

	"github.com/hashicorp/vault/api"
)

// replicatedWithin is how long a denial may mean that the node of Vault that was asked has not heard of the token yet
// (https://developer.hashicorp.com/vault/docs/enterprise/consistency).
const replicatedWithin = time.Second

// Auth is a Vault token with what Vault says of it. It does not change and does not print its value.
type Auth struct {
	Value    string   `json:"value"`
	Accessor string   `json:"accessor"` // identifies the token in Vault's audit log; empty: a batch token
	Policies []string `json:"policies"`
	Lease    Lease    `json:"lease"` // as granted
	// External tokens belong to somebody else, who renews and revokes them.
	External bool `json:"given,omitempty"`
}

// String keeps the value out of logs and error messages.
func (a Auth) String() string { return fmt.Sprintf("[token %s]", a.Accessor) }

// GoString is String, for %#v.
func (a Auth) GoString() string { return a.String() }

// Revocable reports whether the token can be revoked by its holder, which ends its leases, too. A batch token cannot
// (https://developer.hashicorp.com/vault/docs/concepts/tokens#batch-tokens), and an external one is not ours to revoke.
func (a Auth) Revocable() bool { return a.Accessor != "" && !a.External }

// uncertain is for how long a denial may still mean that the node of Vault that was asked has not heard of the token
// yet. Zero or less: it does not mean that any more.
func (a Auth) uncertain() time.Duration { return replicatedWithin - time.Since(a.Lease.Issued) }

// newAuth reads what Vault issued.
func newAuth(issued *api.SecretAuth, now time.Time, jitter float64) Auth {
	return Auth{Value: issued.ClientToken, Accessor: issued.Accessor, Policies: issued.Policies,
		Lease: NewLease("", span(issued.LeaseDuration), issued.Renewable, now, jitter)}
}

// same reports that both are the same token, or none.
func (a *Auth) same(other *Auth) bool {
	if a == nil || other == nil {
		return a == other
	}
	return a.Value == other.Value
}
