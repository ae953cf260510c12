package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What outages of minutes cost a task of ours, and a task of Nomad's own integration beside it. make chaos.

// The times of BenchmarkOutages. After a renewal has failed, Nomad's twelve attempts take five minutes, or up to seven
// where Vault's client makes each of them three times (vault/api: DefaultRetryPolicy): an outage is longer than that,
// and a lease shorter.
const (
	chaosOutage  = 8 * time.Minute
	chaosStorm   = 2 * time.Minute // of failed renewals, each of which may cost a user
	chaosAway    = 5 * time.Second // of an agent
	chaosTTL     = 30 * time.Second
	chaosMaxTTL  = time.Hour
	chaosCalm    = 30 * time.Second // all has been well for that long: it is over
	chaosHope    = 3 * time.Minute  // what is not well by then has not recovered
	chaosSamples = time.Second
)

// A trouble is what happens to a Vault, or an agent, while two tasks run.
type trouble struct {
	name       string
	lasts      time.Duration
	begin, end func(context.Context, *stack.Stack) error
	agent      string // more of the agent's configuration
}

// Those that Nomad takes the longest to get over come first, so that all are over sooner.
var troubles = []trouble{
	lays("answers are reset", chaosOutage, stack.Reset),
	lays("answers are cut short", chaosOutage, stack.Truncated),
	lays("nobody listens", chaosOutage, stack.Refused),
	{name: "nobody listens; `vault_retry` unlimited", lasts: chaosOutage, begin: breaks(stack.Refused), end: mends,
		agent: unlimited},
	lays("503: sealed", chaosOutage, stack.Sealed),
	lays("500", chaosOutage, stack.Broken),
	lays("429", chaosOutage, stack.Limited),
	lays("no answer comes", chaosOutage, stack.Hung),
	lays("answers get lost", chaosOutage, stack.Lost),
	lays("answers take 5 s", chaosOutage, stack.Slow(5*time.Second)),
	lays("500 to renewals of leases", chaosStorm, stack.Broken, "PUT /v1/sys/leases/renew"),
	{name: "agent stopped, started", lasts: chaosAway, begin: stopsAgent, end: startsAgent, agent: patient},
	{name: "agent and plugin killed, agent started", lasts: chaosAway, begin: killsAgent, end: startsAgent,
		agent: patient},
}

// unlimited has Nomad's template blocks ask Vault for as long as it takes; by default it is 12 times.
const unlimited = "client {\n template {\n vault_retry {\n attempts = 0\n }\n }\n }\n"

// lays is a trouble made by the proxy, which concerns the requests that begin with one of where, or all.
func lays(name string, lasts time.Duration, fault stack.Fault, where ...string) trouble {
	return trouble{name: name, lasts: lasts, begin: breaks(fault, where...), end: mends}
}

func breaks(fault stack.Fault, where ...string) func(context.Context, *stack.Stack) error {
	return func(_ context.Context, s *stack.Stack) error { return s.Proxies["default"].Break(fault, where...) }
}

func mends(_ context.Context, s *stack.Stack) error { return s.Proxies["default"].Mend() }

func stopsAgent(_ context.Context, s *stack.Stack) error    { return s.Nomad.Stop() }
func startsAgent(ctx context.Context, s *stack.Stack) error { return s.Nomad.Start(ctx) }

// killsAgent kills the plugin as well: Nomad's own exec driver, a part of the agent, dies with it.
func killsAgent(_ context.Context, s *stack.Stack) error {
	errs := []error{s.Nomad.Kill()}
	for _, pid := range plugins(s, "vault-exec") {
		errs = append(errs, syscall.Kill(pid, syscall.SIGKILL))
	}
	return errors.Join(errs...)
}

