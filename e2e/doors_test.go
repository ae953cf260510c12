package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// api is an API that wants a key, "" for any, and tells whoever calls it which key it got.
type api struct {
	*httptest.Server
	accepts  atomic.Value // the key
	accepted atomic.Int64 // calls with it
	refused  atomic.Int64
}

func newAPI(t *testing.T, key string) *api {
	a := &api{}
	a.accepts.Store(key)
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := cmp.Or(r.Header.Get("X-Api-Key"), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		if wants := a.accepts.Load(); wants != "" && key != wants {
			a.refused.Add(1)
			http.Error(w, "unknown key", http.StatusUnauthorized)
			return
		}
		a.accepted.Add(1)
		fmt.Fprint(w, "you are ", key)
	}))
	t.Cleanup(a.Close)
	return a
}

// called is an error unless somebody has called since accepted was set to zero.
func (a *api) called() error {
	if a.accepted.Load() == 0 {
		return errors.New("nobody has called")
	}
	return nil
}

// replace has the API accept another key only, before the job's secret has it.
func (a *api) replace(t *testing.T, s *stack.Stack, j job, key string) {
	t.Helper()
	a.accepts.Store(key)
	a.accepted.Store(0)
	put(t, s, j, map[string]any{"key": key})
}

// door is a door "shop" to the API, whose key is a field of the job's secret.
func (a *api) door(j job, key, more string) string {
	return fmt.Sprintf("door \"shop\" {\n url = %q\n ca_pem = %q\n header = { \"X-Api-Key\" = %q }\n "+
		"poll_interval = \"1s\"\n %s\n }\n", a.URL, a.ca(), inJob(j, key), more)
}

// answered is an error unless the door of a task calls the API with that key, which is too short to be made unreadable.
func answered(ctx context.Context, alloc *stack.Alloc, j job, key string) error {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", alloc.Path(j.Name, "secrets/shop.sock"))
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://door/me", nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && string(body) != "you are "+key {
		err = fmt.Errorf("the door of %s answers %s %q, not as %s", j.Name, res.Status, body, key)
	}
	return err
}

// ca is the authority of the API's certificate.
func (a *api) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw})
}

// hiddenVault is a vault block whose identity the task cannot read.
const hiddenVault = "vault {\n identity_file = \"private/vault.jwt\"\n }\n"

// TestDoor is the story of a door: the task calls an API whose key it never has, the key is replaced at 200 calls a
// second while the old one is dead already, plugin and doors process die, and nothing is left after the stop.
func TestDoor(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{})
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		t.Run(driver, func(t *testing.T) {
			ctx := within(t, 2*time.Minute)
			keys := []string{"first-" + rand.Text(), "second" + rand.Text(), "third-" + rand.Text()}
			a := newAPI(t, keys[0])
			j := job{Name: "door-" + driver[len("vault-"):], Driver: driver, Hidden: true,
				Args: []string{"call", "SHOP_SOCK", "/me", "200"}}
			j.Config = hiddenVault + a.door(j, "key", "")
			put(t, s, j, map[string]any{"key": keys[0]})
			registered, alloc := register(t, s, j.spec())
			masked := regexp.QuoteMeta(`200 "you are ` + strings.Repeat("*", len(keys[0])) + `"`)
			must.NoError(t, alloc.Running(ctx))
			answers(t, ctx, alloc, j, masked)

			a.replace(t, s, j, keys[1])
			_, err := alloc.Event(ctx, j.Name, `Secrets changed: door "shop"; used from the next call on`)
			must.NoError(t, err)
			killPlugins(t, s)
			_, err = alloc.Log(ctx, j.Name, "stderr", "taken over after the end of the plugin before", 1)
			must.NoError(t, err)
			a.replace(t, s, j, keys[2])
			eventually(t, time.Minute, func() error { return a.called() })
			for _, pid := range doorsProcesses(t, s) {
				must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			}
			a.accepted.Store(0)
			eventually(t, time.Minute, func() error { return a.called() })
			for _, key := range keys {
				must.SliceEmpty(t, holders(t, alloc, j, key), must.Sprint("who has a key"))
			}
			must.Eq(t, []string{masked}, slices.Compact(slices.DeleteFunc(answers(t, ctx, alloc, j, masked), cutOff)))
			must.NoError(t, registered.Stop(ctx))
			eventually(t, time.Minute, func() error { return leftBehind(t, s, j.Name, alloc) })
			_, err = os.Lstat(alloc.Path(j.Name, "secrets/shop.sock"))
			must.ErrorIs(t, err, fs.ErrNotExist)
			recorded(t, s, j, keys)
		})
	}
}

