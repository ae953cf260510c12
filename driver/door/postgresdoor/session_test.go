package postgresdoor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

func (o *opened) connect(t testing.TB, more string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), o.unixDSN()+more)
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// ask returns what a query of a single text gives.
func ask(t testing.TB, c *pgx.Conn, query string) (out string) {
	t.Helper()
	must.NoError(t, c.QueryRow(context.Background(), query).Scan(&out))
	return out
}

// code is the SQLSTATE of an error.
func code(err error) string {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return fmt.Sprint(err)
	}
	return answer.Code
}

// TestSession is what a session has from its client, and what it has from the door.
func TestSession(t *testing.T) {
	s := startServer(t)
	s.exec(t, "CREATE ROLE owner; CREATE ROLE stranger")
	spec := s.spec()
	c := s.user(t, 1)
	s.exec(t, `GRANT owner TO "v-door-1"; GRANT ALL ON SCHEMA public TO owner`)
	o := openDoor(t, spec, c)
	spec.Postgres.Role = "owner"
	owner := openDoor(t, spec, c)
	spec.Postgres.Role = "stranger"
	stranger := openDoor(t, spec, c)

	t.Run("its parameters are passed on", func(t *testing.T) {
		c := o.connect(t, " application_name=me timezone=Asia/Tokyo options='-c geqo_seed=0.5'")
		must.Eq(t, "me", ask(t, c, "SHOW application_name"))
		must.Eq(t, "Asia/Tokyo", ask(t, c, "SHOW timezone"))
		must.Eq(t, "0.5", ask(t, c, "SHOW geqo_seed"))
		must.Eq(t, "Asia/Tokyo", c.PgConn().ParameterStatus("TimeZone"))
		must.StrHasPrefix(t, "1", c.PgConn().ParameterStatus("server_version"))
	})
	t.Run("parameters that the server refuses", func(t *testing.T) {
		_, err := pgx.Connect(context.Background(), o.unixDSN()+" nonsense=1")
		must.ErrorContains(t, err, "door: PostgreSQL refused the role, or a parameter of the connection")
		must.Eq(t, "42704", code(err))
	})
	t.Run("protocol 3.2", func(t *testing.T) {
		c := o.connect(t, " min_protocol_version=3.2 max_protocol_version=3.2")
		must.Len(t, 32, c.PgConn().SecretKey())
		must.Eq(t, "v-door-1", ask(t, c, "SELECT current_user::text"))
	})
	t.Run("a database of another name", func(t *testing.T) {
		out, err := o.run(t, "psql", "-d", "postgres", "-c", "SELECT 1")
		must.Error(t, err)
		must.StrContains(t, out, `FATAL:  door: only the database "app" is served here: name that one, or none`)
	})
	t.Run("sslmode", func(t *testing.T) {
		out, err := o.run(t, "psql", fmt.Sprintf("host=127.0.0.1 port=%d sslmode=prefer", o.port), "-Atc", "SELECT 'here'")
		must.NoError(t, err, must.Sprint(out))
		must.Eq(t, "here\n", out)
		out, err = o.run(t, "psql", fmt.Sprintf("host=127.0.0.1 port=%d sslmode=require", o.port), "-c", "SELECT 1")
		must.Error(t, err)
		must.StrContains(t, out, "server does not support SSL, but SSL was required")
	})
	t.Run("replication", func(t *testing.T) {
		cmd := exec.Command(tool(t, "pg_receivewal"), "-D", t.TempDir(), "-n", "-h", o.folder, "-p", "5432", "-U", "x")
		out, err := cmd.CombinedOutput()
		must.Error(t, err)
		must.StrContains(t, string(out), "door: replication is not served")
	})
	// SET ROLE after the login would not survive these: https://www.postgresql.org/docs/15/sql-set-role.html
	t.Run("role", func(t *testing.T) {
		c := owner.connect(t, " role=stranger")
		for _, statement := range []string{"", "RESET ROLE", "RESET ALL", "DISCARD ALL", "RESET SESSION AUTHORIZATION"} {
			_, err := c.Exec(context.Background(), statement, pgx.QueryExecModeSimpleProtocol)
			must.NoError(t, err)
			must.NoError(t, c.QueryRow(context.Background(), "SELECT current_user", pgx.QueryExecModeExec).Scan(&statement))
			must.Eq(t, "owner", statement)
		}
		must.Eq(t, "v-door-1", ask(t, c, "SELECT session_user::text"))
	})
	t.Run("a role that the user may not have", func(t *testing.T) {
		_, err := pgx.Connect(context.Background(), stranger.unixDSN())
		must.ErrorContains(t, err, "door: PostgreSQL does not let the user have the database or the role")
		must.Eq(t, "42501", code(err))
	})
	t.Run("it is recorded", func(t *testing.T) {
		_ = o.connect(t, "").Close(context.Background())
		var last door.Call
		eventually(t, func() error {
			o.plugin.mu.Lock()
			defer o.plugin.mu.Unlock()
			if last = o.plugin.calls[len(o.plugin.calls)-1]; last.Error != "" || last.Refused != "" || last.Sent == 0 {
				return fmt.Errorf("%+v", last)
			}
			return nil
		})
		must.Eq(t, "alloc/task/db", last.Door)
		must.Eq(t, "lease-1", last.Accessor)
		must.Eq(t, 1, last.Generation)
		must.Eq(t, "session", last.Method)
		must.Eq(t, "app", last.Path)
		must.Positive(t, last.Duration)
	})
}