// BenchmarkOutages prints the table of BENCHMARKS.md, and why Nomad has killed whom. Each trouble has a stack of its
// own, since an agent has one Vault of Nomad's own; all happen side by side. It fails where a task of ours was killed
// or restarted, or was not well again.
func BenchmarkOutages(b *testing.B) {
	ctx := within(b, 20*time.Minute)
	var pairs [][]*victim
	var over sync.WaitGroup
	for i, t := range troubles {
		pair := victims(b, ctx, t)
		pairs = append(pairs, pair)
		fmt.Printf("%v: %d of %d has begun: %s\n", time.Now().Format(time.TimeOnly), i+1, len(troubles), t.name)
		over.Go(func() {
			if err := t.befalls(ctx, pair); err != nil {
				b.Errorf("%s: %v", t.name, err)
			}
		})
	}
	over.Wait()
	table(b, ctx, pairs)
	b.ReportMetric(0, "ns/op")
}

func table(b *testing.B, ctx context.Context, pairs [][]*victim) {
	fmt.Println("\n| trouble, for how long | task of | killed | restarts | credentials minted | without credentials | " +
		"well again after |")
	fmt.Println("|---|---|---|---|---|---|---|")
	var reasons strings.Builder
	for i, t := range troubles {
		title := fmt.Sprintf("%s, %v", t.name, rounded(t.lasts))
		for _, v := range pairs[i] {
			o := v.outcome(b, ctx)
			killed := fmt.Sprint(len(o.kills))
			if len(o.kills) > 0 {
				killed += fmt.Sprintf(", after %v", rounded(o.killed))
			}
			fmt.Printf("| %s | %s | %s | %d | %d | %v | %s |\n", title, v.who, killed, o.starts-1, o.minted, rounded(v.without),
				v.again())
			for _, why := range o.kills {
				fmt.Fprintf(&reasons, "%s: %s: %s\n", t.name, v.who, strings.Join(strings.Fields(why), " "))
			}
			if v.job.Driver == "vault-exec" && (len(o.kills) > 0 || o.starts != 1 || !v.well) {
				b.Errorf("%s: killed %d times, started %d times, well: %v", t.name, len(o.kills), o.starts, v.well)
			}
			title = ""
		}
	}
	fmt.Println("\n" + reasons.String())
}

// A victim is a task with credentials of a database.
type victim struct {
	job        job
	who        string // whose it is
	stack      *stack.Stack
	registered *stack.Job

	began, mended time.Time
	seen          time.Time     // when it was last looked at
	well          bool          // whether it then ran, with credentials that PostgreSQL knows
	since         time.Time     // the end of the last time it was not
	without       time.Duration // how long it was not, in all
}

// victims starts a stack, and on it a task of ours and one of Nomad's own, with the same blocks.
func victims(b *testing.B, ctx context.Context, t trouble) []*victim {
	s := own(b, stack.Options{Postgres: true, NomadsOwn: true, Agent: t.agent,
		Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec")},
		Proxies: map[string]bool{"default": false}})
	must.NoError(b, audit(ctx, s))
	var pair []*victim
	for _, driver := range []string{"vault-exec", "exec"} {
		j := job{Name: "chaos-" + driver, Driver: driver, Again: true, Args: []string{"show", "/secrets/db.env"}}
		must.NoError(b, s.Vault.DatabaseRole(ctx, j.Name, chaosTTL, chaosMaxTTL))
		must.NoError(b, s.Vault.Role(ctx, j.Name, fmt.Sprintf("path \"database/creds/%s\" { capabilities = [\"read\"] }\n%s",
			j.Name, revokes), nil))
		blocks := fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) +
			file("secrets/db.env", credentials(j), "change_mode = \"signal\"\n change_signal = \"SIGHUP\"")
		who := "`vault-exec`"
		if j.Config = blocks; driver == "exec" {
			j.Config, j.Task, who = "", blocks, "Nomad's `exec`"
		}
		registered, _ := register(b, s, j.spec())
		v := &victim{job: j, who: who, stack: s, registered: registered}
		must.NoError(b, stack.Eventually(within(b, 2*time.Minute), func() error { return v.ready(ctx) }))
		pair = append(pair, v)
	}
	return pair
}

