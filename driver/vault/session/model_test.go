package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// What TestModel makes of a session has to hold whatever happens to it.
const (
	perLife    = 4    // leases that may be issued for a question in the life of one
	perHour    = 2000 // requests of a session: a storm would be ten a second
	perTrouble = 12   // problems told for each thing that happens: one for each question, and some
	savedMost  = 64 << 10
)

// TestModel lives the lives of a few hundred tasks at random: readings that overlap and ask now this and now that,
// commits, edits, faults and outages, revocations, changed roles, lost and new identities, crashes, and clocks that
// step meanwhile. MODEL_RUNS says how many; MODEL_SEED lives one of them that many times, with the same jitter of
// leases and pauses each time.
func TestModel(t *testing.T) {
	t.Parallel()
	runs, seed := fromEnv(t, "MODEL_RUNS", 60), fromEnv(t, "MODEL_SEED", 0)
	random := os.Getenv("MODEL_RUNS") != "" // otherwise the same lives each time: what has passed does not fail by chance
	for i := range runs {
		one := uint64(seed)
		switch {
		case seed == 0 && random:
			one = rand.Uint64() >> 1
		case seed == 0:
			one = uint64(i) + 1
		}
		t.Run(fmt.Sprintf("%d", i), func(t *testing.T) {
			bubble(t, func(b *bench) { live(b, one) })
		})
	}
}

func fromEnv(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	must.NoError(t, err)
	return n
}

// model is a task that uses a session, its operator, and what both know.
type model struct {
	*bench
	*rand.Rand
	s     *session.Session
	west  neighbour
	reqs  []vault.Request
	story strings.Builder // what happened, told when it ends badly

	users  map[string]string // in use, by path
	token  string            // in use
	used   *generation       // the last that was committed
	begun  []*generation     // read, and not committed yet, the oldest first
	kv     string            // what was written last
	faults []trouble         // in force
	calm   time.Time         // since when there is none
	events int               // what happened so far
	batch  bool              // there was a batch token, which takes no lease with it

	asked  sync.Mutex // guards what the session's goroutines need, too
	jwt    func(context.Context) (string, error)
	logins []time.Time
	jitter *rand.Rand

	dies  []time.Time // when the plugin did
	steps []time.Time // when the clock did, too
	drops []time.Time // when a question was not asked any more, and what is known of its leases forgotten
	calls int         // up to hour
	hour  time.Time
}

// generation is what a reading showed.
type generation struct {
	r       *session.Reading
	reqs    []vault.Request
	answers []*vault.Secret
}

// users are the database users that it shows, by path.
func (g *generation) users() map[string]string {
	users := map[string]string{}
	for i, req := range g.reqs {
		if name, ok := g.answers[i].Data["username"].(string); ok && strings.Contains(req.Path, "/creds/") {
			users[req.Path] = name
		}
	}
	return users
}

// certificates are those that it shows.
func (g *generation) certificates() (all []string) {
	for _, answer := range g.answers {
		if cert, ok := answer.Data["certificate"].(string); ok {
			all = append(all, cert)
		}
	}
	return all
}

// trouble ends by itself at some time.
type trouble struct {
	until time.Time
	mend  func()
}

var tokenRoles = []vaulttest.Role{
	{TTL: time.Hour}, {TTL: time.Hour, Revoke: true}, {TTL: 2 * time.Hour, Revoke: true}, {TTL: time.Hour,
		MaxTTL: 3 * time.Hour, Revoke: true},
	{TTL: 20 * time.Minute, Fixed: true}, {TTL: 2 * time.Hour, Fixed: true, Revoke: true}, {TTL: 30 * time.Minute,
		Batch: true, Revoke: true},
	{TTL: 10 * time.Minute, MaxTTL: 20 * time.Minute, Revoke: true}, {TTL: 2 * time.Hour, Fixed: true, Bare: true},
}

