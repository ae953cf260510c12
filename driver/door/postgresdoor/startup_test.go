package postgresdoor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// packet is a start-up packet: its length, a version, and strings that end in a zero each.
func packet(version uint32, words ...string) []byte {
	body := binary.BigEndian.AppendUint32(nil, version)
	for _, word := range words {
		body = append(append(body, word...), 0)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(4+len(body))), body...)
}

// nowhere is a door whose server does not exist.
func nowhere(t testing.TB, change func(*door.Spec)) *opened {
	t.Helper()
	spec := door.Spec{ID: "alloc/task/db", MaxConns: 10, HeaderTime: 5 * time.Second,
		Postgres: &door.Postgres{URL: "postgres://127.0.0.1:1/app"}}
	if change != nil {
		change(&spec)
	}
	return openDoor(t, spec, &door.Credential{Generation: 1, Username: "u", Password: "secret-word"})
}

// say sends bytes to the door, and returns all that it answers until it hangs up.
func (o *opened) say(t testing.TB, p []byte) []byte {
	t.Helper()
	c, err := net.Dial("unix", o.folder+"/.s.PGSQL.5432")
	must.NoError(t, err)
	defer c.Close()
	must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = c.Write(p)
	must.NoError(t, err)
	out, err := io.ReadAll(c)
	must.NoError(t, err)
	return out
}

// refusal is the ErrorResponse that an answer ends with, as "SQLSTATE text".
func refusalIn(t testing.TB, answer []byte) string {
	t.Helper()
	var e pgproto3.ErrorResponse
	must.SliceNotEmpty(t, answer)
	must.Eq(t, 'E', rune(answer[0]))
	must.NoError(t, e.Decode(answer[5:]))
	must.Eq(t, "FATAL", e.Severity)
	return e.Code + " " + e.Message
}

func TestRefusals(t *testing.T) {
	v30 := uint32(pgproto3.ProtocolVersion30)
	for name, c := range map[string]struct {
		spec  func(*door.Spec)
		none  bool // of the credential
		bytes []byte
		want  string
	}{
		"another database": {bytes: packet(v30, "user", "u", "database", "other", ""),
			want: `3D000 door: only the database "app" is served here: name that one, or none`},
		"replication": {bytes: packet(v30, "user", "u", "replication", "database", ""),
			want: "0A000 door: replication is not served"},
		"replication by number": {bytes: packet(v30, "user", "u", "replication", "1", ""),
			want: "0A000 door: replication is not served"},
		"version 2 of the protocol": {bytes: packet(2<<16, "user", "u", ""),
			want: "0A000 door: only version 3 of the protocol is spoken here"},
		"version 4 of the protocol": {bytes: packet(4<<16, ""),
			want: "0A000 door: only version 3 of the protocol is spoken here"},
		"a packet that is too long": {bytes: []byte{0, 0, 0x27, 0x11, 0, 3, 0, 0},
			want: "08P01 door: this is no start-up packet of PostgreSQL"},
		"a packet that is too short": {bytes: []byte{0, 0, 0, 4},
			want: "08P01 door: this is no start-up packet of PostgreSQL"},
		"TLS without asking for it": {bytes: append([]byte{0x16, 3, 1, 2, 0, 1}, make([]byte, 600)...),
			want: "08P01 door: this is no start-up packet of PostgreSQL"},
		"HTTP": {bytes: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
			want: "08P01 door: this is no start-up packet of PostgreSQL"},
		"a name without a value": {bytes: packet(v30, "user"),
			want: "08P01 door: this is no start-up packet of PostgreSQL"},
		"bytes after the end": {bytes: packet(v30, "user", "u", "", "more"),
			want: "08P01 door: this is no start-up packet of PostgreSQL"},
		"a slow start-up": {bytes: packet(v30, "user", "u", "")[:9],
			spec: func(s *door.Spec) { s.HeaderTime = 50 * time.Millisecond },
			want: "57014 door: the start-up packet took too long: header_timeout"},
		"no credential": {bytes: packet(v30, "user", "u", ""), none: true, want: "57P03 door: there is no credential"},
		"a stale credential": {bytes: packet(v30, "user", "u", ""), spec: func(s *door.Spec) { s.Stale = time.Hour },
			want: "57P03 door: the credential was not known to be current for too long: stale"},
		"an address that is not allowed": {bytes: packet(v30, "user", "u", ""),
			want: "42501 door: the operator does not allow the address of the database"},
	} {
		t.Run(name, func(t *testing.T) {
			o := nowhere(t, c.spec)
			if c.none {
				o.Use(nil)
			}
			got := refusalIn(t, o.say(t, c.bytes))
			must.Eq(t, c.want, got)
			call := o.plugin.call(t, 1)
			must.StrHasPrefix(t, got[len("08P01 door: "):], call.Refused)
			must.Eq(t, 1, o.Counters().Refused)
		})
	}
}

