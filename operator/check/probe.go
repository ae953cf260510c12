package check

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"nomad-driver-vault/driver/vault"
)

// probe logs in with a well-formed JWT that nobody signed. It returns nil if Vault refuses it for its signature:
// Vault then has the auth method and the role, and could fetch Nomad's keys. Any other error is the one that a task's
// login would meet.
func probe(ctx context.Context, client *vault.Client, role, namespace string) error {
	auth, err := client.Login(ctx, role, namespace, unsignedJWT())
	var e *vault.Error
	switch {
	case err == nil:
		return errors.Join(client.As(auth, role, namespace).RevokeSelf(ctx), &vault.Error{Class: vault.ErrInvalid,
			Op: "log in with a JWT that nobody signed", Detail: "Vault accepts it",
			Hint: fmt.Sprintf("auth/%s checks no signatures: make it anew", client.Cluster().AuthPath)})
	case errors.As(err, &e) && refusedSignature(e.Detail):
		return nil
	}
	return err
}

func refusedSignature(detail string) bool {
	return strings.Contains(detail, "no known key") || strings.Contains(detail, "failed to verify id token signature")
}

// unsignedJWT is a JWT as Nomad makes them since 1.7, but for its signature. The ID of its key is new each time, so
// that Vault fetches Nomad's keys instead of looking at those it has.
func unsignedJWT() string {
	part := base64.RawURLEncoding.EncodeToString
	now := time.Now().Unix()
	return part([]byte(`{"alg":"RS256","typ":"JWT","kid":"`+rand.Text()+`"}`)) + "." +
		part(fmt.Appendf(nil, `{"sub":"nomad-driver-vault check","iat":%d,"exp":%d}`, now, now+60)) + "." +
		part(make([]byte, 256))
}

// capabilities logs in as a task does and returns what Vault lets that token do at each path. It revokes the token at
// once.
func capabilities(ctx context.Context, client *vault.Client, role, namespace, jwt string, paths []string) (
	auth vault.Auth, granted map[string][]string, err error) {
	if auth, err = client.Login(ctx, role, namespace, jwt); err != nil {
		return auth, nil, err
	}
	as := client.As(auth, role, namespace)
	defer func() { err = errors.Join(err, as.RevokeSelf(context.WithoutCancel(ctx))) }()
	granted, err = as.Capabilities(ctx, "ask for capabilities", paths...)
	return auth, granted, err
}
