package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/e2e/stack"
)

// A Vault outage is not an application outage: tasks that run go on with what they have, tasks that start wait, and
// both recover by themselves. Every kind of trouble is that of one proxy before one Vault, and so of one cluster: all
// happen side by side.

// startTimeout of the plugins here.
const startTimeout = 15 * time.Second

// What the tests wait for among a task's events.
const (
	outageBegins = "Vault unavailable: the last known good secrets stay in use"
	outageEnds   = "Vault answers again after"
)

// An outage is what is wrong with a Vault while tasks run.
type outage struct {
	fault stack.Fault
	tls   bool
	acts  bool // Vault does what it is asked; only its answers do not arrive
	hangs bool // the driver takes a minute to notice
	slow  bool // all is well, if late
	token bool // the token ends meanwhile, too
}

// How long the tasks' database credentials live, and those of a slow Vault.
const (
	outageTTL = 15 * time.Second
	slowTTL   = 40 * time.Second
)

var outages = map[string]outage{
	"refused":      {fault: stack.Refused},
	"expired":      {fault: stack.Expired, tls: true},
	"sealed":       {fault: stack.Sealed},
	"sealed-token": {fault: stack.Sealed, token: true},
	"standby":      {fault: stack.Standby},
	"broken":       {fault: stack.Broken},
	"gateway":      {fault: stack.Gateway},
	"limited":      {fault: stack.Limited},
	"hung":         {fault: stack.Hung, hangs: true},
	"reset":        {fault: stack.Reset, acts: true},
	"reset-stream": {fault: stack.Reset, acts: true, tls: true},
	"truncated":    {fault: stack.Truncated, acts: true},
	"lost":         {fault: stack.Lost, acts: true},
	"slow":         {fault: stack.Slow(4 * time.Second), slow: true},
}

var drivers = []string{"exec", "docker"}

// outageCases are tests of one task with a proxy of its own.
var outageCases = map[string]func(*testing.T, *stack.Stack, *stack.Proxy, job){
	"renewal":    failedRenewalKeepsTheLease(stack.Broken, "PUT /v1/sys/leases/renew"),
	"untrusted":  failedRenewalKeepsTheLease(stack.Expired),
	"lost-login": lostLoginsOfAStartStayWithinTheBudget,
	"lost":       lostCredentialsStayWithinTheBudget,
	"lost-start": lostCredentialsOfAStartStayWithinTheBudget,
	"wait":       startWaits(stack.Refused),
	"wait-seal":  startWaits(stack.Sealed),
	"wait-hung":  startWaits(stack.Hung),
	"vain":       startThatWaitedInVainIsMadeAgain,
	"final":      whatWaitingCannotCureFailsAtOnce,
	"stop":       stopDuringTheWait,
	"stop-back":  stopDuringTheWaitBeforeVaultReturns,
	"silent":     editIsSeenThroughAnotherConnection,
	"silent-tls": editIsSeenThroughAnotherConnection,
	"third":      everyThirdAnswerIsAnError,
}

func TestVaultOutages(t *testing.T) {
	proxies := map[string]bool{} // each for the job of its name
	var plugins []stack.Plugin
	for _, driver := range drivers {
		for name, o := range outages {
			proxies["sit-"+name+"-"+driver] = o.tls
		}
		for name := range outageCases {
			proxies["outage-"+name+"-"+driver] = name == "untrusted" || strings.HasSuffix(name, "-tls")
		}
		p := stack.Wrap(driver, "vault-"+driver)
		p.Config += fmt.Sprintf("\nstart_timeout = %q\n", startTimeout)
		plugins = append(plugins, p)
	}
	s := own(t, stack.Options{Postgres: true, Plugins: plugins, Proxies: proxies})
	must.NoError(t, audit(t.Context(), s))
	t.Run("cases", func(t *testing.T) { // ends when all are over, and the stack after it
		t.Run("running", func(t *testing.T) {
			t.Parallel()
			runningTasksSitOutEveryFault(t, s)
		})
		for name, test := range outageCases {
			for _, driver := range drivers {
				t.Run(name+"-"+driver, func(t *testing.T) {
					t.Parallel()
					j := job{Name: "outage-" + name + "-" + driver, Driver: "vault-" + driver,
						Args: []string{"show", "/secrets/db.env"}}
					test(t, s, s.Proxies[j.Name], j)
				})
			}
		}
	})
}

