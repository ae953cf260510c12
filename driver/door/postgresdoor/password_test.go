package postgresdoor

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// TestOnlyTheTaskHasThePassword: each process of the network can connect over TCP.
func TestOnlyTheTaskHasThePassword(t *testing.T) {
	s := startServer(t)
	spec := s.spec()
	spec.Secret = "~5f3a"
	o := openDoor(t, spec, s.user(t, 1))
	preferring := fmt.Sprintf("postgres://door:~5f3a@127.0.0.1:%d/app", o.port)
	url := preferring + "?sslmode=disable"
	t.Run("lib/pq", func(t *testing.T) { testSQL(t, "postgres", url) })
	t.Run("pgx", func(t *testing.T) { testPool(t, url) })
	t.Run("pgx that prefers TLS", func(t *testing.T) { testPool(t, preferring) })
	t.Run("psql", func(t *testing.T) {
		psql := exec.CommandContext(t.Context(), tool(t, "psql"), "-At", "-c", "SELECT current_user", url)
		out, err := psql.CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		must.Eq(t, "v-door-1\n", string(out))
	})
	t.Run("a socket needs none", func(t *testing.T) { testSQL(t, "pgx", o.unixDSN()) })
	for name, login := range map[string]string{"no password": "door", "another": "door:~5f3b", "a short one": "door:x"} {
		t.Run(name, func(t *testing.T) {
			_, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s@127.0.0.1:%d/app?sslmode=disable", login, o.port))
			must.ErrorContains(t, err, "door: "+wrongPassword.text+" (SQLSTATE 28P01)")
			must.StrNotContains(t, err.Error(), "5f3a")
		})
	}
}

// TestWhoSendsNoPasswordHasNoPlace: neither a session nor a login is counted, and the database is not reached.
func TestWhoSendsNoPasswordHasNoPlace(t *testing.T) {
	o := nowhere(t, func(s *door.Spec) { s.Secret, s.HeaderTime, s.MaxConns = "~5f3a", time.Second, 1 })
	hello := packet(pgproto3.ProtocolVersion30, "user", "u", "_pq_.x", "1", "")
	for answer, words := range map[string]string{
		wrongPassword.text: "p\x00\x00\x00\x08abc\x00", slowStartup.text: "p\x00\x00", noStartup.text: "",
	} {
		c, err := net.Dial("tcp", o.addr())
		must.NoError(t, err)
		must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = c.Write(append(hello, words...))
		must.NoError(t, err)
		in := pgproto3.NewFrontend(c, io.Discard)
		m, err := in.Receive()
		must.NoError(t, err)
		must.SliceContainsAll(t, []string{"_pq_.x"}, m.(*pgproto3.NegotiateProtocolVersion).UnrecognizedOptions)
		m, err = in.Receive()
		must.NoError(t, err)
		must.Eq[pgproto3.BackendMessage](t, &pgproto3.AuthenticationCleartextPassword{}, m)
		must.Zero(t, o.Counters().InFlight)
		if words != "" {
			m, err = in.Receive()
			must.NoError(t, err)
			must.Eq(t, "door: "+answer, m.(*pgproto3.ErrorResponse).Message)
		}
		c.Close()
	}
	must.Zero(t, o.Counters().Failed)
}
