package status

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/operator"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// document is of a plugin with a task that is well, and a long name.
func document() status.Document {
	upkeep := func(action string, next, ends time.Duration) status.Upkeep {
		return status.Upkeep{Action: action, Next: now.Add(next), Ends: now.Add(ends)}
	}
	return status.Document{
		Plugin:   status.Plugin{Name: "vault-exec", Version: "1.2.3", PID: 77, Since: now.Add(-50 * time.Hour), Now: now},
		Clusters: []status.Cluster{{Name: "default", Address: "https://vault.example:8200", Reachable: true, Sessions: 1}},
		Doors:    &status.Doors{PID: 78, Since: now.Add(-3 * time.Hour), Memory: 18 << 20, Open: 1},
		Tasks: []status.Task{{Alloc: "3f2a1b4c-0000-0000-0000-000000000000", Job: strings.Repeat("long-", 10), Name: "web",
			Group: "front", State: "running", Generation: 3, Since: now.Add(-2 * time.Hour),
			Last: status.Line{At: now.Add(-time.Minute), Text: "secrets/db changed; restarted"},
			Sessions: []status.Session{{Name: "default", Cluster: "default", Role: "app", Accessor: "acc",
				Policies: []string{"default", "app"}, Upkeep: upkeep("renew", 10*time.Minute, time.Hour),
				Secrets: []status.Secret{{Path: "kv/data/app", Kind: "polled",
					Upkeep: status.Upkeep{Action: "read", Next: now.Add(20 * time.Second)}}}}},
			Doors: []status.Door{{Name: "shop", Kind: "api", Upstream: "https://api.example.com",
				Generation: 1764364455123456789, Since: now.Add(-2 * time.Hour), Connections: 2, InFlight: 1,
				Calls: 1234567890, Refused: 12345678, Failed: 4, Sent: 5 << 20, Received: 1023 << 30}}}},
	}
}

// serve has a plugin answer with the document, and returns its state directory.
func serve(t *testing.T, doc status.Document) string {
	t.Helper()
	dir := t.TempDir()
	at, err := net.Listen("unix", filepath.Join(dir, status.Socket))
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		status.Serve(ctx, at, func() status.Document { return doc })
	}()
	t.Cleanup(func() { cancel(); <-over })
	return dir
}

// shown runs the command, and returns what it printed and its exit code.
func shown(args ...string) (string, int) {
	var out bytes.Buffer
	code := operator.Program{Commands: []operator.Command{Command()}}.Run(append([]string{"status"}, args...),
		operator.Terminal{Out: &out, Err: &out})
	return out.String(), code
}

func TestTheTableFits80Columns(t *testing.T) {
	doc := document()
	doc.Tasks[0].Trouble = []string{strings.Repeat("something is wrong ", 10) + "\x1b[31m"}
	doc.Doors.Unclaimed = []string{"9c01d2e3-0000-0000-0000-000000000000/web/api", strings.Repeat("x", 60)}
	doc.Parked = []status.Parked{{Alloc: "9", Name: "old", Trouble: strings.Repeat("not yet ", 20)}}
	for _, alloc := range []string{"", "3f2a"} {
		out, code := shown("-state-dir", serve(t, doc), alloc)
		must.Eq(t, 1, code)
		must.StrContains(t, out, "3f2a1b4c")
		must.StrNotContains(t, out, "\x1b")
		for line := range strings.Lines(out) {
			must.LessEq(t, width, len([]rune(strings.TrimRight(line, "\n"))), must.Sprint(line))
		}
	}
}

func parked(l status.Parked) func(*status.Document) {
	return func(d *status.Document) { d.Parked = []status.Parked{l} }
}