var credsRoles = []vaulttest.Creds{
	{TTL: time.Hour}, {TTL: 5 * time.Minute}, {TTL: time.Hour, MaxTTL: time.Hour}, {TTL: 20 * time.Minute, Fixed: true},
	{TTL: 10 * time.Minute, MaxTTL: 2 * time.Hour}, {TTL: 2 * time.Hour},
}

// failures are the ways in which a request can fail. Vault refuses only what policies and roles can be wrong about: of
// a token that is denied everything it says that it is gone.
var failures = func() (all []vaulttest.Fault) {
	engines := []string{"GET database/", "GET secret/", "PUT pki/", "PUT sys/leases/renew"}
	for _, match := range append(engines, "", "PUT auth/", "GET auth/", "PUT sys/leases/revoke", "GET sys/") {
		for _, f := range []vaulttest.Fault{{Status: 500}, {Status: 502}, {Status: 503}, {Status: 429}, {Hang: true},
			{Reset: true},
			{Lose: true}, {Slow: 5 * time.Second}, {Slow: 50 * time.Second}, {Slow: 70 * time.Second}, {Body: `{"lease_id": "data`}} {
			f.Match = match
			all = append(all, f)
		}
	}
	for _, match := range engines {
		for _, status := range []int{400, 403, 404} {
			all = append(all, vaulttest.Fault{Match: match, Status: status})
		}
	}
	return all
}()

func one[T any](m *model, all []T) T { return all[m.IntN(len(all))] }

// live is one life.
func live(b *bench, seed uint64) {
	m := &model{bench: b, Rand: rand.New(rand.NewPCG(seed, 0)), jitter: rand.New(rand.NewPCG(seed, 1)),
		users: map[string]string{}}
	b.client.Jitter(m.nextJitter)
	defer func() {
		if b.Failed() {
			b.Logf("MODEL_SEED=%d\n%s", seed, m.story.String())
		}
	}()
	m.west.setUp(m)
	m.setUp()
	for range 20 {
		m.happens()
		m.pass(one(m, []time.Duration{time.Second, 20 * time.Second, 2 * time.Minute, 10 * time.Minute, 40 * time.Minute,
			3 * time.Hour}))
	}
	if m.IntN(3) > 0 {
		m.recover()
		m.budget()
	}
	m.end()
}

// nextJitter is the next jitter of a lease.
func (m *model) nextJitter() float64 {
	m.asked.Lock()
	defer m.asked.Unlock()
	return m.jitter.Float64()
}

func (m *model) setUp() {
	for _, name := range []string{"one", "two"} {
		m.Creds[name] = one(m, credsRoles)
		m.reqs = append(m.reqs, read("database/creds/"+name))
	}
	m.edit()
	m.Static("app", 40*time.Minute)
	m.reqs = append(m.reqs, read("secret/a"), read("database/static-creds/app"),
		vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "1h"},
			Revoke: "pki/revoke-with-key"})
	for i := range m.reqs {
		m.reqs[i].Every = 10 * time.Minute
	}
	m.changeRole()
	m.heal()
	options := m.options()
	s, err := m.client.Open(m.Context(), options)
	must.NoError(m, err)
	m.s, m.calm, m.hour = s, time.Now(), time.Now()
	m.readAll()
}

func (m *model) options() session.Options {
	return session.Options{Notify: m.note, Login: session.Login{Role: "app", JWT: func(ctx context.Context) (string,
		error) {
		m.asked.Lock()
		m.logins = append(m.logins, time.Now())
		jwt := m.jwt
		m.asked.Unlock()
		return jwt(ctx)
	}}}
}

func (m *model) heal() {
	m.identifies(loginAt(m.Server, "app").JWT)
}

// identifies changes where the session gets the task's JWT from.
func (m *model) identifies(jwt func(context.Context) (string, error)) {
	m.asked.Lock()
	defer m.asked.Unlock()
	m.jwt = jwt
}

func (m *model) tell(format string, args ...any) {
	m.events++
	fmt.Fprintf(&m.story, "%s "+format+"\n", append([]any{time.Now().Format("02 15:04:05")}, args...)...)
}

