package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nomad-driver-vault/driver/vault"
)

// TokenSource is where a session gets its tokens: by JWT, from Nomad, or by a token role (tokenrole.Source).
type TokenSource interface {
	// Obtain returns another token. It asks Vault once, in a request that ctx bounds. What it needs before that it waits
	// for until patience ends.
	Obtain(ctx, patience context.Context) (vault.Auth, error)
	// Superseded reports, without asking Vault, that somebody else has replaced the token by another.
	Superseded(vault.Auth) bool
	// RevokeDenied is for a token whose policies do not let it revoke itself, as the error says. It returns nil when the
	// token is revoked all the same.
	RevokeDenied(context.Context, vault.Auth, error) error
	// WaitsFor says what Obtain waits for.
	WaitsFor() string
}

// Login is who asks for a session, and as what.
type Login struct {
	Role      string // empty: the cluster's, or else the auth method's default role
	Namespace string // empty: the cluster's
	// JWT returns the task's current workload identity; it may wait for one until ctx ends.
	JWT func(ctx context.Context) (string, error)
	// NomadToken, where it is not nil, returns the token that Nomad has made for the task and renews. It is used in place
	// of a login as it is, followed when it is replaced, and neither renewed nor revoked.
	NomadToken func() (string, error)

	// Token is what the task's token is to have where the cluster makes tokens by a token role.
	Token vault.TokenRequest
}

// byJWT logs in with the task's workload identity.
type byJWT struct {
	client          *vault.Client
	role, namespace string
	jwt             func(context.Context) (string, error)
}

func (b byJWT) Obtain(ctx, patience context.Context) (vault.Auth, error) {
	jwt, err := b.jwt(patience)
	if err != nil {
		return vault.Auth{}, err
	}
	return b.client.Login(ctx, b.role, b.namespace, jwt)
}

func (b byJWT) Superseded(vault.Auth) bool { return false }

func (b byJWT) RevokeDenied(_ context.Context, _ vault.Auth, denied error) error { return denied }

func (b byJWT) WaitsFor() string { return "the task's identity, or for Vault to log in with it" }

// fromNomad takes the token that Nomad keeps for the task.
type fromNomad struct {
	client    *vault.Client
	namespace string
	read      func() (string, error)
}

// Obtain returns Nomad's token. One that Vault does not know is about to be replaced.
func (n fromNomad) Obtain(ctx, _ context.Context) (vault.Auth, error) {
	value, err := n.read()
	if err != nil {
		return vault.Auth{}, err
	}
	auth := vault.Auth{Value: value, External: true}
	known, err := n.client.As(auth, "", n.namespace).LookUp(ctx, "look up token")
	if errors.Is(err, vault.ErrDenied) {
		return vault.Auth{}, &vault.Error{Class: vault.ErrNotYet, Op: "look up the task's token",
			Detail: "Vault does not know it",
			Hint:   fmt.Sprintf("waiting for another one; is %s the Vault that it is from?", n.client.Cluster().Address)}
	}
	if err != nil {
		return vault.Auth{}, vault.MarkNothingIssued(err)
	}
	auth.Accessor, auth.Policies = known.Accessor, known.Policies
	auth.Lease = remaining(n.client, known, time.Now())
	return auth, nil
}

func (n fromNomad) Superseded(a vault.Auth) bool {
	value, err := n.read()
	return err == nil && value != a.Value
}

func (n fromNomad) RevokeDenied(_ context.Context, _ vault.Auth, denied error) error { return denied }

func (n fromNomad) WaitsFor() string { return "the task's identity, or for Vault to log in with it" }

// remaining is what a look at an external token says of its life.
func remaining(client *vault.Client, known vault.TokenInfo, now time.Time) vault.Lease {
	return vault.NewLease("", known.TTL, false, now, client.Jitter())
}