// behind adds to a job a template with database credentials that live for ttl at a time and for most in all, from Vault
// as it is behind the proxy of the job's name.
func behind(t *testing.T, s *stack.Stack, j job, ttl, most time.Duration) job {
	t.Helper()
	policy := fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] } %s`, j.Name, revokes)
	j = withDatabase(t, s, j, most, policy, onSignal)
	must.NoError(t, s.Vault.DatabaseRole(t.Context(), j.Name, ttl, most))
	j.Config = strings.Replace(j.Config, "role =", fmt.Sprintf("cluster = %q\n role =", j.Name), 1)
	return j
}

// A sitter is a running task, with database credentials and a static secret, that sits an outage out.
type sitter struct {
	job    job
	alloc  *stack.Alloc
	outage outage
	proxy  *stack.Proxy
	before string
	user   string
}

func runningTasksSitOutEveryFault(t *testing.T, s *stack.Stack) {
	ctx := within(t, 4*time.Minute)
	var all []*sitter
	for _, name := range slices.Sorted(maps.Keys(outages)) {
		for _, driver := range drivers {
			all = append(all, sits(t, s, name, driver))
		}
	}
	for _, a := range all {
		a.user = userIn(t, shown(t, ctx, a.alloc, a.job, "/secrets/db.env", 1)[0])
		must.Eq(t, "green", shown(t, ctx, a.alloc, a.job, "/secrets/color", 1)[0])
		a.before = a.now(t, ctx)
	}
	for _, a := range all {
		must.NoError(t, a.proxy.Break(a.outage.fault))
		put(t, s, a.job, map[string]any{"color": "blue"})
	}
	for _, hangs := range []bool{false, true} { // what hangs is noticed last, when the request is given up
		for _, a := range all {
			if a.outage.hangs == hangs && !a.outage.slow {
				a.suffers(t, ctx, s)
				must.NoError(t, a.proxy.Mend())
			}
		}
	}
	for _, a := range all {
		a.recovers(t, ctx, s)
	}
}

func sits(t *testing.T, s *stack.Stack, name, driver string) *sitter {
	t.Helper()
	a := &sitter{outage: outages[name]}
	a.job = job{Name: "sit-" + name + "-" + driver, Driver: "vault-" + driver,
		Args: []string{"show", "/secrets/db.env", "/secrets/color"}}
	a.proxy = s.Proxies[a.job.Name]
	ttl := outageTTL
	if a.outage.slow {
		ttl = slowTTL
	}
	a.job = behind(t, s, a.job, ttl, time.Hour)
	if a.outage.token {
		must.NoError(t, s.Vault.Put(t.Context(), "auth/jwt-nomad/role/"+a.job.Name,
			map[string]any{"role_type": "jwt", "token_period": outageTTL.String()}))
	}
	a.job.Config += file("secrets/color", inJob(a.job, "color"), onSignal)
	put(t, s, a.job, map[string]any{"color": "green"})
	a.alloc = run(t, s, a.job)
	return a
}

// userIn is the database user of a file with credentials.
func userIn(t *testing.T, env string) string {
	t.Helper()
	name, _, found := strings.Cut(strings.TrimPrefix(env, "PGUSER="), "\n")
	must.True(t, found)
	return name
}

// now says all of the task that an outage must leave as it is.
func (a *sitter) now(t *testing.T, ctx context.Context) string {
	t.Helper()
	return untouched(t, ctx, a.alloc, a.job, "secrets/db.env", "secrets/color")
}

// untouched says of a task what changes when somebody restarts it, tells it something or writes its files.
func untouched(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, files ...string) string {
	t.Helper()
	now := state(t, ctx, alloc, j)
	text := fmt.Sprintf("process %d, %s, restarts %d, changes %v", application(t, alloc), now.State, now.Restarts,
		changes(t, ctx, alloc, j))
	for _, name := range files {
		info, err := os.Stat(alloc.Path(j.Name, name))
		must.NoError(t, err)
		content, err := os.ReadFile(alloc.Path(j.Name, name))
		must.NoError(t, err)
		text += fmt.Sprintf("\n%s: inode %d, %v, %v, %q", name, info.Sys().(*syscall.Stat_t).Ino, info.Mode(), info.ModTime(),
			content)
	}
	return text
}

// suffers waits until the outage has been noticed, and until the credentials have ended where Vault has not extended
// them.
func (a *sitter) suffers(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	_, err := a.alloc.Event(ctx, a.job.Name, outageBegins)
	must.NoError(t, err)
	if !a.outage.acts {
		eventually(t, time.Until(deadline(ctx)), func() error { return gone(ctx, s, a.user) })
	}
	if a.outage.token {
		eventually(t, time.Until(deadline(ctx)), func() error { return unrevoked(t, ctx, s, a.job.Name) })
	}
	must.Eq(t, a.before, a.now(t, ctx))
	must.StrNotContains(t, a.log(t, ctx), "signal")
	leases, err := s.Vault.Leases(ctx, a.job.Name)
	must.NoError(t, err)
	must.LessEq(t, 4, len(leases))
}

// recovers waits until all that has changed during the outage has come to the task, in one action, and until renewals
// go on.
func (a *sitter) recovers(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	must.Eq(t, "blue", shown(t, ctx, a.alloc, a.job, "/secrets/color", 2)[1], must.Sprint(a.job.Name))
	user := userIn(t, shown(t, ctx, a.alloc, a.job, "/secrets/db.env", 2)[1])
	if a.outage.slow {
		must.Eq(t, a.user, user, must.Sprint("the lease was extended in time"))
	} else {
		_, err := a.alloc.Event(ctx, a.job.Name, outageEnds)
		must.NoError(t, err)
	}
	if !a.outage.slow && !a.outage.acts {
		must.NotEq(t, a.user, user, must.Sprint(a.job.Name,
			": the credentials that have ended are replaced together with what else has changed"))
	}
	eventually(t, time.Until(deadline(ctx)), func() error { return renewed(ctx, s, a.job) })
	must.Eq(t, 1, strings.Count(a.log(t, ctx), "signal hangup"), must.Sprint(a.job.Name, ": one action"))
	must.SliceLen(t, 1, changes(t, ctx, a.alloc, a.job))
	must.Len(t, 1, tokensOf(t, s, a.job.Name))
	a.told(t, ctx)
	unnoticed(t, ctx, a.alloc, a.job)
}

func (a *sitter) log(t *testing.T, ctx context.Context) string {
	t.Helper()
	log, err := a.alloc.Logs(ctx, a.job.Name, "stdout")
	must.NoError(t, err)
	return log
}

// told checks that the task's events have the beginning of the outage once, and its end once.
func (a *sitter) told(t *testing.T, ctx context.Context) {
	t.Helper()
	want := 1
	if a.outage.slow {
		want = 0
	}
	told := outageEvents(t, ctx, a.alloc, a.job)
	must.Eq(t, [2]int{want, want}, [2]int{told[outageBegins], told[outageEnds]},
		must.Sprint(a.job.Name, ": beginnings and ends: ", told))
}

// outageEvents counts a task's events about outages.
func outageEvents(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, e := range state(t, ctx, alloc, j).Events {
		for _, text := range []string{outageBegins, outageEnds} {
			if strings.Contains(e.DisplayMessage, text) {
				counts[text]++
			}
		}
	}
	return counts
}

// renewed returns an error while no lease of the job's credentials has been extended.
func renewed(ctx context.Context, s *stack.Stack, j job) error {
	leases, err := s.Vault.Leases(ctx, j.Name)
	if err != nil {
		return err
	}
	for _, id := range leases {
		lease, err := s.Vault.API.Logical().WriteWithContext(ctx, "sys/leases/lookup",
			map[string]any{"lease_id": "database/creds/" + j.Name + "/" + id})
		if err == nil && lease.Data["last_renewal"] != nil {
			return nil
		}
	}
	return fmt.Errorf("no lease of %s was extended: %v", j.Name, leases)
}

// failedRenewalKeepsTheLease: while the lease is good, a renewal that fails is made again, and costs nothing.
func failedRenewalKeepsTheLease(fault stack.Fault, where ...string) func(*testing.T, *stack.Stack, *stack.Proxy, job) {
	return func(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
		ctx := within(t, 2*time.Minute)
		j = behind(t, s, j, time.Minute, time.Hour)
		alloc := run(t, s, j)
		shown(t, ctx, alloc, j, "/secrets/db.env", 1)
		before := untouched(t, ctx, alloc, j, "secrets/db.env")
		leases, err := s.Vault.Leases(ctx, j.Name)
		must.NoError(t, err)
		must.NoError(t, proxy.Break(fault, where...))
		_, err = alloc.Event(ctx, j.Name, outageBegins)
		must.NoError(t, err)
		eventually(t, 2*slack, func() error {
			if n := proxy.Met(); n < 3 && len(where) > 0 {
				return fmt.Errorf("the renewal was tried %d times, not yet 3", n)
			}
			return nil
		})
		must.Error(t, renewed(ctx, s, j))
		must.NoError(t, proxy.Mend())
		_, err = alloc.Event(ctx, j.Name, outageEnds)
		must.NoError(t, err)
		must.NoError(t, renewed(ctx, s, j))
		now, err := s.Vault.Leases(ctx, j.Name)
		must.NoError(t, err)
		must.Eq(t, leases, now)
		must.Eq(t, before, untouched(t, ctx, alloc, j, "secrets/db.env"))
		must.Eq(t, map[string]int{outageBegins: 1, outageEnds: 1}, outageEvents(t, ctx, alloc, j))
	}
}

// lostCredentialsStayWithinTheBudget: each answer that gets lost on its way has left a user in the database.
func lostCredentialsStayWithinTheBudget(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	const ttl = 20 * time.Second
	ctx := within(t, 3*time.Minute)
	j = behind(t, s, j, ttl, ttl)
	alloc := run(t, s, j)
	user := userIn(t, shown(t, ctx, alloc, j, "/secrets/db.env", 1)[0])
	before := untouched(t, ctx, alloc, j, "secrets/db.env")
	must.NoError(t, proxy.Break(stack.Lost, "GET /v1/database/creds/"))
	var minted []time.Time
	eventually(t, 2*time.Minute, func() error {
		if minted = watched(s, j).answered(t, "database/creds/"+j.Name, true); len(minted) < 6 {
			return fmt.Errorf("%d credentials have been issued, not yet 6", len(minted))
		}
		return nil
	})
	for i, at := range minted[4:] {
		must.GreaterEq(t, ttl-3*time.Second, at.Sub(minted[i]),
			must.Sprintf("the fifth of five was issued in the life of the first: %v", minted))
	}
	must.Eq(t, before, untouched(t, ctx, alloc, j, "secrets/db.env"))
	must.NoError(t, proxy.Mend())
	must.NotEq(t, user, userIn(t, shown(t, ctx, alloc, j, "/secrets/db.env", 2)[1]))
	_, err := alloc.Event(ctx, j.Name, outageEnds)
	must.NoError(t, err)
	must.Eq(t, map[string]int{outageBegins: 1, outageEnds: 1}, outageEvents(t, ctx, alloc, j))
	must.SliceLen(t, 1, changed(t, ctx, alloc, j, 1))
	unnoticed(t, ctx, alloc, j)
}

// editIsSeenThroughAnotherConnection: of a connection that passes nothing on nobody says that it is dead. It is HTTP/2
// with TLS.
func editIsSeenThroughAnotherConnection(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	const sight = 12 * time.Second
	ctx := within(t, 2*time.Minute)
	must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] }`,
		j.Name), nil))
	put(t, s, j, map[string]any{"color": "green"})
	j.Args = []string{"show", "/secrets/color"}
	j.Config = fmt.Sprintf("vault {\n role = %q\n cluster = %[1]q\n }\n", j.Name) +
		file("secrets/color", inJob(j, "color"), onSignal)
	alloc := run(t, s, j)
	must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/color", 1)[0])
	must.NoError(t, proxy.Break(stack.Silent))
	began := time.Now()
	put(t, s, j, map[string]any{"color": "blue"})
	must.Eq(t, "blue", shown(t, ctx, alloc, j, "/secrets/color", 2)[1])
	must.Less(t, sight+stretched(slack)/2, time.Since(began))
	must.NoError(t, proxy.Mend())
	unnoticed(t, ctx, alloc, j)
}