func TestEncryptionIsRefusedAndTheSessionGoesOn(t *testing.T) {
	o := nowhere(t, nil)
	o.Use(nil)
	for name, codes := range map[string][]uint32{"TLS": {sslCode}, "GSSAPI": {gssCode}, "both": {gssCode, sslCode}} {
		t.Run(name, func(t *testing.T) {
			var asked []byte
			for _, code := range codes {
				asked = append(asked, packet(code)...)
			}
			answer := o.say(t, append(asked, packet(pgproto3.ProtocolVersion30, "user", "u", "")...))
			must.Eq(t, strings.Repeat("N", len(codes)), string(answer[:len(codes)]))
			must.StrContains(t, refusalIn(t, answer[len(codes):]), "no credential")
		})
	}
	answer := o.say(t, bytes.Repeat(packet(sslCode), 4))
	must.Eq(t, "08P01 door: this is no start-up packet of PostgreSQL", refusalIn(t, answer[3:]))
}

func TestLookingWhetherSomebodyListensIsNoCall(t *testing.T) {
	o := nowhere(t, nil)
	for range 3 {
		c, err := net.Dial("tcp", o.addr())
		must.NoError(t, err)
		must.NoError(t, c.Close())
	}
	o.say(t, packet(2<<16, ""))
	o.plugin.call(t, 1)
	must.Eq(t, 1, o.Counters().Calls)
}

// TestRecord makes seven calls that are refused or fail by turns, and looks which are recorded.
func TestRecord(t *testing.T) {
	for name, c := range map[string]struct {
		record          door.Record
		refused, failed int
	}{
		"all":         {door.Record{Calls: door.RecordAll, Sample: 1}, 3, 4},
		"one of four": {door.Record{Calls: door.RecordAll, Sample: 4}, 3, 2},
		"denied":      {door.Record{Calls: door.RecordDenied, Sample: 4}, 3, 0},
		"off":         {door.Record{Calls: door.RecordOff}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			spec := hostile(t, func(net.Conn) {})
			spec.Record = c.record
			o := openDoor(t, spec, hostileCredential)
			for i := range 7 {
				o.say(t, packet(uint32(3-i%2)<<16, "user", "u", ""))
			}
			o.Close(t.Context())
			o.plugin.mu.Lock()
			defer o.plugin.mu.Unlock()
			refused := 0
			for _, call := range o.plugin.calls {
				if call.Refused != "" {
					refused++
				}
			}
			must.Eq(t, c.refused, refused)
			must.Len(t, c.refused+c.failed, o.plugin.calls)
		})
	}
}

