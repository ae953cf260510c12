package operator

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

// probe logs in with a JWT that is well formed and signed by nobody, and returns nil when Vault refuses it for its signature:
// it then has the auth method and the role, and has got the keys that it checks signatures with. Any other outcome is the
// error that a task's login would meet, too.
func probe(ctx context.Context, client *vault.Client, role, namespace string) error {
	auth, err := client.Login(ctx, role, namespace, unsigned())
	var e *vault.Error
	switch {
	case err == nil:
		return errors.Join(client.As(auth, role, namespace).RevokeSelf(ctx), &vault.Error{Class: vault.ErrInvalid,
			Op: "log in with a JWT that nobody signed", Detail: "Vault accepts it",
			Hint: fmt.Sprintf("auth/%s checks no signatures: make it anew", client.Cluster().AuthPath)})
	case errors.As(err, &e) && (strings.Contains(e.Detail, "no known key") || strings.Contains(e.Detail, "failed to verify id token signature")):
		return nil
	}
	return err
}

// unsigned is a JWT as Nomad makes them since 1.7, but for its signature. Its key's id is a new one each time: Vault then asks
// for the keys again instead of looking at those it has.
func unsigned() string {
	part := base64.RawURLEncoding.EncodeToString
	now := time.Now().Unix()
	return part([]byte(`{"alg":"RS256","typ":"JWT","kid":"`+rand.Text()+`"}`)) + "." +
		part(fmt.Appendf(nil, `{"sub":"nomad-driver-vault check","iat":%d,"exp":%d}`, now, now+60)) + "." + part(make([]byte, 256))
}

// capable logs in as a task does and returns what Vault lets that token do at each path. The token is revoked at once.
func capable(ctx context.Context, client *vault.Client, role, namespace, jwt string, paths []string) (can map[string][]string, err error) {
	auth, err := client.Login(ctx, role, namespace, jwt)
	if err != nil {
		return nil, err
	}
	as := client.As(auth, role, namespace)
	defer func() { err = errors.Join(err, as.RevokeSelf(context.WithoutCancel(ctx))) }()
	return as.Capabilities(ctx, "ask for capabilities", paths...)
}