// answers returns what the application was answered, in their order, from the first one that is wanted.
func answers(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, first string) []string {
	t.Helper()
	_, err := alloc.Log(ctx, j.Name, "stdout", "(?m)^answer: ("+first+")$", 1)
	must.NoError(t, err)
	log, err := alloc.Logs(ctx, j.Name, "stdout")
	must.NoError(t, err)
	var all []string
	for _, m := range regexp.MustCompile("(?m)^answer: (.*)$").FindAllStringSubmatch(log, -1) {
		all = append(all, regexp.QuoteMeta(m[1]))
	}
	return all
}

// cutOff is for a call that was in flight when the doors process was killed.
func cutOff(answer string) bool {
	return regexp.MustCompile("^error .*(EOF|reset by peer)$").MatchString(answer)
}

// doorsProcesses are those of the plugins of a stack that live.
func doorsProcesses(t *testing.T, s *stack.Stack) (pids []int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir, "state/*/doors.pid"))
	must.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must.NoError(t, err)
		pid, err := strconv.Atoi(strings.Fields(string(text))[0])
		must.NoError(t, err)
		if command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(command) > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// holders returns where a secret can be found of what a task can read: its files, and the memory and environment of its
// processes.
func holders(t *testing.T, alloc *stack.Alloc, j job, secret string) (all []string) {
	t.Helper()
	must.NoError(t, filepath.WalkDir(alloc.Path("", ""), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err == nil && bytes.Contains(data, []byte(secret)) {
				all = append(all, path)
			}
		}
		return nil
	}))
	seen := 0
	for _, p := range applications(alloc) {
		if memory(t, p.pid, secret) {
			all = append(all, "memory of "+string(p.cmdline))
		}
		seen++
	}
	must.Positive(t, seen)
	return all
}