func TestExitCodeSaysWhetherAPersonIsNeeded(t *testing.T) {
	for sentence, c := range map[string]struct {
		change func(*status.Document)
		code   int
		says   string
	}{
		"all is well":                 {func(*status.Document) {}, 0, "read 20s        running"},
		"a task has trouble":          {func(d *status.Document) { d.Tasks[0].Trouble = []string{"no"} }, 1, "! no"},
		"a cluster is away":           {func(d *status.Document) { d.Clusters[0].Reachable = false }, 1, "does not answer"},
		"a cluster makes no tokens":   {func(d *status.Document) { d.Clusters[0].TokenRole = "denied" }, 1, "; denied"},
		"a cluster makes tokens":      {func(d *status.Document) { d.Clusters[0].TokenRole = "ready" }, 0, "default"},
		"something cannot be revoked": {parked(status.Parked{Trouble: "away"}), 1, "yet: away"},
		"the doors' process hangs":    {func(d *status.Document) { d.Doors.Trouble = "no answer" }, 1, "; no answer"},
		"no door was ever opened":     {func(d *status.Document) { d.Doors = &status.Doors{} }, 0, "0, no process runs"},
		"no task can have a door":     {func(d *status.Document) { d.Doors = nil }, 0, "default"},
		"something is held":           {parked(status.Parked{Held: true}), 0, "kept as long as one runs"},
		"something waits for a run":   {parked(status.Parked{Until: now.Add(time.Minute)}), 0, "1m0s for the next run"},
	} {
		t.Run(sentence, func(t *testing.T) {
			doc := document()
			c.change(&doc)
			out, code := shown("-state-dir", serve(t, doc))
			must.Eq(t, c.code, code, must.Sprint(out))
			must.StrContains(t, out, c.says)
		})
	}
}

func TestOneAllocation(t *testing.T) {
	dir := serve(t, document())
	out, code := shown("-state-dir", dir, "3f2a")
	must.Zero(t, code)
	for _, says := range []string{"generation  3, for 2h0m", "1m0s ago: secrets/db changed; restarted",
		"policies default app", `door "shop"  api https://api.example.com, generation 1764364455123456789, for`,
		"2       1          1234567890  12345678  4         5.0 MiB    1023 GiB", "pid 78, for 3h0m, 18 MiB of memory",
		"1h0m     renew in 10m0s   token     acc", "-        read in 20s      polled    kv/data/app"} {
		must.StrContains(t, out, says)
	}
	out, code = shown("-state-dir", dir, "zz")
	must.Eq(t, 1, code)
	must.StrContains(t, out, `no plugin has an allocation whose ID begins with "zz"`)
}

func TestJSONHasTheDocument(t *testing.T) {
	out, code := shown("-json", "-state-dir", serve(t, document()))
	must.Zero(t, code)
	var got struct{ Plugins []status.Document }
	must.NoError(t, json.Unmarshal([]byte(out), &got))
	must.Eq(t, []status.Document{document()}, got.Plugins)
}

func TestDumpHasTheGoroutines(t *testing.T) {
	dir := serve(t, document())
	out, code := shown("-dump", "-state-dir", dir)
	must.Zero(t, code)
	must.StrContains(t, out, "=== "+dir)
	must.StrContains(t, out, "goroutine ")
}

// One plugin that does not answer costs a line, and the others are shown.
func TestPluginsThatDoNotAnswer(t *testing.T) {
	silent := t.TempDir()
	at, err := net.Listen("unix", filepath.Join(silent, status.Socket))
	must.NoError(t, err)
	defer at.Close()
	dead := t.TempDir()
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dead, status.Socket), Net: "unix"})
	must.NoError(t, err)
	left.SetUnlinkOnClose(false)
	left.Close()
	began := time.Now()
	out, code := shown("-state-dir", silent, "-state-dir", dead, "-state-dir", t.TempDir(),
		"-state-dir", serve(t, document()))
	must.Less(t, answersWithin+2*time.Second, time.Since(began))
	must.Eq(t, 1, code)
	for _, says := range []string{"it does not answer within 5s", "the plugin has died", "no plugin serves there",
		"3f2a1b4c"} {
		must.StrContains(t, strings.Join(strings.Fields(out), " "), says)
	}
}

func TestWrongCommandLines(t *testing.T) {
	for says, args := range map[string][]string{
		`argument "b" is not understood: flags stand before ALLOC`: {"a", "b"},
		"-dump goes with -state-dir only":                          {"-dump", "-json"},
		"flag provided but not defined: -nope":                     {"-nope"},
	} {
		out, code := shown(args...)
		must.Eq(t, 2, code)
		must.StrContains(t, out, says)
	}
}

func TestSpan(t *testing.T) {
	for want, d := range map[string]time.Duration{"0s": -time.Second, "59s": 59900 * time.Millisecond, "1m0s": time.Minute,
		"23h59m": 24*time.Hour - 1, "1d0h": 24 * time.Hour, "99d23h": 100*24*time.Hour - 1} {
		must.Eq(t, want, span(d))
	}
}
