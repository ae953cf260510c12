package postgresdoor

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/shoenig/test/must"
)

// TestClients lets each client do what it does with a server.
func TestClients(t *testing.T) {
	s := startServer(t)
	o := openDoor(t, s.spec(), s.user(t, 1))

	t.Run("psql", func(t *testing.T) {
		out, err := o.run(t, "psql", "-At", "-c", "SELECT current_user, current_database()", "-c", "SHOW application_name")
		must.NoError(t, err, must.Sprint(out))
		must.Eq(t, "v-door-1|app\npsql\n", out)
	})
	t.Run("lib/pq", func(t *testing.T) { testSQL(t, "postgres", o.dsn()) })
	t.Run("lib/pq by the socket", func(t *testing.T) { testSQL(t, "postgres", o.unixDSN()) })
	t.Run("pgx by database/sql", func(t *testing.T) { testSQL(t, "pgx", o.dsn()) })
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run("pgxpool with "+mode, func(t *testing.T) {
			testPool(t, o.unixDSN()+" default_query_exec_mode="+mode)
		})
	}
}

func testSQL(t *testing.T, driver, dsn string) {
	db, err := sql.Open(driver, dsn)
	must.NoError(t, err)
	defer db.Close()
	var user, text string
	must.NoError(t, db.QueryRow("SELECT current_user, repeat($1, 100000)", "äß").Scan(&user, &text))
	must.Eq(t, "v-door-1", user)
	must.Eq(t, strings.Repeat("äß", 100_000), text)
	tx, err := db.Begin()
	must.NoError(t, err)
	_, err = tx.Exec("SELECT 1/0")
	must.ErrorContains(t, err, "division by zero")
	must.NoError(t, tx.Rollback())
}

func testPool(t *testing.T, dsn string) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, dsn)
	must.NoError(t, err)
	defer pool.Close()
	for range 3 {
		var n int
		must.NoError(t, pool.QueryRow(ctx, "SELECT $1::int + 1", 41).Scan(&n))
		must.Eq(t, 42, n)
	}
	batch := &pgx.Batch{}
	for i := range 100 {
		batch.Queue("SELECT $1::int", i)
	}
	results := pool.SendBatch(ctx, batch)
	for i := range 100 {
		var n int
		must.NoError(t, results.QueryRow().Scan(&n))
		must.Eq(t, i, n)
	}
	must.NoError(t, results.Close())
}
