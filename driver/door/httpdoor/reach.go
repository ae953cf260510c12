package httpdoor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"

	"nomad-driver-vault/driver/door"
)

// Reach connects to the upstream of a door as New's does, and verifies its certificate. It sends no request.
func Reach(ctx context.Context, spec door.Spec) error {
	d := &httpDoor{spec: spec}
	if err := d.toUpstream(); err != nil {
		return err
	}
	to := url.URL{Scheme: d.rules.origin.scheme, Host: d.rules.origin.host}
	port := to.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[to.Scheme]
	}
	conn, err := spec.Dial.DialContext(ctx, "tcp", net.JoinHostPort(to.Hostname(), port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if to.Scheme == "http" {
		return nil
	}
	config := d.rules.tls.Clone()
	if config.ServerName == "" {
		config.ServerName = to.Hostname()
	}
	verified := false
	config.VerifyConnection = func(tls.ConnectionState) error { verified = true; return nil }
	if err := tls.Client(conn, config).HandshakeContext(ctx); err != nil && !verified {
		return fmt.Errorf("connect to %q: %w", to.Host, err)
	}
	return nil // also where it wants a certificate of its client, which is a credential
}
