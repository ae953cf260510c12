package postgresdoor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// revoking has the server drop a user as soon as the door has no use for it.
func (o *opened) revoking(t testing.TB, s *server) {
	o.plugin.revoke = func(generation uint64) {
		if n := s.count(t, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1",
			fmt.Sprintf("v-door-%d", generation)); n != 0 {
			t.Errorf("generation %d has %d sessions left", generation, n)
		}
		if err := s.drop(generation); err != nil {
			t.Error(err)
		}
	}
}

// released waits until the plugin was told of all these generations, and no other.
func (o *opened) released(t testing.TB, generations ...uint64) {
	t.Helper()
	eventually(t, func() error {
		if got := o.plugin.told(); len(got) != len(generations) {
			return fmt.Errorf("unused are %v, not %v", got, generations)
		}
		return nil
	})
	must.SliceContainsAll(t, o.plugin.told(), generations)
}

func TestRotation(t *testing.T) {
	s := startServer(t)
	ctx := context.Background()
	t.Run("an idle session ends, one in a transaction when that has ended", func(t *testing.T) {
		o := openDoor(t, s.spec(), s.user(t, 1))
		o.revoking(t, s)
		quiet, inside := o.connect(t, ""), o.connect(t, "")
		tx, err := inside.Begin(ctx)
		must.NoError(t, err)
		_, err = tx.Exec(ctx, "CREATE TABLE mine (a int)")
		must.NoError(t, err)
		o.Use(s.user(t, 2))
		must.Eq(t, "v-door-2", ask(t, o.connect(t, ""), "SELECT current_user::text")) // at once
		_, err = quiet.PgConn().ReceiveMessage(ctx)
		must.Eq(t, "57P01", code(err))
		must.ErrorContains(t, err, "door: the user of the database was replaced: connect again")
		must.SliceEmpty(t, o.plugin.told()) // the other goes on
		_, err = tx.Exec(ctx, "DROP TABLE mine")
		must.NoError(t, err)
		must.NoError(t, tx.Commit(ctx))
		_, err = inside.PgConn().ReceiveMessage(ctx)
		must.Eq(t, "57P01", code(err))
		o.released(t, 1)
		o.Use(s.user(t, 3))
		o.released(t, 1, 2)
	})
	t.Run("what is unused is told at once, and a credential that was read anew is no new one", func(t *testing.T) {
		o := nowhere(t, func(s *door.Spec) { s.Stale = time.Hour })
		again := &door.Credential{Generation: 1, ReadAt: time.Now()}
		o.Use(again)
		must.StrNotContains(t, refusalIn(t, o.say(t, packet(3<<16, ""))), "stale")
		must.SliceEmpty(t, o.plugin.told())
		o.Use(&door.Credential{Generation: 2})
		o.released(t, 1)
		o.Use(nil)
		o.released(t, 1, 2)
		must.StrContains(t, refusalIn(t, o.say(t, packet(3<<16, ""))), "no credential")
	})
	t.Run("the old password dies first", func(t *testing.T) {
		first := s.user(t, 11)
		o := openDoor(t, s.spec(), first)
		s.exec(t, `ALTER ROLE "v-door-11" PASSWORD 'changed'`)
		var rereads atomic.Int32
		o.plugin.reread = func(generation uint64) error {
			rereads.Add(1)
			if generation != 11 {
				return errors.New("another generation")
			}
			time.Sleep(20 * time.Millisecond) // others find it changed, too
			newer := *first
			newer.Generation, newer.Password = 12, "changed"
			o.Use(&newer)
			return nil
		}
		var clients sync.WaitGroup
		for range 10 {
			clients.Go(func() {
				c, err := pgx.Connect(ctx, o.unixDSN())
				if err == nil {
					err = c.Close(ctx)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		clients.Wait()
		must.Eq(t, 1, rereads.Load())
		o.released(t, 11)
	})
	t.Run("there is nothing newer", func(t *testing.T) {
		c := s.user(t, 21)
		o := openDoor(t, s.spec(), c)
		must.NoError(t, s.drop(21))
		var rereads atomic.Int32
		o.plugin.reread = func(uint64) error { rereads.Add(1); return errors.New("nothing newer") }
		for range 3 {
			_, err := pgx.Connect(ctx, o.unixDSN())
			must.Eq(t, "28P01", code(err))
			must.ErrorContains(t, err, "door: PostgreSQL refused the user or its password")
			must.StrNotContains(t, err.Error(), "v-door")
		}
		must.Eq(t, 1, rereads.Load()) // the plugin is not asked again and again
	})
}

// TestBusySessionIsReplaced is one that is never idle for long.
func TestBusySessionIsReplaced(t *testing.T) {
	s := startServer(t)
	ctx := context.Background()
	o := openDoor(t, s.spec(), s.user(t, 1))
	o.revoking(t, s)
	c := o.connect(t, "")
	o.Use(s.user(t, 2))
	d := o.Door.(*postgresDoor)
	overdue := time.Now().Add(2 * quietTime)
	for {
		tx, err := c.Begin(ctx)
		if err != nil {
			must.Eq(t, "57P01", code(err))
			break
		}
		_, err = tx.Exec(ctx, "SELECT 1")
		must.NoError(t, err)
		must.NoError(t, tx.Commit(ctx))
		if time.Now().After(overdue) {
			d.mu.Lock()
			for s := range d.conns {
				s.retire(replaced, time.Now()) // as if a minute had gone
			}
			d.mu.Unlock()
		}
	}
	must.True(t, time.Now().After(overdue))
	o.released(t, 1)
}

func TestClose(t *testing.T) {
	s := startServer(t)
	ctx := context.Background()
	o := openDoor(t, s.spec(), s.user(t, 1))
	quiet, busy, forever := o.connect(t, ""), o.connect(t, ""), o.connect(t, "")
	unsaid, err := net.Dial("tcp", o.addr())
	must.NoError(t, err)
	defer unsaid.Close()
	results := make(chan error, 2)
	go func() { _, err := busy.Exec(ctx, "SELECT pg_sleep(0.5)"); results <- err }()
	go func() { _, err := forever.Exec(ctx, "SELECT pg_sleep(600)"); results <- err }()
	s.sleeping(t, 2)
	within, done := context.WithTimeout(ctx, 2*time.Second)
	defer done()
	begin := time.Now()
	o.Close(within)
	must.Between(t, time.Second, time.Since(begin), 20*time.Second)
	must.NoError(t, <-results)
	must.Error(t, <-results)
	_, err = quiet.PgConn().ReceiveMessage(ctx)
	must.Eq(t, "57P01", code(err))
	must.ErrorContains(t, err, "door: it is closed")
	must.Eq(t, door.Counters{Calls: 4}, func() door.Counters {
		c := o.Counters()
		c.Sent, c.Received, c.Refused = 0, 0, 0
		return c
	}())
	s.sleeping(t, 0) // what ran is cancelled
}

// TestPgbench runs transactions while the user is replaced three times, and each is dropped as soon as it is unused.
func TestPgbench(t *testing.T) {
	s := startServer(t)
	o := openDoor(t, s.spec(), s.user(t, 1))
	o.revoking(t, s)
	out, err := o.run(t, "pgbench", "-i", "-s", "1", "app")
	must.NoError(t, err, must.Sprint(out))
	s.exec(t, `REASSIGN OWNED BY "v-door-1" TO postgres; GRANT ALL ON ALL TABLES IN SCHEMA public TO pg_write_all_data`)
	generation := uint64(1)
	for name, args := range map[string][]string{
		"a connection for each transaction":          {"-C"},
		"with prepared statements":                   {"-C", "-M", "prepared"},
		"sessions that stay, by the simple protocol": {"-M", "simple"},
		"sessions that stay, and prepare":            {"-M", "prepared"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(o.plugin.told())
			type result struct {
				out string
				err error
			}
			results := make(chan result)
			go func() {
				out, err := o.run(t, "pgbench", append(args, "-n", "-T", "5", "-c", "4", "-j", "2", "app")...)
				results <- result{out, err}
			}()
			for range 3 {
				time.Sleep(time.Second)
				generation++
				o.Use(s.user(t, generation))
			}
			got := <-results
			must.NoError(t, got.err, must.Sprint(got.out))
			must.StrContains(t, got.out, "number of failed transactions: 0 (0.000%)")
			must.StrNotContains(t, got.out, "aborted")
			t.Log(line(got.out, "tps"), line(got.out, "actually processed"))
			eventually(t, func() error {
				if got := len(o.plugin.told()) - before; got != 3 {
					return fmt.Errorf("%d generations are unused, not 3", got)
				}
				return nil
			})
		})
	}
}

// line is the line of an output that has a word.
func line(out, word string) string {
	for l := range strings.Lines(out) {
		if strings.Contains(l, word) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

// TestPoolOutlivesRotation uses database/sql, whose pool keeps sessions idle for as long as it likes.
func TestPoolOutlivesRotation(t *testing.T) {
	s := startServer(t)
	o := openDoor(t, s.spec(), s.user(t, 1))
	o.revoking(t, s)
	for generation, driver := range []string{"pgx", "postgres"} {
		t.Run(driver, func(t *testing.T) {
			db, err := sql.Open(driver, o.unixDSN())
			must.NoError(t, err)
			defer db.Close()
			db.SetMaxIdleConns(4)
			use := func() {
				var clients sync.WaitGroup
				for range 4 {
					clients.Go(func() {
						var n int
						if err := db.QueryRow("SELECT 1").Scan(&n); err != nil {
							t.Error(err)
						}
					})
				}
				clients.Wait()
			}
			use()
			before := len(o.plugin.told())
			o.Use(s.user(t, uint64(generation+2)))
			eventually(t, func() error {
				if len(o.plugin.told()) != before+1 {
					return errors.New("the old user is in use")
				}
				return nil
			})
			use()
		})
	}
}
