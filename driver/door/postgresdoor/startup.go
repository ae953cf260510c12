package postgresdoor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// packetMost is how long the packet may be with which a connection begins: as in PostgreSQL itself, where it is
// MAX_STARTUP_PACKET_LENGTH of src/include/libpq/pqcomm.h.
const packetMost = 10_000

// Codes in the place of the protocol's version. https://www.postgresql.org/docs/current/protocol-message-formats.html
const (
	cancelCode    = 80877102
	sslCode       = 80877103
	gssCode       = 80877104
	protocolMajor = 3
	protocolMinor = 2 // the newest
)

// cancelKeyMost is how long the secret part of a key may be: 4 bytes in version 3.0, up to 256 from 3.2 on.
const cancelKeyMost = 256

var (
	errStartup   = errors.New("read start-up packet: it is none of PostgreSQL's")
	errUnopened  = errors.New("read start-up packet: the client has sent nothing")
	errEncrypted = errors.New("read start-up packet: the client asks for encryption again and again")
)

// A startup is how a client begins: with the parameters of a session, or with the key of one in which it wants to
// cancel what runs.
type startup struct {
	cancel *cancelKey

	version    uint32
	parameters map[string]string
	extensions []string // of the protocol, which only the client knows
}

// readStartup reads how a connection begins. Whoever asks for encryption is told that there is none.
func readStartup(c io.ReadWriter) (startup, error) {
	for range 3 { // a client asks for TLS and for GSSAPI once each, at most
		packet, err := readPacket(c)
		if err != nil {
			return startup{}, err
		}
		if code := binary.BigEndian.Uint32(packet); code != sslCode && code != gssCode {
			return parseStartup(packet)
		}
		if len(packet) != 4 {
			return startup{}, errStartup
		}
		if _, err := c.Write([]byte{'N'}); err != nil {
			return startup{}, fmt.Errorf("refuse encryption: %w", err)
		}
	}
	return startup{}, errEncrypted
}

// readPacket reads a packet without its length, and not one byte of what follows it. It has four bytes at least.
func readPacket(c io.Reader) ([]byte, error) {
	var length [4]byte
	if n, err := io.ReadFull(c, length[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return nil, errUnopened
		}
		return nil, fmt.Errorf("read start-up packet: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < 8 || n > packetMost {
		return nil, errStartup
	}
	packet := make([]byte, n-4)
	if _, err := io.ReadFull(c, packet); err != nil {
		return nil, fmt.Errorf("read start-up packet: %w", err)
	}
	return packet, nil
}

// parseStartup parses a packet without its length, of four bytes at least.
func parseStartup(packet []byte) (startup, error) {
	s := startup{version: binary.BigEndian.Uint32(packet)}
	body := packet[4:]
	if s.version == cancelCode {
		if len(body) < 8 || len(body) > 4+cancelKeyMost {
			return startup{}, errStartup
		}
		s.cancel = &cancelKey{pid: binary.BigEndian.Uint32(body), secret: string(body[4:])}
		return s, nil
	}
	if s.major() != protocolMajor {
		return s, nil // what follows is unknown, and the client is told so
	}
	s.parameters = make(map[string]string)
	for {
		name, rest, found := bytes.Cut(body, []byte{0})
		if !found || len(name) == 0 {
			if !found || len(rest) > 0 {
				return startup{}, errStartup
			}
			return s, nil
		}
		value, rest, found := bytes.Cut(rest, []byte{0})
		if !found {
			return startup{}, errStartup
		}
		if body = rest; strings.HasPrefix(string(name), "_pq_.") {
			s.extensions = append(s.extensions, string(name))
			continue
		}
		s.parameters[string(name)] = string(value)
	}
}

func (s *startup) major() uint32 { return s.version >> 16 }
func (s *startup) minor() uint32 { return s.version & 0xffff }

// judge returns why the session that a client asks for is not served, or nil.
func (s *startup) judge(database string) *refusal {
	named := s.parameters["database"]
	switch {
	case s.major() != protocolMajor:
		return refuse("0A000", "only version 3 of the protocol is spoken here")
	case !slices.Contains([]string{"", "false", "off", "no", "0"}, s.parameters["replication"]):
		return refuse("0A000", "replication is not served")
	// libpq sends the user's name where it has been given no database.
	case named != "" && named != database && named != s.parameters["user"]:
		return refuse("3D000", fmt.Sprintf("only the database %q is served here: name that one, or none", database))
	}
	return nil
}

// settings are the parameters that the server gets: all that SET could set afterwards, too. The user is the door's, and
// so are the database and the role.
func (s *startup) settings(role string) map[string]string {
	settings := make(map[string]string, len(s.parameters))
	for name, value := range s.parameters {
		switch {
		case name == "user", name == "database", name == "replication":
		case role != "" && strings.EqualFold(name, "role"):
		default:
			settings[name] = value
		}
	}
	if role != "" {
		settings["role"] = role
	}
	return settings
}

// negotiation is what a client is told that asks for more than there is.
func (s *startup) negotiation() []byte {
	if s.minor() <= protocolMinor && len(s.extensions) == 0 {
		return nil
	}
	return appendFrame(nil, &pgproto3.NegotiateProtocolVersion{UnrecognizedOptions: s.extensions,
		NewestMinorProtocol: protocolMajor<<16 | min(s.minor(), protocolMinor)})
}

// readPassword reads the frame in which a client sends its password.
func readPassword(c io.Reader) ([]byte, error) {
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	if kind[0] != 'p' {
		return nil, errStartup
	}
	packet, err := readPacket(c)
	return bytes.TrimSuffix(packet, []byte{0}), err
}

// greeting is what the client gets after the login: that it is let in, what the server has said, and the key.
func greeting(relayed []byte, key cancelKey) []byte {
	out := append(appendFrame(nil, &pgproto3.AuthenticationOk{}), relayed...)
	out = appendFrame(out, &pgproto3.BackendKeyData{ProcessID: key.pid, SecretKey: []byte(key.secret)})
	return appendFrame(out, &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// appendFrame encodes a frame of our own, which is never too long.
func appendFrame(to []byte, m pgproto3.Message) []byte {
	out, err := m.Encode(to)
	if err != nil {
		return to
	}
	return out
}
