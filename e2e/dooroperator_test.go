package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/e2e/stack"
)

// What an operator sees of a door, from the outside: status, the record of calls, and Vault's audit log.

// A recordedCall is a line of the record.
type recordedCall struct {
	Generation uint64
	Accessor   string
	Leases     []string
	Status     int
}

// TestAnOperatorFollowsACallOfADoor follows one from the record to the answer of Vault that has issued its credential.
func TestAnOperatorFollowsACallOfADoor(t *testing.T) {
	t.Parallel()
	ctx := within(t, 3*time.Minute)
	got := make(chan string, 8)
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("X-User")
	}))
	defer api.Close()
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec")}, Postgres: true})
	must.NoError(t, audit(ctx, s))
	setUpChecked(t, s)
	must.NoError(t, s.Vault.DatabaseRole(ctx, "checked", time.Hour, time.Hour))
	_, alloc := register(t, s, job{Name: "checked", Driver: "vault-exec", Args: []string{"show"}}.withDoor(api.URL))
	must.NoError(t, alloc.Running(ctx))

	call(t, alloc)
	user := <-got
	must.StrHasPrefix(t, "v-", user)
	c := firstRecorded(t, filepath.Join(s.Dir, "doors", "vault-exec.jsonl"))
	must.Eq(t, 200, c.Status)
	must.Len(t, 1, c.Leases)
	hash, err := s.Vault.API.Sys().AuditHashWithContext(ctx, "file", c.Accessor)
	must.NoError(t, err)
	must.Eq(t, []string{hash}, issuers(t, filepath.Join(s.Dir, "audit.log"), c.Leases[0]))

	seesDoor(t, s, alloc, c.Generation, user)
}

// seesDoor has status show the door while the process that serves it lives, hangs and dies.
func seesDoor(t *testing.T, s *stack.Stack, alloc *stack.Alloc, generation uint64, user string) {
	t.Helper()
	shown, code := doorStatus(t, s, alloc, user)
	must.Zero(t, code)
	must.Eq(t, []any{"shop", generation, int64(1)}, []any{shown.Tasks[0].Doors[0].Name, shown.Tasks[0].Doors[0].Generation,
		shown.Tasks[0].Doors[0].Calls})
	pid := shown.Doors.PID
	must.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	began := time.Now()
	shown, code = doorStatus(t, s, alloc, user)
	must.Less(t, 4*time.Second, time.Since(began))
	must.Eq(t, 1, code)
	must.StrContains(t, shown.Doors.Trouble, "does not answer within 1s")
	must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	call(t, alloc)
	shown, code = doorStatus(t, s, alloc, user)
	must.Zero(t, code)
	must.NotEq(t, pid, shown.Doors.PID)
	must.Eq(t, 2, shown.Tasks[0].Doors[0].Calls)
}

// doorStatus is what status has of an allocation. What it prints has nothing of the credential.
func doorStatus(t *testing.T, s *stack.Stack, alloc *stack.Alloc, user string) (status.Document, int) {
	t.Helper()
	args := []string{"status", "-state-dir", filepath.Join(s.Dir, "state", "vault-exec")}
	table, _ := operate(t, s, "", append(args, alloc.ID[:8])...)
	text, code := operate(t, s, "", append(args, "-json", alloc.ID[:8])...)
	must.StrNotContains(t, table+text, user)
	var shown struct{ Plugins []status.Document }
	must.NoError(t, json.Unmarshal([]byte(text), &shown), must.Sprint(text))
	return shown.Plugins[0], code
}

// withDoor is the job with a door to that URL, which tells the user of a database.
func (j job) withDoor(url string) string {
	f := hidden(privately, fmt.Sprintf("door \"shop\" {\n url = %q\n insecure = true\n "+
		"vault = \"b\"\nheader = {\n X-User = <<EOT\n{{ with secret \"database/creds/checked\" }}{{ .Data.username }}"+
		"{{ end }}\nEOT\n}\n}\n", url))
	j.Config = f.config
	return strings.Replace(j.spec(), f.old, f.new, 1)
}

// call asks the upstream of the door by its socket, whose path may be longer than an address of a socket.
func call(t *testing.T, alloc *stack.Alloc) {
	t.Helper()
	secrets, err := os.Open(alloc.Path("checked", "secrets"))
	must.NoError(t, err)
	defer secrets.Close()
	socket := fmt.Sprintf("/proc/self/fd/%d/shop.sock", secrets.Fd())
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	answer, err := client.Get("http://door/")
	must.NoError(t, err)
	_, err = io.Copy(io.Discard, answer.Body)
	must.NoError(t, err)
	must.NoError(t, answer.Body.Close())
	must.Eq(t, 200, answer.StatusCode)
}

// firstRecorded is the first call of a record, which is written a moment after its answer.
func firstRecorded(t *testing.T, file string) (c recordedCall) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		line, _, _ := bytes.Cut(text, []byte("\n"))
		return json.Unmarshal(line, &c)
	})
	return c
}

// issuers are the hashed accessors of the tokens whose requests were answered with a lease, by Vault's audit log.
func issuers(t *testing.T, file, lease string) (accessors []string) {
	t.Helper()
	log, err := os.ReadFile(file)
	must.NoError(t, err)
	for line := range bytes.Lines(log) {
		var e struct {
			Auth     struct{ Accessor string }
			Response struct {
				Secret struct {
					Lease string `json:"lease_id"`
				}
			}
		}
		if json.Unmarshal(line, &e) == nil && e.Response.Secret.Lease == lease {
			accessors = append(accessors, e.Auth.Accessor)
		}
	}
	return slices.Compact(accessors)
}