// TestBytes moves much in both directions.
func TestBytes(t *testing.T) {
	s := startServer(t)
	o := openDoor(t, s.spec(), s.user(t, 1))
	ctx := context.Background()
	t.Run("COPY", func(t *testing.T) {
		c := o.connect(t, "")
		_, err := c.Exec(ctx, "CREATE TEMPORARY TABLE t (a bytea)")
		must.NoError(t, err)
		blob := make([]byte, 1<<20)
		_, _ = rand.Read(blob)
		rows := make([][]any, 30)
		for i := range rows {
			rows[i] = []any{blob}
		}
		n, err := c.CopyFrom(ctx, pgx.Identifier{"t"}, []string{"a"}, pgx.CopyFromRows(rows))
		must.NoError(t, err)
		must.Eq(t, 30, n)
		var out bytes.Buffer
		_, err = c.PgConn().CopyTo(ctx, &out, "COPY t TO STDOUT (FORMAT binary)")
		must.NoError(t, err)
		must.Eq(t, 30, bytes.Count(out.Bytes(), blob))
		must.Greater(t, 30<<20, int(o.Counters().Sent))
		must.Greater(t, 30<<20, int(o.Counters().Received))
	})
	t.Run("psql's COPY", func(t *testing.T) {
		out, err := o.run(t, "psql", "-At", "-c", `\copy (SELECT repeat('x', 100) FROM generate_series(1, 50000)) TO STDOUT`)
		must.NoError(t, err)
		must.Eq(t, 50_000, strings.Count(out, "\n"))
	})
	t.Run("LISTEN and NOTIFY", func(t *testing.T) {
		listener := o.connect(t, "")
		_, err := listener.Exec(ctx, "LISTEN news")
		must.NoError(t, err)
		_, err = o.connect(t, "").Exec(ctx, "NOTIFY news, 'hello'")
		must.NoError(t, err)
		notification, err := listener.WaitForNotification(ctx)
		must.NoError(t, err)
		must.Eq(t, "hello", notification.Payload)

		old := pq.NewListener(o.dsn(), time.Second, time.Second, nil)
		defer func() { must.NoError(t, old.Close()) }()
		must.NoError(t, old.Listen("news"))
		_, err = o.connect(t, "").Exec(ctx, "NOTIFY news, 'again'")
		must.NoError(t, err)
		must.Eq(t, "again", (<-old.Notify).Extra)
	})
	t.Run("a thousand short connections", func(t *testing.T) {
		c := s.user(t, 2)
		s.exec(t, fmt.Sprintf("BEGIN; SET LOCAL password_encryption = md5; ALTER ROLE %q PASSWORD '%s'; COMMIT", c.Username,
			c.Password)) // scram-sha-256 takes its time, above all with -race
		o := openDoor(t, s.spec(), c)
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() {
				for range 50 {
					c, err := pgx.Connect(ctx, o.unixDSN())
					if err != nil {
						t.Error(err)
						return
					}
					_, err = c.Exec(ctx, "SELECT 1")
					if err = errors.Join(err, c.Close(ctx)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		clients.Wait()
		eventually(t, func() error {
			if c := o.Counters(); c.Connections != 0 || c.InFlight != 0 || c.Refused != 0 || c.Failed != 0 {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
		must.Eq(t, 0, s.count(t, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'v-door-2'"))
	})
}

// sleeping waits until a query sleeps at the server, and gone until none does.
func (s *server) sleeping(t testing.TB, want int) {
	t.Helper()
	eventually(t, func() error {
		if n := s.count(t, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"); n != want {
			return fmt.Errorf("%d queries sleep, not %d", n, want)
		}
		return nil
	})
}

func TestCancel(t *testing.T) {
	s := startServer(t)
	o := openDoor(t, s.spec(), s.user(t, 1))
	ctx := context.Background()
	for name, version := range map[string]string{"3.0": "", "3.2": " min_protocol_version=3.2 max_protocol_version=3.2"} {
		t.Run("by the protocol "+name, func(t *testing.T) {
			c := o.connect(t, version)
			sleep := make(chan error)
			go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(600)"); sleep <- err }()
			s.sleeping(t, 1)
			must.NoError(t, c.PgConn().CancelRequest(ctx))
			must.Eq(t, "57014", code(<-sleep))
			must.Eq(t, "alive", ask(t, c, "SELECT 'alive'"))
		})
	}
	t.Run("psql's Ctrl-C", func(t *testing.T) {
		cmd := exec.Command(tool(t, "psql"), "-c", "SELECT pg_sleep(600)", "-c", "SELECT 'alive'")
		cmd.Env = []string{"PGHOST=" + o.folder, "PGUSER=x", "LC_ALL=C"}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must.NoError(t, cmd.Start())
		s.sleeping(t, 1)
		must.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		_ = cmd.Wait()
		must.StrContains(t, out.String(), "canceling statement due to user request")
	})
	t.Run("a key that is wrong", func(t *testing.T) {
		c := o.connect(t, "")
		sleep := make(chan error)
		go func() { _, err := c.Exec(ctx, "SELECT pg_sleep(600)"); sleep <- err }()
		s.sleeping(t, 1)
		wrong := bytes.Clone(c.PgConn().SecretKey())
		wrong[0]++
		key := string(append([]byte{byte(c.PgConn().PID() >> 24), byte(c.PgConn().PID() >> 16), byte(c.PgConn().PID() >> 8),
			byte(c.PgConn().PID())}, wrong...))
		request := packet(cancelCode, key)
		request = request[:len(request)-1]
		request[3]--
		must.SliceEmpty(t, o.say(t, request))
		s.sleeping(t, 1)
		must.NoError(t, c.PgConn().CancelRequest(ctx))
		must.Eq(t, "57014", code(<-sleep))
	})
	t.Run("the server's own key is never told", func(t *testing.T) {
		c := o.connect(t, "")
		must.NotEq(t, ask(t, c, "SELECT pg_backend_pid()::text"), fmt.Sprint(c.PgConn().PID()))
	})
	t.Run("a client that dies leaves nothing running", func(t *testing.T) {
		cmd := exec.Command(tool(t, "psql"), "-c", "SELECT pg_sleep(600)")
		cmd.Env = []string{"PGHOST=" + o.folder, "PGUSER=x"}
		must.NoError(t, cmd.Start())
		s.sleeping(t, 1)
		must.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		s.sleeping(t, 0)
	})
	t.Run("a client that says goodbye wants it done", func(t *testing.T) {
		s.exec(t, "CREATE TABLE done (a int)")
		must.NoError(t, o.connect(t, "").Close(ctx))
		c, err := pgconn.Connect(ctx, o.unixDSN())
		must.NoError(t, err)
		raw, err := c.Hijack()
		must.NoError(t, err)
		_, err = raw.Conn.Write([]byte(frame('Q', "SELECT pg_sleep(0.3); INSERT INTO done VALUES (1)\x00") + frame('X', "")))
		must.NoError(t, err)
		must.NoError(t, raw.Conn.Close())
		eventually(t, func() error {
			if s.count(t, "SELECT count(*) FROM done") != 1 {
				return errors.New("it is not done")
			}
			return nil
		})
	})
}

func TestLimits(t *testing.T) {
	s := startServer(t)
	credential := s.user(t, 1)
	ctx := context.Background()
	t.Run("max_conns", func(t *testing.T) {
		spec := s.spec()
		spec.MaxConns = 2
		o := openDoor(t, spec, credential)
		first, _ := o.connect(t, ""), o.connect(t, "")
		_, err := pgx.Connect(ctx, o.unixDSN())
		must.Eq(t, "53300", code(err))
		must.NoError(t, first.Close(ctx))
		eventually(t, func() error {
			c, err := pgx.Connect(ctx, o.unixDSN())
			if err == nil {
				_ = c.Close(ctx)
			}
			return err
		})
	})
	t.Run("clients that say nothing are few", func(t *testing.T) {
		spec := s.spec()
		spec.MaxConns = 1
		o := openDoor(t, spec, credential)
		for range 1 + startupsMost {
			c, err := net.Dial("tcp", o.addr())
			must.NoError(t, err)
			defer c.Close()
		}
		eventually(t, func() error {
			if o.Counters().Connections != 1+startupsMost {
				return errors.New("not all are there")
			}
			return nil
		})
		c, err := net.Dial("tcp", o.addr())
		must.NoError(t, err)
		defer c.Close()
		answer, err := io.ReadAll(c)
		must.NoError(t, err)
		must.Eq(t, "53300 door: too many connections: max_conns", refusalIn(t, answer))
	})
	t.Run("rate", func(t *testing.T) {
		spec := s.spec()
		spec.Rate, spec.Burst = 0.001, 2
		o := openDoor(t, spec, credential)
		o.connect(t, "")
		o.connect(t, "")
		_, err := pgx.Connect(ctx, o.unixDSN())
		must.Eq(t, "53400", code(err))
	})
	t.Run("idle_timeout", func(t *testing.T) {
		spec := s.spec()
		spec.IdleTimeout = 300 * time.Millisecond
		o := openDoor(t, spec, credential)
		quiet, inside, busy := o.connect(t, ""), o.connect(t, ""), o.connect(t, "")
		_, err := inside.Exec(ctx, "BEGIN")
		must.NoError(t, err)
		_, err = busy.Exec(ctx, "SELECT pg_sleep(1)")
		must.NoError(t, err)
		_, err = quiet.Exec(ctx, "SELECT 1")
		must.Eq(t, "57P05", code(err))
		_, err = inside.Exec(ctx, "SELECT 1")
		must.Eq(t, "25P03", code(err))
		must.StrContains(t, o.plugin.call(t, 1).Error, "idle_timeout")
		must.Eq(t, 0, o.Counters().Refused)
	})
	t.Run("a client that reads nothing", func(t *testing.T) {
		spec := s.spec()
		spec.IdleTimeout = 300 * time.Millisecond
		o := openDoor(t, spec, credential)
		c, err := pgconn.Connect(ctx, o.unixDSN())
		must.NoError(t, err)
		raw, err := c.Hijack()
		must.NoError(t, err)
		defer raw.Conn.Close()
		_, err = raw.Conn.Write([]byte(frame('Q', "SELECT repeat('x', 1000) FROM generate_series(1, 100000)\x00")))
		must.NoError(t, err)
		eventually(t, func() error {
			if o.Counters().Connections != 0 {
				return errors.New("it is still there")
			}
			return nil
		})
	})
}

// TestServerFails lets servers fail, and looks at the door to another one.
func TestServerFails(t *testing.T) {
	s, neighbour := startServer(t), startServer(t)
	spec := s.spec()
	spec.HeaderTime, spec.MaxConns = time.Second, 50
	credential := s.user(t, 1)
	o, other := openDoor(t, spec, credential), openDoor(t, neighbour.spec(), neighbour.user(t, 1))
	ctx := context.Background()

	t.Run("a session that is ended at the server", func(t *testing.T) {
		c := o.connect(t, "")
		s.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'v-door-1'")
		_, err := c.Exec(ctx, "SELECT 1")
		must.Eq(t, "57P01", code(err))
		must.StrNotContains(t, err.Error(), "door")
		must.Eq(t, "PostgreSQL broke off the session", o.plugin.call(t, 1).Error)
	})
	t.Run("a server that hangs", func(t *testing.T) {
		hung := o.connect(t, "")
		must.NoError(t, s.cmd.Process.Signal(syscall.SIGSTOP))
		defer func() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }()
		var waiting sync.WaitGroup
		begin := time.Now()
		for range 20 {
			waiting.Go(func() {
				_, err := pgx.Connect(ctx, o.unixDSN())
				if code(err) != "08001" || !strings.Contains(err.Error(), "did not answer in time") {
					t.Errorf("%v", err)
				}
			})
		}
		for range 20 {
			must.Eq(t, "here", ask(t, other.connect(t, ""), "SELECT 'here'"))
		}
		waiting.Wait()
		must.Less(t, 10*time.Second, time.Since(begin))
		must.Eq(t, "here", ask(t, hung, "SELECT 'here'")) // its process does not hang
	})
	t.Run("a server that is not there", func(t *testing.T) {
		s.stop()
		_, err := pgx.Connect(ctx, o.unixDSN())
		must.Eq(t, "08001", code(err))
		must.StrContains(t, err.Error(), "door: PostgreSQL cannot be reached")
	})
}

// hostile is a server that says what it is told to, after it has read a start-up packet.
func hostile(t testing.TB, script func(c net.Conn)) door.Spec {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	var served sync.WaitGroup
	t.Cleanup(func() { l.Close(); served.Wait() })
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				if _, err := readPacket(c); err == nil {
					script(c)
				}
			})
		}
	})
	s := &server{port: l.Addr().(*net.TCPAddr).Port}
	spec := s.spec()
	spec.HeaderTime = time.Second
	return spec
}

func TestHostileServer(t *testing.T) {
	write := func(parts ...string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, strings.Join(parts, "")) }
	}
	ok := frame('R', "\x00\x00\x00\x00")
	for name, c := range map[string]struct {
		script func(net.Conn)
		want   string
	}{
		"asks for the password in clear": {write(frame('R', "\x00\x00\x00\x03")), "28000 door: PostgreSQL asks for a login"},
		"asks for no password":           {write(ok, frame('Z', "I")), "28000 door: PostgreSQL asks for a login"},
		"never ends its login": {func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, frame('N', strings.Repeat("x", 1000))); err != nil {
					return
				}
			}
		}, "08001 door: PostgreSQL does not speak as it should"},
		"sends a frame without end": {write("S\x7f\xff\xff\xff"), "08001 door: PostgreSQL does not speak as it should"},
		"sends an impossible frame": {write("S\x00\x00\x00\x01"), "08001 door: PostgreSQL does not speak as it should"},
		"is no PostgreSQL": {write("HTTP/1.1 400 Bad Request\r\n\r\n"),
			"08001 door: PostgreSQL does not speak as it should"},
		"quotes the password in an error": {func(c net.Conn) {
			_, _ = io.WriteString(c, frame('R', "\x00\x00\x00\x05salt"))
			_, _ = io.CopyN(io.Discard, c, 5)
			_, _ = io.WriteString(c, frame('E', "SFATAL\x00C28P99\x00Mthe password is secret-word\x00\x00"))
		}, "28P99 door: PostgreSQL refused the session"},
		"has an SQLSTATE that is none": {write(frame('E', "SFATAL\x00Csecret-word\x00Mx\x00\x00")),
			"08001 door: PostgreSQL refused the session"},
	} {
		t.Run(name, func(t *testing.T) {
			o := openDoor(t, hostile(t, c.script), hostileCredential)
			got := refusalIn(t, o.say(t, packet(3<<16, "user", "u", "")))
			must.StrHasPrefix(t, c.want, got)
			call := fmt.Sprintf("%+v", o.plugin.call(t, 1))
			must.StrNotContains(t, call, "secret-word")
			must.Eq(t, 1, o.Counters().Failed)
		})
	}
}