// befalls has the trouble come and go, and watches the victims until they have been well for a while, or there is no
// hope.
func (t trouble) befalls(ctx context.Context, pair []*victim) error {
	s, began := pair[0].stack, time.Now()
	for _, v := range pair {
		v.began, v.seen, v.without = began, began, 0
	}
	if err := t.begin(ctx, s); err != nil {
		return err
	}
	if err := watch(ctx, pair, func(now time.Time) bool { return now.Sub(began) > t.lasts }); err != nil {
		return err
	}
	if err := t.end(ctx, s); err != nil {
		return err
	}
	mended := time.Now()
	for _, v := range pair {
		v.mended = mended
	}
	return watch(ctx, pair, func(now time.Time) bool {
		calm := now.Sub(mended) > chaosCalm
		for _, v := range pair {
			calm = calm && v.well && now.Sub(v.since) > chaosCalm
		}
		return calm || now.Sub(mended) > chaosHope
	})
}

// watch looks at the victims until it is over.
func watch(ctx context.Context, pair []*victim, over func(now time.Time) bool) error {
	tick := time.NewTicker(chaosSamples)
	defer tick.Stop()
	for {
		for _, v := range pair {
			if err := v.look(ctx); err != nil {
				return err
			}
		}
		select {
		case now := <-tick.C:
			if over(now) {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// showsUser is what the application says of the credentials it has read, the last of which it works with.
var showsUser = regexp.MustCompile(`PGUSER=(v-[\w-]+)`)

// look notes whether the task runs, and PostgreSQL knows the user whom it works as.
func (v *victim) look(ctx context.Context) error {
	allocs, err := v.registered.Allocs(ctx)
	if err != nil {
		return err
	}
	newest, err := allocs[0].Wait(ctx, "allocation", func(*nomad.Allocation) bool { return true })
	if err != nil {
		return err
	}
	shown := showsUser.FindAllSubmatch(v.log(allocs[0]), -1)
	task := newest.TaskStates[v.job.Name]
	v.well = task != nil && task.State == "running" && len(shown) > 0 && gone(ctx, v.stack,
		string(shown[len(shown)-1][1])) != nil
	now := time.Now()
	if !v.well {
		v.without += now.Sub(v.seen)
		v.since = now
	}
	v.seen = now
	return nil
}

// ready returns nil when it is well.
func (v *victim) ready(ctx context.Context) error {
	if err := v.look(ctx); err != nil || v.well {
		return err
	}
	return fmt.Errorf("%s is not well yet", v.job.Name)
}

// log is what the application has said, read from its file: an agent that is down answers nobody.
func (v *victim) log(alloc *stack.Alloc) []byte {
	b, _ := os.ReadFile(alloc.Path("alloc", "logs/"+v.job.Name+".stdout.0")) // One that has not started has none.
	return b
}

// again says when, after the trouble, it was well for good.
func (v *victim) again() string {
	switch {
	case !v.well:
		return fmt.Sprintf("not within %v", rounded(chaosHope))
	case v.since.Before(v.mended):
		return "at once"
	default:
		return rounded(v.since.Sub(v.mended))
	}
}

// An outcome is what the trouble has cost.
type outcome struct {
	kills  []string      // why Nomad has failed its allocations
	killed time.Duration // when the first was, after the beginning
	starts int           // of the application, by what it says itself
	minted int           // credentials, since the beginning
}

func (v *victim) outcome(b *testing.B, ctx context.Context) (o outcome) {
	allocs, err := v.registered.Allocs(ctx)
	must.NoError(b, err)
	for _, alloc := range allocs {
		o.starts += bytes.Count(v.log(alloc), []byte("started show\n"))
		info, err := alloc.Wait(ctx, "allocation", func(*nomad.Allocation) bool { return true })
		must.NoError(b, err)
		task := info.TaskStates[v.job.Name]
		if task == nil || !task.Failed {
			continue
		}
		o.killed = task.FinishedAt.Sub(v.began) // the last in the list is the first in time
		why := "?"
		for _, e := range task.Events {
			if e.Type == nomad.TaskKilling {
				why = e.DisplayMessage
			}
		}
		o.kills = append(o.kills, why)
	}
	for _, at := range watched(v.stack, v.job).answered(b, "database/creds/"+v.job.Name, true) {
		if at.After(v.began) {
			o.minted++
		}
	}
	return o
}

// rounded leaves out what is not measured, and what is nought: 5m12s, 6m.
func rounded(d time.Duration) string {
	text := d.Round(time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	return text
}
