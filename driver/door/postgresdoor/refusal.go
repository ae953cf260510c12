package postgresdoor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"nomad-driver-vault/driver/door"
)

// partingTime is how long a peer may take for the last words to it.
const partingTime = time.Second

// A refusal is what a client is told in an ErrorResponse: that the door has refused it, and why. The text is fixed: it
// never has what a server has sent, which may be the password that it was told.
type refusal struct {
	code   string // SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
	text   string
	failed bool   // the database could not be reached, or broke off
	detail string // for the record
}

func refuse(code, text string) *refusal { return &refusal{code: code, text: text} }

func fail(code, text string) *refusal { return &refusal{code: code, text: text, failed: true} }

// Refusals that have no more to say.
var (
	noStartup     = refuse("08P01", "this is no start-up packet of PostgreSQL")
	slowStartup   = refuse("57014", "the start-up packet took too long: header_timeout")
	wrongPassword = refuse("28P01", "over TCP the password is the one that the door's variable _URL has")
	noCredential  = refuse("57P03", "there is no credential")
	stale         = refuse("57P03", "the credential was not known to be current for too long: stale")
	full          = refuse("53300", "too many connections: max_conns")
	tooOften      = refuse("53400", "too many connections a second: rate")
	closed        = refuse("57P01", "it is closed")
	replaced      = refuse("57P01", "the user of the database was replaced: connect again")
	idle          = refuse("57P05", "the session did nothing for too long: idle_timeout")
	idleInside    = refuse("25P03", "the session did nothing for too long, inside a transaction: idle_timeout")
	noFrame       = refuse("08P01", "a frame has a length that cannot be")
	noSession     = refuse("57014", "no session has the key to cancel with")
	brokenOff     = fail("08006", "PostgreSQL broke off the session")
)

// frame is the refusal as PostgreSQL's own errors look.
func (r *refusal) frame() []byte {
	return appendFrame(nil, &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: r.code,
		Message: "door: " + r.text})
}

// ofUser reports whether a server has refused the user or its password.
func ofUser(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && (answer.Code == "28P01" || answer.Code == "28000")
}

// ofLogin is why no session could be had of the server. What is told in detail was known before the password was sent.
func ofLogin(err error) *refusal {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return ofServer(answer.Code)
	}
	var (
		unproven  *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError // without that around it, with sslmode=verify-ca
		dial      *net.OpError
		timeout   net.Error
	)
	text := err.Error() // pgconn has no values for some
	switch {
	case errors.Is(err, door.ErrNotAllowed):
		return &refusal{code: "42501", text: "the operator does not allow the address of the database", detail: text}
	case errors.As(err, &unproven), errors.As(err, &authority):
		return fail("08001", "the certificate of PostgreSQL is not to be trusted")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fail("08001", "PostgreSQL did not answer in time: header_timeout")
	case strings.Contains(text, "server refused TLS connection"):
		return fail("08001", "PostgreSQL has no TLS, which sslmode asks for")
	case strings.Contains(text, "require_auth check failed"):
		return fail("28000", "PostgreSQL asks for a login that is not done: scram-sha-256 and md5 are, and password over "+
			"verified TLS")
	case errors.As(err, &dial):
		return &refusal{code: "08001", text: "PostgreSQL cannot be reached", failed: true, detail: dial.Error()}
	}
	return fail("08001", "PostgreSQL does not speak as it should")
}

// ofServer is what a client is told of an error with which the server has ended a login. Its text is not passed on.
func ofServer(code string) *refusal {
	if len(code) != 5 || strings.Trim(code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return fail("08001", "PostgreSQL refused the session")
	}
	text := "PostgreSQL refused the session"
	switch code {
	case "28P01", "28000":
		text = "PostgreSQL refused the user or its password"
	case "3D000":
		text = "PostgreSQL has no such database"
	case "42501":
		text = "PostgreSQL does not let the user have the database or the role"
	case "53300":
		text = "PostgreSQL has too many connections"
	case "57P03":
		text = "PostgreSQL is starting, or stopping"
	case "22023", "42704":
		text = "PostgreSQL refused the role, or a parameter of the connection"
	}
	return fail(code, text)
}

// part says the last words to a peer, and that nothing follows. What the peer still sends is read for a moment by
// whoever reads from it: to close before would lose the words, over TCP.
func part(c net.Conn, words []byte) {
	_ = c.SetDeadline(time.Now().Add(partingTime))
	if _, err := c.Write(words); err != nil {
		return // it has gone
	}
	closeWrite(c)
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // an error means that it has gone
		return
	}
	c.Close()
}