// happens does one thing that can happen.
func (m *model) happens() {
	switch m.IntN(16) {
	case 0, 1, 2:
		m.read(one(m, []time.Duration{time.Second, time.Minute}), m.some())
	case 12:
		m.readTwice(one(m, []time.Duration{time.Second, time.Minute}))
	case 13, 14:
		m.edit()
	case 15:
		m.renewsIdentity()
	case 3, 4:
		m.commit(one(m, []time.Duration{-1, 0, time.Minute}))
	case 5, 6:
		f := one(m, failures)
		m.fails(fmt.Sprintf("%+v", f), m.Break(f))
	case 7:
		m.Down(true)
		m.fails("down", func() { m.Down(false) })
	case 8:
		m.revokes()
	case 9:
		m.changeRole()
	case 10:
		m.losesIdentity()
	case 11:
		m.crashes()
	}
}

// some are the questions of a template that asks now this and now that: mostly all.
func (m *model) some() []vault.Request {
	if m.IntN(3) > 0 {
		return m.reqs
	}
	var reqs []vault.Request
	for _, req := range m.reqs {
		if m.IntN(3) > 0 {
			reqs = append(reqs, req)
		}
	}
	return reqs
}

// read makes what would be the next generation.
func (m *model) read(patience time.Duration, reqs []vault.Request) {
	g := &generation{r: m.s.Begin(m.IntN(2) == 0), reqs: reqs}
	m.tell("read %d within %s: %v", len(reqs), patience, g.read(m.Context(), patience))
	m.keep(g)
}

// read asks for what g is to show.
func (g *generation) read(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, req := range g.reqs {
		answer, err := g.r.Read(ctx, req)
		if err != nil {
			return err
		}
		g.answers = append(g.answers, answer)
	}
	return nil
}

// keep lets a generation be committed later that is complete.
func (m *model) keep(g *generation) {
	if len(g.answers) == len(g.reqs) {
		m.begun = append(m.begun, g)
	}
}

// readTwice makes two generations at the same time.
func (m *model) readTwice(patience time.Duration) {
	older := &generation{r: m.s.Begin(m.IntN(2) == 0), reqs: m.some()}
	newer := &generation{r: m.s.Begin(m.IntN(2) == 0), reqs: m.some()}
	var both sync.WaitGroup
	both.Go(func() { _ = older.read(m.Context(), patience) })
	both.Go(func() { _ = newer.read(m.Context(), patience) })
	both.Wait()
	m.tell("read %d and %d at once within %s", len(older.reqs), len(newer.reqs), patience)
	m.keep(older)
	m.keep(newer)
}

// readAll reads and commits everything.
func (m *model) readAll() {
	m.read(time.Minute, m.reqs)
	m.begun = m.begun[max(0, len(m.begun)-1):]
	m.commit(0)
}

// commit makes one of those that were read the one in use; a younger one can be committed later.
func (m *model) commit(grace time.Duration) {
	if len(m.begun) == 0 {
		return
	}
	i := m.IntN(len(m.begun))
	g := m.begun[i]
	m.begun = m.begun[i+1:]
	m.same(g)
	g.r.Commit(grace)
	m.used, m.token, m.users = g, g.r.Token(), g.users()
	if len(g.reqs) < len(m.reqs) {
		m.drops = append(m.drops, time.Now())
	}
	m.tell("commit with grace %s, %d more are read: %v", grace, len(m.begun), m.users)
}

// same asks a reading for everything once more.
func (m *model) same(g *generation) {
	for i, req := range g.reqs {
		again, err := g.r.Read(m.Context(), req)
		must.NoError(m, err)
		must.True(m, again == g.answers[i], must.Sprint("one reading gave two answers"))
	}
}

// edit writes something new.
func (m *model) edit() {
	m.kv = fmt.Sprint(m.Int())
	m.Put("secret/a", map[string]any{"k": m.kv})
	m.tell("edit")
}