// TestGreeting reads what a client gets by the version of the protocol that it asks for.
func TestGreeting(t *testing.T) {
	for name, c := range map[string]struct {
		version    uint32
		extensions []string
		negotiated uint32 // zero: nothing is
		secret     int
	}{
		"3.0":                   {version: 3 << 16, secret: 4},
		"3.0 with an extension": {version: 3 << 16, extensions: []string{"_pq_.x"}, negotiated: 3 << 16, secret: 4},
		"3.2":                   {version: 3<<16 | 2, secret: 32},
		"a newer one":           {version: 3<<16 | 9999, negotiated: 3<<16 | 2, secret: 32},
	} {
		t.Run(name, func(t *testing.T) {
			hello := startup{version: c.version, extensions: c.extensions}
			said := appendFrame(nil, &pgproto3.ParameterStatus{Name: "server_version", Value: "15"})
			answer := append(hello.negotiation(), greeting(said, newKey(hello.minor()))...)
			in := pgproto3.NewFrontend(bytes.NewReader(answer), io.Discard)
			receive := func() pgproto3.BackendMessage {
				m, err := in.Receive()
				must.NoError(t, err)
				return m
			}
			if c.negotiated != 0 {
				negotiated := receive().(*pgproto3.NegotiateProtocolVersion)
				must.Eq(t, c.negotiated, negotiated.NewestMinorProtocol)
				must.SliceContainsAll(t, negotiated.UnrecognizedOptions, c.extensions)
			}
			must.Eq[pgproto3.BackendMessage](t, &pgproto3.AuthenticationOk{}, receive())
			must.Eq(t, "15", receive().(*pgproto3.ParameterStatus).Value)
			key := receive().(*pgproto3.BackendKeyData)
			must.Len(t, c.secret, key.SecretKey)
			must.Positive(t, int32(key.ProcessID))
			must.Eq(t, 'I', rune(receive().(*pgproto3.ReadyForQuery).TxStatus))
		})
	}
}

func TestSettings(t *testing.T) {
	s := startup{parameters: map[string]string{"user": "u", "database": "app", "replication": "off", "Role": "x",
		"application_name": "a", "options": "-c geqo=off", "client_encoding": "UTF8"}}
	must.Eq(t, map[string]string{"Role": "x", "application_name": "a", "options": "-c geqo=off",
		"client_encoding": "UTF8"}, s.settings(""))
	must.Eq(t, map[string]string{"role": "owner", "application_name": "a", "options": "-c geqo=off",
		"client_encoding": "UTF8"}, s.settings("owner"))
}

func TestFieldsAreJudged(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*door.Spec)
		want   string
	}{
		"no database in the URL": {func(s *door.Spec) { s.Postgres.URL = "postgres://db.example.com" },
			"postgres: the URL needs the name of a database, as in postgres://db.example.com/app"},
		"a password in the URL": {func(s *door.Spec) { s.Postgres.URL = "postgres://u:secret-word@h/app" },
			"postgres: a user and a password do not belong into the URL: use username and password"},
		"a URL that is none": {func(s *door.Spec) { s.Postgres.URL = "postgres://u:secret word@h:x/app" },
			`postgres: give a database such as "postgres://db.example.com:5432/app?sslmode=verify-full"`},
		"two hosts": {func(s *door.Spec) { s.Postgres.URL = "postgres://a,b/app" },
			"postgres: the URL needs the name of one host"},
		"a socket": {func(s *door.Spec) { s.Postgres.URL = "postgres:///app?host=/run/postgresql" },
			"postgres: the URL needs the name of one host"},
		"another scheme": {func(s *door.Spec) { s.Postgres.URL = "mysql://h/app" },
			`postgres: the URL begins with another word than "postgres://"`},
		"an sslmode that leaves TLS to others": {func(s *door.Spec) { s.Postgres.URL += "?sslmode=prefer" },
			`postgres: sslmode="prefer": use verify-full, verify-ca, require, disable`},
		"another parameter": {func(s *door.Spec) { s.Postgres.URL += "?sslmode=require&passfile=/x" },
			`postgres: the URL has the parameter "passfile": only sslmode means something`},
		"authorities that are none": {func(s *door.Spec) { s.Postgres.CAs = []byte("x") },
			"ca_pem: it has no certificate in PEM"},
		"no bound of connections": {func(s *door.Spec) { s.MaxConns = 0 }, "max_conns: it is not a number from 1"},
		"no time for a login":     {func(s *door.Spec) { s.HeaderTime = 0 }, "header_timeout: it is not a time above zero"},
		"a rate without a burst":  {func(s *door.Spec) { s.Rate = 1 }, "rate: its burst is not a number from 1"},
		"no database":             {func(s *door.Spec) { s.Postgres = nil }, "postgres: it is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := door.Spec{MaxConns: 1, HeaderTime: time.Second,
				Postgres: &door.Postgres{URL: "postgres://db.example.com/app"}}
			c.change(&spec)
			_, err := New(spec, nil)
			must.EqError(t, err, c.want)
		})
	}
}

