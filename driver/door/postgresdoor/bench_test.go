package postgresdoor

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shoenig/test/must"
)

// BenchmarkPgbench compares transactions a second through a door with those of the server itself: the two take turns,
// so that both have the machine as it is.
func BenchmarkPgbench(b *testing.B) {
	s := startServer(b)
	o := openDoor(b, s.spec(), s.user(b, 1))
	out, err := o.run(b, "pgbench", "-i", "-s", "4", "app")
	must.NoError(b, err, must.Sprint(out))
	for name, args := range map[string][]string{
		"select, prepared":  {"-S", "-M", "prepared", "-c", "8", "-j", "2"},
		"tpcb, prepared":    {"-M", "prepared", "-c", "4", "-j", "2"},
		"tpcb, simple":      {"-M", "simple", "-c", "4", "-j", "2"},
		"a connection each": {"-C", "-S", "-c", "4", "-j", "2"},
	} {
		b.Run(name, func(b *testing.B) {
			var direct, through []float64
			for b.Loop() {
				direct = append(direct, tps(b, s.pgbench(b, args...)))
				out, err := o.run(b, "pgbench", append(args, "-n", "-T", "3", "app")...)
				must.NoError(b, err, must.Sprint(out))
				through = append(through, tps(b, out))
			}
			b.ReportMetric(median(direct), "direct-tps")
			b.ReportMetric(median(through), "door-tps")
			b.ReportMetric(median(through)/median(direct), "of-direct")
		})
	}
}

// pgbench runs pgbench at the server itself, with the very user of the door.
func (s *server) pgbench(b *testing.B, args ...string) string {
	cmd := exec.Command(tool(b, "pgbench"), append(args, "-n", "-T", "3", "app")...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PGHOST=127.0.0.1", "PGPORT=" + strconv.Itoa(s.port),
		"PGUSER=v-door-1", "PGPASSWORD=secret-word-1", "PGSSLMODE=disable"}
	out, err := cmd.CombinedOutput()
	must.NoError(b, err, must.Sprint(string(out)))
	return string(out)
}

func tps(b *testing.B, out string) float64 {
	fields := strings.Fields(line(out, "tps ="))
	must.Greater(b, 2, len(fields))
	n, err := strconv.ParseFloat(fields[2], 64)
	must.NoError(b, err)
	return n
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// BenchmarkConnect is what a connection costs, from the first byte to the answer of a query.
func BenchmarkConnect(b *testing.B) {
	s := startServer(b)
	c := s.user(b, 1)
	o := openDoor(b, s.spec(), c)
	for name, dsn := range map[string]string{"door": o.unixDSN(), "direct": fmt.Sprintf(
		"postgres://%s:%s@127.0.0.1:%d/app?sslmode=disable", c.Username, c.Password, s.port)} {
		b.Run(name, func(b *testing.B) {
			var took []float64
			for b.Loop() {
				begin := time.Now()
				conn, err := pgx.Connect(context.Background(), dsn)
				must.NoError(b, err)
				took = append(took, float64(time.Since(begin).Microseconds()))
				must.NoError(b, conn.Close(context.Background()))
			}
			b.ReportMetric(median(took), "µs-median")
		})
	}
}

// BenchmarkIdle is what a thousand idle sessions cost the door, and the test itself for their two ends. The server is
// one of the test's own: PostgreSQL would need a process for each.
func BenchmarkIdle(b *testing.B) {
	const sessions = 1000
	spec := hostile(b, helloServer)
	spec.MaxConns, spec.HeaderTime = sessions, time.Minute
	o := openDoor(b, spec, hostileCredential)
	for b.Loop() {
		before := inUse()
		conns := make([]net.Conn, sessions)
		for i := range conns {
			c, err := net.Dial("unix", o.folder+"/.s.PGSQL.5432")
			must.NoError(b, err)
			conns[i] = c
			_, err = c.Write(packet(3<<16, "user", "u", ""))
			must.NoError(b, err)
			_, err = c.Read(make([]byte, 512))
			must.NoError(b, err)
		}
		b.ReportMetric(float64(inUse()-before)/sessions, "B/session")
		for _, c := range conns {
			c.Close()
		}
		eventually(b, func() error {
			if n := o.Counters().Connections; n != 0 {
				return fmt.Errorf("%d connections are left", n)
			}
			return nil
		})
	}
}

func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
