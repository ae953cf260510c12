package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What hangs delays nothing but itself: neither its neighbours at the same Vault, nor those of another one.

const (
	hungTasks    = 40
	hungTTL      = 30 * time.Second // of their database credentials
	databaseGone = 4 * time.Minute
	clusterGone  = 90 * time.Second
	calmPeriod   = 12 * time.Second // of a neighbour's token
	calmPoll     = 2 * time.Second
)

// TestWhateverHangsDelaysNothingButItself: first the database hangs, and then all packets to the cluster of the forty
// are lost.
func TestWhateverHangsDelaysNothingButItself(t *testing.T) {
	t.Parallel()
	plugin := stack.Wrap("raw_exec", "vault-raw_exec")
	s := own(t, stack.Options{Postgres: true, Plugins: []stack.Plugin{plugin}, Proxies: map[string]bool{"dark": false}})
	must.NoError(t, audit(t.Context(), s))
	ctx := within(t, 12*time.Minute)
	crowd := job{Name: "hung", Driver: plugin.Name, Args: []string{"show"}, Group: fmt.Sprintf("count = %d", hungTasks)}
	crowd = onDark(withDatabase(t, s, crowd, hungTTL, revokes, onNoop))
	_, err := s.Nomad.Run(ctx, crowd.spec(), nil)
	must.NoError(t, err)
	eventually(t, 2*time.Minute, func() error { return loggedIn(t, s, crowd, hungTasks) })

	calm := static(t, s, job{Name: "calm", Driver: plugin.Name, Args: []string{"show"}}, calmPeriod)
	alloc := run(t, s, onDark(calm))
	must.NoError(t, alloc.Running(ctx))
	t.Run("database", func(t *testing.T) { databaseHangs(t, ctx, s, calm) })
	unnoticed(t, ctx, alloc, calm)
	must.One(t, watched(s, calm).granted(t, "auth/jwt-nomad/login"), must.Sprint("its token was never lost"))
	t.Run("cluster", func(t *testing.T) { clusterIsDark(t, ctx, s, crowd) })
	eventually(t, 2*time.Minute, func() error { return loggedIn(t, s, crowd, hungTasks) })
}

// onDark has the job ask the cluster "dark".
func onDark(j job) job {
	j.Config = strings.Replace(j.Config, "role =", "cluster = \"dark\"\n role =", 1)
	return j
}

// static gives the job a secret that is polled, and tokens that live for that long at a time.
func static(t *testing.T, s *stack.Stack, j job, period time.Duration) job {
	t.Helper()
	must.NoError(t, s.Vault.Role(t.Context(), j.Name,
		fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] }`, j.Name),
		map[string]any{"token_period": period.String()}))
	put(t, s, j, map[string]any{"color": "green"})
	j.Config += fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) +
		file("secrets/color", inJob(j, "color"), strings.Replace(onNoop, `"1s"`, fmt.Sprintf("%q", calmPoll), 1))
	return j
}

// loggedIn returns an error while the tasks of the job do not have a token each, and no more.
func loggedIn(t *testing.T, s *stack.Stack, j job, count int) error {
	t.Helper()
	if tokens := tokensOf(t, s, j.Name); len(tokens) != count {
		return fmt.Errorf("%s has %d tokens, not %d", j.Name, len(tokens), count)
	}
	return nil
}

// databaseHangs: the neighbour asks the same Vault, which waits for the database.
func databaseHangs(t *testing.T, ctx context.Context, s *stack.Stack, calm job) {
	const renewal = "auth/token/renew-self"
	usual := startTakes(t, ctx, s, static(t, s, job{Name: "before", Driver: calm.Driver, Args: []string{"show"}},
		calmPeriod))
	must.NoError(t, s.Postgres.Pause())
	t.Cleanup(func() { must.NoError(t, s.Postgres.Resume()) })
	began := time.Now()
	again := time.NewTimer(databaseGone / 2)
	<-again.C
	took := startTakes(t, ctx, s, static(t, s, job{Name: "beside", Driver: calm.Driver, Args: []string{"show"}},
		calmPeriod))
	must.Less(t, usual+stretched(slack)/2, took, must.Sprint("a start beside what hangs"))
	over := time.NewTimer(time.Until(began.Add(databaseGone)))
	<-over.C

	polls := since(began, watched(s, calm).answered(t, "kv/data/default/calm/config", true))
	late := 0
	for i, at := range polls[1:] {
		if at.Sub(polls[i]) > calmPoll+calmPoll/10+stretched(time.Second)/2 {
			late++
		}
	}
	t.Logf("%d polls in %v, %d late; a start takes %v, and %v beside what hangs", len(polls), databaseGone, late, usual,
		took)
	must.GreaterEq(t, int(databaseGone/(calmPoll+calmPoll/10+stretched(time.Second)/2)), len(polls))
	must.LessEq(t, len(polls)/20, late)
	renewals := since(began, watched(s, calm).answered(t, renewal, true))
	must.GreaterEq(t, int(databaseGone/calmPeriod), len(renewals))
}

// since returns those of the times that are not before began.
func since(began time.Time, times []time.Time) (after []time.Time) {
	for _, at := range times {
		if !at.Before(began) {
			after = append(after, at)
		}
	}
	return after
}

// startTakes returns how long the job takes from its registration until its task runs.
func startTakes(t *testing.T, ctx context.Context, s *stack.Stack, j job) time.Duration {
	t.Helper()
	began := time.Now()
	must.NoError(t, run(t, s, j).Running(ctx))
	return time.Since(began)
}

// clusterIsDark: neighbours at another cluster keep what they have, and what is stopped there is revoked.
func clusterIsDark(t *testing.T, ctx context.Context, s *stack.Stack, crowd job) {
	healthy := withDatabase(t, s, job{Name: "healthy", Driver: crowd.Driver, Args: []string{"show"}}, time.Hour, revokes,
		onNoop)
	must.NoError(t, s.Vault.DatabaseRole(ctx, healthy.Name, hungTTL, time.Hour))
	leaves := withDatabase(t, s, job{Name: "leaves", Driver: crowd.Driver, Args: []string{"show"}}, time.Hour, revokes,
		onNoop)
	alloc, left := run(t, s, healthy), run(t, s, leaves)
	must.NoError(t, alloc.Running(ctx))
	must.NoError(t, left.Running(ctx))
	leases, err := s.Vault.Leases(ctx, healthy.Name)
	must.NoError(t, err)
	must.Len(t, 1, leases)
	calm := events(t, ctx, alloc, healthy, "Vault: ") // of a start that waited for a database that was just resumed

	must.NoError(t, s.Proxies["dark"].Break(stack.Dropped))
	t.Cleanup(func() { must.NoError(t, s.Proxies["dark"].Mend()) })
	over := time.NewTimer(clusterGone)
	<-over.C
	stop(t, ctx, s, left, leaves)
	eventually(t, slack, func() error { return unrevoked(t, ctx, s, leaves.Name) })
	now, err := s.Vault.Leases(ctx, healthy.Name)
	must.NoError(t, err)
	must.Eq(t, leases, now, must.Sprint("it was renewed in time"))
	must.GreaterEq(t, int(clusterGone/hungTTL), watched(s, healthy).granted(t, "sys/leases/renew"))
	must.One(t, watched(s, healthy).granted(t, "auth/jwt-nomad/login"))
	must.Eq(t, calm, events(t, ctx, alloc, healthy, "Vault: "), must.Sprint("no trouble"))
	unnoticed(t, ctx, alloc, healthy)
}