func (m *model) fails(what string, mend func()) {
	t := trouble{time.Now().Add(one(m, []time.Duration{time.Second, time.Minute, 15 * time.Minute, 2 * time.Hour,
		8 * time.Hour})), mend}
	m.faults = append(m.faults, t)
	m.tell("until %s: %s", t.until.Format("15:04:05"), what)
}

// revokes is the operator's doing, at some moment of what comes next.
func (m *model) revokes() {
	what := map[string]func(){"all tokens": m.RevokeTokens, "all leases": m.RevokeLeases}
	names := []string{"all tokens", "all leases"}
	for _, req := range m.reqs[:2] {
		if user := m.users[req.Path]; user != "" {
			what[user] = func() { m.RevokeLease(user) }
			names = append(names, user)
		}
	}
	name := one(m, names)
	m.tell("soon revoked: %s", name)
	time.AfterFunc(time.Duration(m.IntN(int(time.Minute))), what[name])
}

func (m *model) changeRole() {
	role := one(m, tokenRoles)
	m.batch = m.batch || role.Batch
	m.tell("role %+v", role)
	m.SetRole("app", role)
}

// losesIdentity makes the task's JWT expired, missing, or late.
func (m *model) losesIdentity() {
	m.identifies(one(m, []func(context.Context) (string, error){
		func(context.Context) (string, error) { return "expired", nil },
		func(context.Context) (string, error) { return "", errors.New("no identity") },
		func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() },
	}))
	m.fails("no identity", m.heal)
}

// renewsIdentity has Nomad sign a new JWT. Vault does not accept the one before any more, which the task has for
// another while.
func (m *model) renewsIdentity() {
	old := m.JWT
	m.Reissue(fmt.Sprintf("jwt-%d", m.Int()))
	m.identifies(func(context.Context) (string, error) { return old, nil })
	m.fails("an identity of yesterday", m.heal)
}

// crashes ends the plugin, and starts another one at once or later. The clock may have stepped when it comes back: what
// is saved is of other times then, as only that has no reading of a clock that does not step.
func (m *model) crashes() {
	away := one(m, []time.Duration{0, time.Minute, time.Hour})
	step := one(m, []time.Duration{0, 0, 10 * time.Minute, -10 * time.Minute})
	m.tell("crash, and back after %s with the clock %s off", away, step)
	synctest.Wait()
	state, west := shifted(m.T, m.save(m.s), -step), m.west.crash(m, step)
	m.crash()
	m.client.Jitter(m.nextJitter)
	if m.IntN(3) == 0 {
		m.mistakes(state)
	}
	m.dies = append(m.dies, time.Now())
	if step != 0 {
		m.steps = append(m.steps, time.Now())
	}
	if time.Sleep(away); away > 0 {
		m.calm = time.Now()
	}
	m.notices, m.begun, m.events = nil, nil, 1
	s, err := m.client.Adopt(state, m.options())
	must.NoError(m, err)
	m.s = s
	m.west.adopt(m, west)
}

// instant is a time as encoding/json writes it.
var instant = regexp.MustCompile(`"2\d{3}-\d\d-\d\dT\d\d:\d\d:[\d.]+(Z|[+-]\d\d:\d\d)"`)

// shifted moves every time in a saved session.
func shifted(t *testing.T, state []byte, by time.Duration) []byte {
	return instant.ReplaceAllFunc(state, func(text []byte) []byte {
		var at time.Time
		must.NoError(t, json.Unmarshal(text, &at))
		text, err := json.Marshal(at.Add(by))
		must.NoError(t, err)
		return text
	})
}

// pass lets time pass and looks whether all is well.
func (m *model) pass(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(30*time.Second, time.Until(end)))
		synctest.Wait()
		m.mend(time.Now())
		m.check()
	}
}

// mend ends the troubles whose time has come.
func (m *model) mend(now time.Time) {
	var rest []trouble
	for _, f := range m.faults {
		if m.calm = now; now.Before(f.until) {
			rest = append(rest, f)
		} else {
			f.mend()
		}
	}
	m.faults = rest
}

