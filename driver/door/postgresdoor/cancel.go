package postgresdoor

import (
	"context"
	"crypto/rand"
	"encoding/binary"

	"github.com/jackc/pgx/v5/pgconn"
)

// A cancelKey is what a client sends to have cancelled what runs in a session. Clients get keys of the door's own: the
// server's would do over any other connection to it, too.
type cancelKey struct {
	pid    uint32
	secret string
}

// newKey makes a key as long as the client's version of the protocol can take.
func newKey(minor uint32) cancelKey {
	random := make([]byte, 4+32)
	_, _ = rand.Read(random)                             // it never fails
	pid := binary.BigEndian.Uint32(random)&(1<<31-1) | 1 // as those of processes
	if minor < protocolMinor {
		return cancelKey{pid: pid, secret: string(random[4:8])}
	}
	return cancelKey{pid: pid, secret: string(random[4:])}
}

// cancel has the server cancel what runs in the session, over a connection to the same address, with TLS where the
// session has it.
func (u *upstream) cancel(ctx context.Context) error {
	conn, err := pgconn.Construct(&pgconn.HijackedConn{Conn: u.conn, TLSConfig: u.config.TLSConfig, PID: u.pid,
		SecretKey: u.secret, Config: u.config})
	if err != nil {
		return err
	}
	return conn.CancelRequest(ctx)
}
