package postgresdoor

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/internal/need"
)

// tool finds a program of PostgreSQL in Debian's folder, which is not on PATH, or on PATH.
func tool(t testing.TB, name string) string {
	t.Helper()
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(found) > 0 {
		return slices.Max(found)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		need.Skip(t, "PostgreSQL")
	}
	return path
}

// A server is a real PostgreSQL with the database "app", on a port of its own.
type server struct {
	dir  string
	port int
	cmd  *exec.Cmd
	db   *sql.DB // of the superuser
}

// startServer starts a server that lets users in by scram-sha-256, or by md5 where the password is kept
// so.
func startServer(t testing.TB) *server {
	t.Helper()
	need.Root(t) // PostgreSQL runs as a user of its own
	dir, err := os.MkdirTemp("", "door")
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must.NoError(t, os.Chmod(dir, 0o755))
	s := &server{dir: dir, port: freePort(t)}
	data := s.path("data")
	must.NoError(t, os.Mkdir(data, 0o700))
	must.NoError(t, os.WriteFile(s.path("password"), []byte("superuser"), 0o644))
	u, err := user.Lookup("postgres")
	if err != nil {
		need.Skip(t, "PostgreSQL")
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	must.NoError(t, os.Chown(data, uid, gid))
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(tool(t, name), args...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
			Setpgid: true}
		return cmd
	}
	out, err := run("initdb", "-D", data, "-U", "postgres", "-A", "md5", "--pwfile="+s.path("password"),
		"--no-sync", "--locale=C", "--encoding=UTF8").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	args := []string{"-D", data, "-p", strconv.Itoa(s.port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=200",
		"-c", "password_encryption=scram-sha-256"}
	s.cmd = run("postgres", args...)
	log, err := os.Create(s.path("log"))
	must.NoError(t, err)
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	must.NoError(t, s.cmd.Start())
	t.Cleanup(s.stop)
	s.db = s.open(t, "postgres", "superuser", "postgres")
	eventually(t, func() error { return s.db.Ping() })
	s.exec(t, "CREATE DATABASE app")
	s.db = s.open(t, "postgres", "superuser", "app")
	return s
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait()
}

func (s *server) open(t testing.TB, user, password, database string) *sql.DB {
	t.Helper()
	connector, err := pq.NewConnectorConfig(pq.Config{Host: "127.0.0.1", Port: uint16(s.port), User: user,
		Password: password, Database: database, SSLMode: pq.SSLModeDisable})
	must.NoError(t, err)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	return db
}

func (s *server) exec(t testing.TB, statement string) {
	t.Helper()
	_, err := s.db.Exec(statement)
	must.NoError(t, err)
}

// count returns what a query of a single number gives.
func (s *server) count(t testing.TB, query string, args ...any) (n int) {
	t.Helper()
	must.NoError(t, s.db.QueryRow(query, args...).Scan(&n))
	return n
}

// user makes a user of a generation, as Vault does, and returns the credential.
func (s *server) user(t testing.TB, generation uint64) *door.Credential {
	t.Helper()
	c := &door.Credential{Generation: generation, Accessor: fmt.Sprintf("lease-%d", generation), ReadAt: time.Now(),
		Username: fmt.Sprintf("v-door-%d", generation), Password: fmt.Sprintf("secret-word-%d", generation)}
	s.exec(t, fmt.Sprintf(`CREATE ROLE %q LOGIN PASSWORD '%s'`, c.Username, c.Password))
	s.exec(t, fmt.Sprintf(`GRANT pg_read_all_data, pg_write_all_data TO %q; GRANT ALL ON SCHEMA public TO %[1]q`,
		c.Username))
	return c
}

// drop is what Vault does when it revokes a lease.
func (s *server) drop(generation uint64) error {
	_, err := s.db.Exec(fmt.Sprintf(`DROP OWNED BY "v-door-%d"; DROP ROLE "v-door-%[1]d"`, generation))
	return err
}

// spec is that of a door to the server.
func (s *server) spec() door.Spec {
	return door.Spec{ID: "alloc/task/db", Name: "db", MaxConns: 100, HeaderTime: 10 * time.Second,
		Dial: door.Dial{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		Postgres: &door.Postgres{
			URL: fmt.Sprintf("postgres://localhost:%d/app?sslmode=disable", s.port)}}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// A plugin notes what a door tells it.
type plugin struct {
	mu     sync.Mutex
	calls  []door.Call
	unused []uint64
	reread func(generation uint64) error // nil: there is never anything newer
	revoke func(generation uint64)       // nil: nothing is done
}

func (p *plugin) Reread(_ context.Context, generation uint64) error {
	p.mu.Lock()
	reread := p.reread
	p.mu.Unlock()
	if reread == nil {
		return fmt.Errorf("there is nothing newer than %d", generation)
	}
	return reread(generation)
}

func (p *plugin) Unused(generation uint64) {
	if p.revoke != nil {
		p.revoke(generation)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unused = append(p.unused, generation)
}

func (p *plugin) Call(c door.Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, c)
}

func (p *plugin) told() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.unused)
}

// last waits for the n-th call, and returns it.
func (p *plugin) call(t testing.TB, n int) (c door.Call) {
	t.Helper()
	eventually(t, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.calls) < n {
			return fmt.Errorf("%d calls, not %d", len(p.calls), n)
		}
		c = p.calls[n-1]
		return nil
	})
	return c
}

// An opened door is served at a socket as libpq looks for it in a folder, and at a port of loopback.
type opened struct {
	door.Door
	plugin *plugin
	folder string
	port   int
}

func openDoor(t testing.TB, spec door.Spec, c *door.Credential) *opened {
	t.Helper()
	o := &opened{plugin: &plugin{}}
	d, err := New(spec, o.plugin)
	must.NoError(t, err)
	o.Door = d
	o.folder, err = os.MkdirTemp("", "pg")
	must.NoError(t, err)
	unix, err := net.Listen("unix", filepath.Join(o.folder, ".s.PGSQL.5432"))
	must.NoError(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	o.port = tcp.Addr().(*net.TCPAddr).Port
	var served sync.WaitGroup
	for _, l := range []net.Listener{unix, tcp} {
		served.Go(func() {
			if err := d.Serve(l); err != nil {
				t.Error(err)
			}
		})
	}
	d.Use(c)
	t.Cleanup(func() {
		ctx, done := context.WithTimeout(context.Background(), 2*time.Second)
		defer done()
		d.Close(ctx)
		served.Wait()
		_ = os.RemoveAll(o.folder)
	})
	return o
}

// run runs a program of PostgreSQL through the door's socket.
func (o *opened) run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(tool(t, name), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + o.folder, "PGHOST=" + o.folder, "PGPORT=5432", "LC_ALL=C",
		"PGUSER=nobody-in-particular"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// dsn is how clients in Go find the door over TCP.
func (o *opened) dsn() string {
	return fmt.Sprintf("postgres://anybody@127.0.0.1:%d/app?sslmode=disable", o.port)
}

// unixDSN is how they find its socket.
func (o *opened) unixDSN() string {
	return "host=" + o.folder + " port=5432 user=anybody sslmode=disable"
}

func (o *opened) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(o.port)) }
