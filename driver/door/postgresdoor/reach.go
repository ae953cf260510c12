package postgresdoor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"

	"nomad-driver-vault/driver/door"
)

// Reach connects to the server of a door as New's does, asks for TLS as its sslmode says, and verifies the certificate.
// It does not log in.
func Reach(ctx context.Context, spec door.Spec) error {
	config, err := database(spec)
	if err != nil {
		return err
	}
	address := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	conn, err := config.DialFunc(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if config.TLSConfig == nil {
		return nil
	}
	if err := startTLS(ctx, conn, config.TLSConfig); err != nil {
		return fmt.Errorf("connect to %q: %w", address, err)
	}
	return nil
}

// startTLS asks a server for TLS, as https://www.postgresql.org/docs/current/protocol-flow.html has it.
func startTLS(ctx context.Context, conn net.Conn, config *tls.Config) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	request, err := (&pgproto3.SSLRequest{}).Encode(nil)
	if err == nil {
		_, err = conn.Write(request)
	}
	var answer [1]byte
	if err == nil {
		_, err = io.ReadFull(conn, answer[:])
	}
	switch {
	case err != nil:
		return fmt.Errorf("ask the server for TLS: %w", err)
	case answer[0] != 'S':
		return errors.New("it has no TLS, which sslmode asks for")
	}
	return tls.Client(conn, config).HandshakeContext(ctx)
}
