package stack

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/lib/pq"
)

// Postgres is a PostgreSQL server with a database of its own; its superuser is "postgres".
type Postgres struct {
	Process
	Port int // on 127.0.0.1

	password string
	db       *sql.DB
}

func (s *Stack) startPostgres(ctx context.Context) error {
	if !s.options.Postgres {
		return nil
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	data := s.path("postgres")
	p := &Postgres{Port: port, password: rand.Text()}
	p.Process = Process{Name: "postgres", LogFile: s.path("postgres.log"), quit: syscall.SIGINT}
	if err := s.initDB(ctx, data, p.password); err != nil {
		return err
	}
	// What is in it matters to nobody after a crash: fsync would only take time.
	server, err := s.asPostgres("postgres", "-D", data, "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", "-c", "fsync=off")
	if err != nil {
		return err
	}
	if err := p.launch(server); err != nil {
		return err
	}
	s.Postgres = p
	if p.db, err = p.Connect("postgres", p.password); err != nil {
		return err
	}
	s.options.Log("PostgreSQL is on 127.0.0.1:%d", port)
	return p.await(ctx, func() error { return p.db.PingContext(ctx) })
}

func (s *Stack) initDB(ctx context.Context, data, password string) error {
	secret := s.path("postgres.password")
	if err := os.WriteFile(secret, []byte(password), 0o644); err != nil {
		return fmt.Errorf("write password of PostgreSQL: %w", err)
	}
	defer func() { _ = os.Remove(secret) }()
	initdb, err := s.asPostgres("initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile="+secret,
		"--no-sync", "--locale=C")
	if err != nil {
		return err
	}
	cred := initdb.SysProcAttr.Credential
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("make folder of PostgreSQL: %w", err)
	}
	if err := os.Chown(data, int(cred.Uid), int(cred.Gid)); err != nil {
		return fmt.Errorf("make folder of PostgreSQL: %w", err)
	}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// Pause makes the server hang with all its sessions, each of which is a process.
func (p *Postgres) Pause() error {
	if err := p.Process.Pause(); err != nil { // first: it begins no session from now on
		return err
	}
	return p.sessions(syscall.SIGSTOP)
}

// Resume ends a Pause.
func (p *Postgres) Resume() error {
	return errors.Join(p.sessions(syscall.SIGCONT), p.Process.Resume())
}

// sessions sends a signal to every process that the server has started.
func (p *Postgres) sessions(sig syscall.Signal) error {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.PID()))
	if err != nil {
		return fmt.Errorf("list processes of PostgreSQL: %w", err)
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return fmt.Errorf("list processes of PostgreSQL: %w", err)
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal process %d of PostgreSQL: %w", pid, err)
		}
	}
	return nil
}

// asPostgres is a command of PostgreSQL's, run as the user postgres: the server refuses to run as root.
func (s *Stack) asPostgres(tool string, args ...string) (*exec.Cmd, error) {
	path, err := postgresTool(tool)
	if err != nil {
		return nil, err
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("find the user PostgreSQL runs as: %w", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	cmd := exec.Command(path, args...)
	cmd.Dir = s.Dir
	cmd.Env = clean(s.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return cmd, nil
}

// HavePostgres tells whether PostgreSQL is installed on this machine.
func HavePostgres() bool {
	_, err := postgresTool("initdb")
	return err == nil
}

// postgresTool finds a program of PostgreSQL: the newest version in Debian's folder, which is not on PATH, or what is
// on PATH.
func postgresTool(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		return slices.Max(found), nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find PostgreSQL: %w", err)
	}
	return path, nil
}

// Connect opens the database as the given user; nothing is sent before the first query.
func (p *Postgres) Connect(user, password string) (*sql.DB, error) {
	connector, err := pq.NewConnectorConfig(pq.Config{
		Host: "127.0.0.1", Port: uint16(p.Port), User: user, Password: password, Database: "postgres",
		SSLMode: pq.SSLModeDisable,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// Users returns the names of the users that Vault has made and not yet dropped.
func (p *Postgres) Users(ctx context.Context) ([]string, error) {
	rows, err := p.db.QueryContext(ctx, `SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname LIKE 'v-%' ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("list users of PostgreSQL: %w", err)
	}
	defer rows.Close()
	var users []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("list users of PostgreSQL: %w", err)
		}
		users = append(users, name)
	}
	return users, rows.Err()
}

// Add makes a user, for whom Vault may set a password.
func (p *Postgres) Add(ctx context.Context, user string) error {
	if _, err := p.db.ExecContext(ctx, "CREATE ROLE "+pq.QuoteIdentifier(user)+" WITH LOGIN"); err != nil {
		return fmt.Errorf("add user to PostgreSQL: %w", err)
	}
	return nil
}

// Config is what database/config of Vault's is told of the server, as example/database.sh does it.
func (p *Postgres) Config() map[string]any {
	return map[string]any{
		"plugin_name":    "postgresql-database-plugin",
		"allowed_roles":  "*",
		"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@127.0.0.1:%d/postgres?sslmode=disable", p.Port),
		"username":       "postgres",
		"password":       p.password,
	}
}

// env is how example/database.sh is told where the server is, in the words of libpq.
func (p *Postgres) env() []string {
	return []string{"PGHOST=127.0.0.1", "PGPORT=" + strconv.Itoa(p.Port), "PGUSER=postgres", "PGPASSWORD=" + p.password}
}