// everyThirdAnswerIsAnError: nothing is lost by that, an edit is seen within seconds, and what else the task's events
// tell stays there to be read.
func everyThirdAnswerIsAnError(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	const edits, every = 8, 5 * time.Second
	ctx := within(t, 3*time.Minute)
	j = behind(t, s, j, 20*time.Second, time.Hour)
	policy := fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] } path "database/creds/%[1]s" { capabilities = ["read"] }`, j.Name)
	must.NoError(t, s.Vault.Role(ctx, j.Name, policy, nil))
	j.Args = []string{"show", "/secrets/color"}
	j.Config += file("secrets/color", inJob(j, "color"), onSignal)
	put(t, s, j, map[string]any{"color": "color 0"})
	alloc := run(t, s, j)
	shown(t, ctx, alloc, j, "/secrets/color", 1)
	leases, err := s.Vault.Leases(ctx, j.Name)
	must.NoError(t, err)
	must.NoError(t, proxy.Break(stack.Third(stack.Broken)))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 1; i <= edits; i++ {
		color, began := fmt.Sprintf("color %d", i), time.Now()
		put(t, s, j, map[string]any{"color": color})
		must.Eq(t, color, shown(t, ctx, alloc, j, "/secrets/color", i+1)[i])
		must.Less(t, every+stretched(slack)/2, time.Since(began))
		<-tick.C
	}
	now, err := s.Vault.Leases(ctx, j.Name)
	must.NoError(t, err)
	must.Eq(t, leases, now, must.Sprint("the lease was renewed in time"))
	must.Len(t, 1, tokensOf(t, s, j.Name))
	must.LessEq(t, 2, events(t, ctx, alloc, j, "Vault"), must.Sprint("notices"))
	must.NoError(t, proxy.Mend())
	unnoticed(t, ctx, alloc, j)
}

// TestLastWordAboutAVaultThatWasReplacedByAnEmptyOne: it answers, and denies every login until it is set up like the
// one before.
func TestLastWordAboutAVaultThatWasReplacedByAnEmptyOne(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("raw_exec", "vault-raw_exec")}})
	ctx := within(t, 4*time.Minute)
	j := job{Name: "replaced", Driver: "vault-raw_exec", Args: []string{"show"}}
	setUp := func(color string) {
		t.Helper()
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] }`,
			j.Name), nil))
		put(t, s, j, map[string]any{"color": color})
	}
	setUp("green")
	j.Config = fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) + file("secrets/color", inJob(j, "color"), onNoop)
	alloc := run(t, s, j)
	must.NoError(t, alloc.Running(ctx))
	must.NoError(t, s.Vault.Kill())
	_, err := alloc.Event(ctx, j.Name, outageBegins)
	must.NoError(t, err)
	must.NoError(t, s.Vault.Start(ctx)) // without the job's role
	denied, err := alloc.Event(ctx, j.Name, "log in")
	must.NoError(t, err)
	t.Log(denied)
	must.Eq(t, "", lastWord(t, ctx, alloc, j, slack))
	setUp("blue")
	eventually(t, time.Minute, func() error {
		now, err := os.ReadFile(alloc.Path(j.Name, "secrets/color"))
		if err == nil && string(now) != "blue" {
			err = fmt.Errorf("the color is %s", now)
		}
		return err
	})
	unnoticed(t, ctx, alloc, j)
}