func (m *model) check() {
	now := time.Now()
	returned := m.Returned()
	for _, g := range append([]*generation{m.used}, m.begun...) {
		for _, user := range g.users() {
			must.SliceNotContains(m, returned, user, must.Sprint("it is in use, or soon will be"))
		}
		for _, cert := range g.certificates() {
			must.True(m, m.Valid(cert), must.Sprint("a certificate that is in use, or soon will be, is revoked"))
		}
	}
	neglected := m.Neglected()
	for path, user := range m.users {
		ended, is := neglected[user]
		life := m.Creds[strings.TrimPrefix(path, "database/creds/")].TTL
		must.False(m, is && ended.Sub(m.calm) > life, must.Sprintf("%s is in use, and was not renewed", user))
	}
	outages := m.noticesOf(session.Outage) - m.noticesWith("Vault answers again")
	must.Between(m, 0, outages, 1)
	news := m.events + m.noticesOf(session.Replaced) // another token may be told other things
	must.LessEq(m, perTrouble*news, m.noticesOf(session.Problem), must.Sprint("the same is told again and again"))
	m.west.check(m)
	if now.Sub(m.hour) >= time.Hour {
		calls := m.Calls("")
		must.LessEq(m, perHour, calls-m.calls, must.Sprint("a storm of requests"))
		must.LessEq(m, savedMost, len(m.save(m.s)), must.Sprint("what is saved grows"))
		m.calls, m.hour = calls, now
	}
}

// recover ends all trouble. From then on the task does what it is told at once, and after the longest life of a lease
// and of a token everything in use is alive and stays so.
func (m *model) recover() {
	m.tell("all is well again")
	m.mend(time.Now().Add(24 * time.Hour))
	m.calm = time.Now()
	m.readAll()
	story := m.story.String()
	defer func() { m.story.Reset(); m.story.WriteString(story) }()
	const settled = 3 * time.Hour
	for began := time.Now(); time.Since(began) < settled+time.Hour; {
		m.pass(30 * time.Second)
		if changed(m.s) {
			m.readAll()
		}
		if time.Since(began) > settled {
			for _, user := range m.users {
				must.SliceContains(m, m.Users(), user)
			}
			must.SliceContains(m, m.Tokens(), m.token)
			must.Eq(m, m.kv, value(m.used.answers[2]))
		}
	}
}

// budget looks at all the credentials that were issued. A token that is replaced takes the leases of the one before
// with it, and a plugin that dies may have asked for one.
func (m *model) budget() {
	for name, creds := range maps.All(m.Creds) {
		issued := m.Issued(name)
		for i, first := range issued {
			n, allowed := 0, perLife
			for _, at := range issued[i:] {
				if at.Sub(first) < creds.TTL {
					n++
				}
			}
			for _, at := range m.logins {
				if since := at.Sub(first); since > -creds.TTL && since < creds.TTL {
					allowed += perLife
				}
			}
			for _, at := range m.dies {
				if since := at.Sub(first); since > 0 && since < creds.TTL {
					allowed++
				}
			}
			for _, at := range append(slices.Clone(m.steps), m.drops...) {
				if since := at.Sub(first); since > -creds.TTL-10*time.Minute && since < creds.TTL {
					allowed += perLife
				}
			}
			must.LessEq(m, allowed, n, must.Sprintf("leases of %s issued within the life of one from %s", name,
				first.Format("02 15:04:05")))
		}
	}
}

// end closes the session, in trouble first.
func (m *model) end() {
	m.west.end(m)
	if m.IntN(2) == 0 {
		m.happens()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		m.tell("close: %v", m.s.Close(ctx))
	}
	m.mend(time.Now().Add(24 * time.Hour))
	m.tell("close")
	// of a token that somebody else has ended: nobody can revoke its certificates
	if err := m.s.Close(context.Background()); err != nil {
		must.StrContains(m, err.Error(), "the token that could is gone")
	}
	must.Len(m, 0, m.Leaked())
	if m.batch {
		time.Sleep(30 * time.Minute) // the life of a batch token
	}
	must.Len(m, 0, m.Users())
}
