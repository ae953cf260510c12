package postgresdoor

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"crypto/x509"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"nomad-driver-vault/driver/door"
)

// loginMost is how much a server may say until the login is done. PostgreSQL says about 1 KiB.
const loginMost = 256 << 10

var errLoginMost = errors.New("log in: the server says too much")

// database returns the configuration for a server as the door's block has it, without user and password.
func database(spec door.Spec) (*pgconn.Config, error) {
	u, err := url.Parse(spec.Postgres.URL)
	if err != nil { // it may quote a password
		return nil, errors.New(`postgres: give a database such as "postgres://db.example.com:5432/app?sslmode=verify-full"`)
	}
	name := strings.TrimPrefix(u.Path, "/")
	switch {
	case u.Scheme != "postgres" && u.Scheme != "postgresql":
		return nil, errors.New(`postgres: the URL begins with another word than "postgres://"`)
	case u.User != nil:
		return nil, errors.New("postgres: a user and a password do not belong into the URL: use username and password")
	case u.Hostname() == "" || strings.ContainsAny(u.Host, ",/"):
		return nil, errors.New("postgres: the URL needs the name of one host")
	case name == "" || strings.ContainsRune(name, 0):
		return nil, errors.New("postgres: the URL needs the name of a database, as in postgres://db.example.com/app")
	}
	config, err := configure(u, spec.Postgres.CAs)
	if err != nil {
		return nil, err
	}
	config.Database, config.DialFunc = name, spec.Dial.DialContext
	return config, nil
}

// sslModes are what sslmode may be. The others of libpq leave it to whoever is in the middle whether there is TLS.
var sslModes = []string{"verify-full", "verify-ca", "require", "disable"}

// configure has pgconn make a configuration. Each option that it would take from the environment or the home of this
// process is set.
func configure(u *url.URL, authorities []byte) (*pgconn.Config, error) {
	mode := "verify-full"
	parameters, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("postgres: the URL's parameters cannot be read")
	}
	for _, parameter := range slices.Sorted(maps.Keys(parameters)) {
		if parameter != "sslmode" {
			return nil, fmt.Errorf("postgres: the URL has the parameter %q: only sslmode means something", parameter)
		}
		mode = parameters.Get("sslmode")
	}
	if !slices.Contains(sslModes, mode) {
		return nil, fmt.Errorf("postgres: sslmode=%q: use %s", mode, strings.Join(sslModes, ", "))
	}
	auth := "scram-sha-256,md5"
	switch {
	case mode == "require" && len(authorities) > 0:
		mode = "verify-ca" // as libpq does
		fallthrough
	case strings.HasPrefix(mode, "verify"):
		auth += ",password"
	}
	settings := url.Values{"sslmode": {mode}, "require_auth": {auth}, "passfile": {""}, "sslcertmode": {"disable"},
		"sslrootcert": {""}, "sslcert": {""}, "sslkey": {""}, "sslnegotiation": {""}, "sslsni": {"1"},
		"target_session_attrs": {"any"}, "connect_timeout": {"0"}, "channel_binding": {"prefer"},
		"min_protocol_version": {"3.0"}, "max_protocol_version": {"3.0"}}
	ours := url.URL{Scheme: "postgres", User: url.UserPassword("door", "door"), Host: u.Host, Path: "/door",
		RawQuery: settings.Encode()}
	config, err := pgconn.ParseConfig(ours.String())
	if err != nil {
		return nil, errors.New("postgres: the URL's host or port cannot be read")
	}
	if len(authorities) > 0 && config.TLSConfig != nil {
		config.TLSConfig.RootCAs = x509.NewCertPool()
		if !config.TLSConfig.RootCAs.AppendCertsFromPEM(authorities) {
			return nil, errors.New("ca_pem: it has no certificate in PEM")
		}
	}
	config.User, config.Password, config.Fallbacks, config.RuntimeParams = "", "", nil, nil
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	return config, nil
}

// An upstream is a session with the server.
type upstream struct {
	conn   net.Conn
	in     io.Reader // conn, after what the login has read of it and not used
	said   []byte    // what the server has said in the login that is for the client
	pid    uint32
	secret []byte
	config *pgconn.Config // without a password
}

// login logs in to the server.
func (d *postgresDoor) login(ctx context.Context, c door.Credential, settings map[string]string) (*upstream, error) {
	config := *d.config
	config.User, config.Password, config.RuntimeParams = c.Username, c.Password, settings
	var reader *loginReader
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		reader = &loginReader{from: r, in: bufio.NewReader(r), most: loginMost}
		return pgproto3.NewFrontend(reader, w)
	}
	conn, err := pgconn.ConnectConfig(ctx, &config)
	if err != nil {
		return nil, err
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	return &upstream{conn: hijacked.Conn, in: reader.rest(), said: reader.said, pid: hijacked.PID,
		secret: hijacked.SecretKey, config: d.cancels}, nil
}

// A loginReader hands on what a server says in a login, one frame at a time: so no reader behind it has read more than
// the login when that is done.
type loginReader struct {
	from  io.Reader
	in    *bufio.Reader // of from
	frame []byte        // what has not been read yet of it
	said  []byte        // frames that are for the client
	most  int           // bytes that may still come
}

func (l *loginReader) Read(p []byte) (int, error) {
	if len(l.frame) == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.frame)
	l.frame = l.frame[n:]
	return n, nil
}

// next reads a frame. What the server says of its parameters, and notices, are kept for the client.
func (l *loginReader) next() error {
	head, err := l.in.Peek(header)
	if err != nil {
		return err
	}
	kind, length := head[0], binary.BigEndian.Uint32(head[1:])
	if length < header-1 {
		return errFrame
	}
	if length >= uint32(l.most) {
		return errLoginMost
	}
	frame := make([]byte, 1+length)
	if _, err := io.ReadFull(l.in, frame); err != nil {
		return err
	}
	l.most -= len(frame)
	if l.frame = frame; kind == 'S' || kind == 'N' {
		l.said = append(l.said, frame...)
	}
	return nil
}

// rest reads what follows the login.
func (l *loginReader) rest() io.Reader {
	if l.in.Buffered() == 0 {
		return l.from
	}
	read, _ := l.in.Peek(l.in.Buffered())
	return io.MultiReader(strings.NewReader(string(read)), l.from)
}