// TestEnvironmentMeansNothing sets what libpq's clients look at.
func TestEnvironmentMeansNothing(t *testing.T) {
	for name, value := range map[string]string{"PGHOST": "evil.example.com", "PGSSLMODE": "disable",
		"PGPASSFILE": "/etc/passwd", "PGTARGETSESSIONATTRS": "standby", "PGOPTIONS": "-c role=x", "PGAPPNAME": "x",
		"PGSSLROOTCERT": "/none", "PGSSLCERT": "/none", "PGREQUIREAUTH": "none", "PGMAXPROTOCOLVERSION": "3.2"} {
		t.Setenv(name, value)
	}
	config, err := database(door.Spec{Postgres: &door.Postgres{URL: "postgres://db.example.com:6432/app"}})
	must.NoError(t, err)
	must.Eq(t, "db.example.com", config.Host)
	must.Eq(t, 6432, config.Port)
	must.Eq(t, "db.example.com", config.TLSConfig.ServerName)
	must.False(t, config.TLSConfig.InsecureSkipVerify)
	must.Nil(t, config.ValidateConnect)
	must.MapEmpty(t, config.RuntimeParams)
	must.SliceEmpty(t, config.Fallbacks)
	must.Eq(t, "scram-sha-256,md5,password", config.RequireAuth)
}

func FuzzStartup(f *testing.F) {
	f.Add(packet(3<<16, "user", "u", "database", "app", "")[4:])
	f.Add(packet(3<<16|2, "user", "u", "_pq_.x", "1", "options", "-c a=b", "")[4:])
	f.Add(packet(cancelCode, "1234567")[4:])
	f.Add(packet(2<<16, "")[4:])
	f.Add(packet(3<<16, "replication", "true", "role", "x", "")[4:])
	f.Fuzz(func(t *testing.T, in []byte) {
		stream := append(binary.BigEndian.AppendUint32(nil, uint32(4+len(in))), in...)
		got, err := readStartup(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(stream), io.Discard})
		if err != nil || got.cancel != nil || got.judge("app") != nil {
			return
		}
		must.LessEq(t, packetMost, len(stream))
		settings := got.settings("owner")
		for name, value := range settings {
			must.False(t, strings.ContainsRune(name+value, 0))
			must.False(t, name == "user" || name == "database" || name == "replication")
			must.False(t, name != "role" && strings.EqualFold(name, "role"))
		}
		// What is passed on must mean to the server what was judged here.
		out, err := (&pgproto3.StartupMessage{ProtocolVersion: 3 << 16, Parameters: settings}).Encode(nil)
		must.NoError(t, err)
		again, err := parseStartup(out[4:])
		must.NoError(t, err)
		must.Eq(t, settings, again.parameters)
		must.SliceNotEmpty(t, greeting(nil, newKey(got.minor())))
	})
}

func TestReadPacketReadsNothingAfterIt(t *testing.T) {
	in := strings.NewReader(string(packet(3<<16, "user", "u", "")) + "Q")
	_, err := readStartup(struct {
		io.Reader
		io.Writer
	}{in, io.Discard})
	must.NoError(t, err)
	must.Eq(t, 1, in.Len())
	_, err = readPacket(strings.NewReader(""))
	must.True(t, errors.Is(err, errUnopened))
}