// memory reports whether a process has the text anywhere in its memory.
func memory(t *testing.T, pid int, text string) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must.NoError(t, err)
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	must.NoError(t, err)
	defer mem.Close()
	for _, m := range regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) r`).FindAllStringSubmatch(string(maps), -1) {
		from, err := strconv.ParseInt(m[1], 16, 64)
		to, toErr := strconv.ParseInt(m[2], 16, 64)
		if err != nil || toErr != nil {
			continue // the kernel's own page, beyond int64
		}
		data := make([]byte, to-from)
		n, _ := mem.ReadAt(data, from)
		if bytes.Contains(data[:n], []byte(text)) {
			return true
		}
	}
	return false
}

// recorded looks at the record of the plugin: it has the calls of the job, and no key.
func recorded(t *testing.T, s *stack.Stack, j job, keys []string) {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(s.Dir, "doors", j.Driver+".jsonl"))
	must.NoError(t, err)
	must.StrContains(t, string(record), `"path":"/me"`)
	must.StrContains(t, string(record), "/"+j.Name+"/shop")
	for _, key := range keys {
		must.StrNotContains(t, string(record), key)
	}
}

// TestDoorToVault has a client of Vault that knows nothing of doors read a secret with a token that the task cannot
// get.
func TestDoorToVault(t *testing.T) {
	each(t, "door-vault", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		own := "kv/data/default/" + j.Name + "/config"
		put(t, s, j, map[string]any{"color": "green"})
		j.Hidden = true
		j.Args = []string{"read", own, "kv/data/default/other/config", "auth/token/lookup-self"}
		j.Config = hiddenVault + fmt.Sprintf("door \"vault\" {\n vault = \"default\"\n paths = [%q]\n }\n", own)
		alloc := run(t, s, j)
		log := whole(t, ctx, alloc, j, "")
		must.StrContains(t, log, "color:green")
		must.StrContains(t, log, "the path is not among the door's paths")
		must.SliceEmpty(t, holders(t, alloc, j, "hvs."), must.Sprint("who has a token"))
	})
}

// TestDoorToDatabase has a client that knows no password connect to PostgreSQL twice a second, over the end of the
// user.
func TestDoorToDatabase(t *testing.T) {
	each(t, "door-db", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, 10*time.Second, 20*time.Second))
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, j.Name),
			nil))
		creds := func(field string) string {
			return fmt.Sprintf("{{ with secret \"database/creds/%s\" }}{{ .Data.%s }}{{ end }}", j.Name, field)
		}
		j.Hidden = true
		j.Args = []string{"busy"} // It ends at the first connection that fails.
		j.Config = fmt.Sprintf("vault {\n role = %q\n identity_file = \"private/vault.jwt\"\n }\n", j.Name) +
			fmt.Sprintf("door \"db\" {\n postgres = \"postgres://127.0.0.1:%d/postgres?sslmode=disable\"\n insecure = true\n "+
				"username = %q\n password = %q\n }\n", s.Postgres.Port, creds("username"), creds("password"))
		alloc := run(t, s, j)
		first := users(t, ctx, alloc, j, 1)[0]
		eventually(t, time.Minute, func() error { return gone(ctx, s, first) })
		must.NoError(t, alloc.Signal(ctx, j.Name, "SIGHUP"))
		must.NotEq(t, first, users(t, ctx, alloc, j, 2)[1])
	})
}

// TestDoorOnLoopback has a task in a network of its own call an API by an address, and its neighbour refused there.
func TestDoorOnLoopback(t *testing.T) {
	each(t, "door-port", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		key := rand.Text()
		a := newAPI(t, key)
		put(t, s, j, map[string]any{"key": key})
		j.Hidden = true
		j.Args = []string{"call", "SHOP_URL", "/me", "5"}
		j.Config = hiddenVault + a.door(j, "key", "listen = 4000")
		j.Group = "network {\n mode = \"bridge\"\n }\n" + neighbour
		_, alloc := register(t, s, strings.Replace(j.spec(), `network_mode = "host"`, "", 1))
		must.NoError(t, alloc.Running(ctx))
		answers(t, ctx, alloc, j, regexp.QuoteMeta(`200 "you are `+strings.Repeat("*", len(key))+`"`))
		_, err := alloc.Log(ctx, "neighbour", "stdout", "^HTTP/1.1 403 ", 1)
		must.NoError(t, err)
	})
}

// neighbour is another task of a group, which finds the port and does not know what the address of a door ends with.
const neighbour = `task "neighbour" {
  driver = "exec"
  config {
    command = "/bin/sh"
    args = ["-c", <<EOT
while ! printf 'GET /me HTTP/1.1\r\nHost: x\r\n\r\n' | nc -w 5 127.0.0.1 4000; do sleep 1; done
sleep 600
EOT
    ]
  }
  resources {
    cpu    = 20
    memory = 32
  }
}
`

// TestDoorOfTheOperator has a job name a door whose key only the operator's own token leads to.
func TestDoorOfTheOperator(t *testing.T) {
	t.Parallel()
	key := "pay-" + rand.Text()
	a := newAPI(t, key)
	file := filepath.Join(t.TempDir(), "token")
	s := own(t, stack.Options{
		Blocks: map[string]string{"roles": fmt.Sprintf("token_file = %q\n create_from_role = \"nomad-cluster\"", file)},
		Plugins: []stack.Plugin{{Name: "vault-exec", Config: fmt.Sprintf("door \"pay\" {\n namespaces = [\"default\"]\n "+
			"vault = \"roles\"\n policies = [\"pay\"]\n url = %q\n ca_pem = %q\n bearer = %q\n }\n", a.URL, a.ca(),
			`{{ with secret "kv/data/pay" }}{{ .Data.data.key }}{{ end }}`)}},
	})
	ctx := within(t, 2*time.Minute)
	must.NoError(t, s.Vault.Script(ctx, "token-role.sh", file))
	must.NoError(t, s.Vault.Put(ctx, "auth/token/roles/nomad-cluster",
		map[string]any{"disallowed_policies": "nomad-server", "orphan": true, "token_period": "1h"}))
	must.NoError(t, s.Vault.API.Sys().PutPolicyWithContext(ctx, "pay", `path "kv/data/pay" { capabilities = ["read"] }`))
	must.NoError(t, s.Vault.Put(ctx, "kv/data/pay", map[string]any{"data": map[string]any{"key": key}}))
	j := job{Name: "door-pay", Driver: "vault-exec", Args: []string{"call", "PAY_SOCK", "/me", "5"}, Config: `door "pay" {}`}
	alloc := run(t, s, j)
	must.NoError(t, alloc.Running(ctx))
	answers(t, ctx, alloc, j, regexp.QuoteMeta(`200 "you are `+strings.Repeat("*", len(key))+`"`))
	must.SliceEmpty(t, holders(t, alloc, j, key), must.Sprint("who has the key"))
	runExample(t, s, "door-operator.nomad.hcl")
}