// lastWord returns the last event of the task that says that all is well, while nothing is for that long; empty: there
// is none.
func lastWord(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, during time.Duration) string {
	t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		all := state(t, ctx, alloc, j).Events
		last := all[len(all)-1].DisplayMessage
		if strings.Contains(last, outageEnds) && !strings.Contains(last, "still wrong") ||
			strings.Contains(last, "works again") {
			return last
		}
	}
	return ""
}

// Vault forgets the user that it makes for a request that is cut off, as by the end of who asks.
func TestPluginThatIsEndedLetsVaultFinish(t *testing.T) {
	s := own(t, stack.Options{Postgres: true, Proxies: map[string]bool{"finish": false}})
	ctx, ttl := within(t, 3*time.Minute), stretched(20*time.Second)
	noUsers, err := s.Postgres.Users(ctx)
	must.NoError(t, err)
	j := behind(t, s, job{Name: "finish", Driver: "vault-exec", Args: []string{"show", "/secrets/db.env"}}, ttl, ttl)
	alloc := run(t, s, j)
	shown(t, ctx, alloc, j, "/secrets/db.env", 1)
	first, err := s.Vault.Leases(ctx, j.Name)
	must.NoError(t, err)

	proxy := s.Proxies[j.Name]
	must.NoError(t, proxy.Break(stack.Held, "GET /v1/database/creds/"))
	eventually(t, time.Minute, func() error {
		if proxy.Met() == 0 {
			return errors.New("no other user is asked for yet")
		}
		return nil
	})
	stopped := make(chan error, 1)
	go func() { stopped <- s.Nomad.Stop() }()
	eventually(t, time.Minute, func() error { return unlocked(filepath.Join(s.Dir, "state", j.Driver)) })
	must.NoError(t, proxy.Mend())
	must.NoError(t, <-stopped)
	leases, err := s.Vault.Leases(ctx, j.Name)
	must.NoError(t, err)
	must.SliceNotEmpty(t, slices.DeleteFunc(leases, func(id string) bool { return slices.Contains(first, id) }),
		must.Sprint("the plugin did not wait for the answer"))

	must.NoError(t, s.Nomad.Start(ctx))
	shown(t, ctx, alloc, j, "/secrets/db.env", 2)
	must.Len(t, 1, tokensOf(t, s, j.Name))
	unnoticed(t, ctx, alloc, j)
	_, _, err = s.Nomad.API.Jobs().Deregister(j.Name, false, nil)
	must.NoError(t, err)
	eventually(t, time.Minute, func() error { return unrevoked(t, ctx, s, j.Name) })
	users, err := s.Postgres.Users(ctx)
	must.NoError(t, err)
	must.Eq(t, noUsers, users)
}

// unlocked returns nil when the plugin of that state directory has begun to end.
func unlocked(dir string) error {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}