// hostileCredential is what hostile servers are told.
var hostileCredential = &door.Credential{Generation: 1, Username: "u", Password: "secret-word"}

// helloServer logs a client in by md5, and then waits until that hangs up.
func helloServer(c net.Conn) {
	greet(c, "")
	for one := make([]byte, 1); ; {
		if _, err := c.Read(one); err != nil {
			return
		}
	}
}

func greet(c net.Conn, more string) {
	_, _ = io.WriteString(c, frame('R', "\x00\x00\x00\x05salt"))
	_, _ = io.CopyN(io.Discard, c, 1+4+36) // the password
	_, _ = io.WriteString(c, frame('R', "\x00\x00\x00\x00")+frame('K', "12345678")+frame('Z', "I")+more)
}

// TestBreakingOff is a server that hangs up in mid-frame or between frames, without a word.
func TestBreakingOff(t *testing.T) {
	for name, last := range map[string]string{"between frames": "", "inside of one": "D\x00\x00\x00\x50xx"} {
		t.Run(name, func(t *testing.T) {
			o := openDoor(t, hostile(t, func(c net.Conn) { greet(c, last) }), hostileCredential)
			answer := o.say(t, packet(3<<16, "user", "u", ""))
			greeting := len(frame('R', "1234") + frame('K', "12345678") + frame('Z', "I"))
			if rest := answer[greeting:]; last == "" {
				must.Eq(t, "08006 door: PostgreSQL broke off the session", refusalIn(t, rest))
			} else {
				must.Eq(t, last, string(rest))
			}
			must.Eq(t, "PostgreSQL broke off the session", o.plugin.call(t, 1).Error)
			must.Eq(t, 1, o.Counters().Failed)
		})
	}
}

// A shortListener has no file descriptor for a while.
type shortListener struct {
	net.Listener
	errors int
}

func (l *shortListener) Accept() (net.Conn, error) {
	if l.errors--; l.errors >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestServeOutlivesWantOfDescriptors(t *testing.T) {
	o := nowhere(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	served := make(chan error)
	go func() { served <- o.Serve(&shortListener{Listener: l, errors: 3}) }()
	c, err := net.Dial("tcp", l.Addr().String())
	must.NoError(t, err)
	defer c.Close()
	_, err = c.Write(packet(2 << 16))
	must.NoError(t, err)
	answer, err := io.ReadAll(c)
	must.NoError(t, err)
	must.StrContains(t, refusalIn(t, answer), "only version 3")
	must.NoError(t, l.Close())
	must.ErrorIs(t, <-served, net.ErrClosed)
	o.Close(context.Background())
	must.NoError(t, o.Serve(l)) // closed already: so is the door
}
