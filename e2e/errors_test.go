package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// A mistake is one change to a job that works, and what the person who made it reads.
type mistake struct {
	driver string   // "vault-exec" where empty
	old    string   // pattern of what is replaced in the jobspec
	new    string   // by this
	config string   // HCL that is added to config {}
	group  string   // HCL that is added to the group
	says   []string // all on one line
}

// renders is a template for secrets/out, with more in its block.
func renders(data, more string) string { return file("secrets/out", data, more) }

const strict = "error_on_missing_key = true"

var mistakes = map[string]mistake{
	"no identity block": {old: `(?s)identity {.*?}`, says: []string{
		`identity "vault"`, `secrets/nomad_vault.jwt`, `add to the task: identity { name = "vault" aud = ["vault.io"] file = true }`}},
	"an identity without file": {old: `file = true`, says: []string{
		`identity "vault"`, `secrets/nomad_vault.jwt`, `add to the task: identity {`, `file = true`}},
	"an identity of another name": {old: `name = "vault"`, new: `name = "valt"`, says: []string{
		`identity "vault"`, `secrets/nomad_vault.jwt`, `found beside it, from identities of other names: "nomad_valt.jwt"`}},
	"an identity for another audience": {old: `vault\.io`, new: `consul.io`, says: []string{
		`log in to vault "default"`, `make aud of the task's identity block one of bound_audiences of role "errors"`}},

	"an unknown role": {old: `role = "errors"`, new: `role = "erors"`, says: []string{
		`log in to vault "default" with role "erors"`, `create role "erors"`}},
	"a role that is for another job": {old: `role = "errors"`, new: `role = "errors-bound"`, says: []string{
		`claim "nomad_job_id"`, `role "errors-bound" of auth/jwt-nomad does not admit this job: see its bound_claims`}},
	"an unknown cluster": {old: `role = "errors"`, new: `cluster = "west"`, says: []string{
		`vault "default": cluster "west" is unknown: the operator has configured "default"`}},

	"a policy without the path": {config: renders(`{{ with secret "kv/data/default/another/config" }}{{ end }}`, ""),
		says: []string{
			`template "secrets/out": line 1`, `role "errors" grants the policies [default errors]`,
			`path "kv/data/default/another/config" { capabilities = ["read"] }`}},
	"a policy without the path, in the words of vault kv": {config: renders(`{{ with secret "kv/default/another/config" }}{{ end }}`, ""), says: []string{
		`path "kv/data/default/another/config" { capabilities = ["read"] }`}},
	"an engine that the token knows nothing of": {config: renders(`{{ with secret "errors-hidden/config" }}{{ end }}`, ""),
		says: []string{
			`read errors-hidden/config: denied by Vault`, `path "errors-hidden/config" { capabilities = ["read"] }`}},
	"a secret that does not exist": {config: renders(`{{ with secret "kv/data/default/errors/none" }}{{ end }}`, ""),
		says: []string{
			`template "secrets/out": line 1`, `read kv/data/default/errors/none: not found in Vault`, `write it first, or correct the path`}},
	"a deleted version": {config: renders(`{{ with secret "kv/data/default/errors/deleted" }}{{ end }}`, ""),
		says: []string{
			`read kv/data/default/errors/deleted`, `version 1 was deleted at`, `undelete it`}},
	"fields of KV version 1 in version 2": {config: renders(`{{ with secret "kv/default/errors/config" }}{{ .Data.color }}{{ end }}`, ""), says: []string{
		`template "secrets/out": line 1: <.Data.color>`, `"kv/default/errors/config" is KV version 2: its fields are under .Data.data`}},
	"fields of KV version 2 in version 1": {config: renders(`{{ with secret "errors-v1/config" }}{{ .Data.data.color }}{{ end }}`, ""), says: []string{
		`template "secrets/out": line 1: <.Data.data.color>`, `"errors-v1/config" is not KV version 2: its fields are under .Data`}},
	"a missing key": {config: renders("color:\n{{ with secret \"kv/default/errors/config\" }}{{ .Data.data.colour }}{{ "+
		"end }}", strict), says: []string{
		`template "secrets/out": line 2: <.Data.data.colour>`, `no entry for key "colour"`}},

	"a syntax error": {config: renders("first\n{{ with secret }", ""), says: []string{
		`template "secrets/out": line 2`, `unexpected "}"`}},
	"a block without its end": {config: renders("{{ if true }}", ""), says: []string{`template "secrets/out"`,
		`an {{ end }} is missing`}},
	"an unknown function": {config: renders("first\n{{ sekret \"x\" }}", ""), says: []string{
		`template "secrets/out": line 2: function "sekret" not defined`}},
	"a function of Consul's": {config: renders(`{{ key "x" }}`, ""), says: []string{
		`template "secrets/out": line 1: function "key" reads Consul`, "use secret or nomadVar"}},
	"lines that are no environment": {config: renders("A=1\nB 2", "env = true"), says: []string{
		`template "secrets/out": env = true`, `line 2: not NAME=value`}},

	"an unknown option": {config: `templates {}`, says: []string{
		`No argument or block type is named "templates". Did you mean "template"?`}},
	"an unknown option of a template": {config: renders("x", `chnge_mode = "noop"`), says: []string{
		`No argument or block type is named "chnge_mode". Did you mean "change_mode"?`}},
	"an unknown signal": {config: renders("x", "change_mode = \"signal\"\n change_signal = \"SIGHOP\""), says: []string{
		`template "secrets/out": change_signal "SIGHOP" is not a signal: use a name such as "SIGHUP"`}},
	"a signal for a new environment": {config: renders("A=1",
		"env = true\n change_mode = \"signal\"\n change_signal = \"SIGHUP\""), says: []string{
		`template "secrets/out": change_mode "signal" with env = true`, `use "restart"`}},

	"a secret block without a path": {config: "secret \"db\" {}",
		says: []string{`secret "db": path is required: name a secret such as "kv/data/app"`}},
	"a pki block without a file": {config: "pki \"web\" {\n path = \"pki/issue/app\"\n }", says: []string{
		`pki "web": no file is asked for: set one of cert_file, key_file`}},
	"two secret blocks of one name": {config: "secret \"db\" {\n path = \"a/b\"\n }\n secret \"db\" {\n path = " +
		"\"a/c\"\n }", says: []string{
		`A block for secret "db" was already defined`}},
	"a field that a secret has not": {config: "secret \"app\" {\n path = \"kv/data/default/errors/config\"\n key = " +
		"\"colour\"\n }", says: []string{
		`secret "app": key: the secret has no field "colour"`}},
	"a field in an encoding that it has not": {config: "secret \"app\" {\n path = \"kv/data/default/errors/config\"\n " +
		"key = \"color\"\n encoding = \"hex\"\n }", says: []string{
		`secret "app": field "color" is not encoded in hex: correct encoding`}},

	"a destination outside the task": {config: file("../other/secrets/out", "x", ""), says: []string{
		`template "../other/secrets/out": destination`, `use local/, secrets/ or alloc/`}},
	"a destination through a link that a task has made": {
		config: file("/alloc/data/link/out", "x", ""), group: linker,
		says: []string{`destination "/alloc/data/link/out" has a parent "link" that is a symbolic link`,
			`choose another destination`}},
	"a full secrets directory": {config: renders(`{{ range loop 20000 }}`+strings.Repeat("0123456789", 6)+`{{ end }}`, ""),
		says: []string{
			`destination "secrets/out" cannot be written, its directory is full`, `raise resources { secrets = <MB> }`}},

	"a user whom the operator denies": {old: `resources {`, new: "user = \"root\"\n resources {", says: []string{
		`user "root" is not allowed`, `denied_users`, `set another user`}},
	"the same by its number": {old: `resources {`, new: "user = \"0\"\n resources {",
		says: []string{`user "0" is not allowed`}},
	"the host's processes": {config: `pid_mode = "host"`, says: []string{`config pid_mode "host" is not allowed`,
		`set default_pid_mode = "host"`}},
	"a missing command": {old: `/opt/app/app`, new: `no-such-program`, says: []string{
		`command "no-such-program" not found: looked in`}},
	"a command that the image has not": {driver: "vault-docker", old: `/opt/app/app`, new: `no-such-program`,
		says: []string{
			`no-such-program`, `executable file not found in $PATH`}},
	"an image that nobody has": {driver: "vault-docker", old: `busybox:1\.36`, new: `no-such-image:1`, says: []string{
		`no-such-image:1`, `Failed to pull`}},
	"registry credentials that the policy denies": {driver: "vault-docker",
		config: "auth {\n vault_path = \"kv/data/default/another/registry\"\n }", says: []string{
			`auth: vault_path: read kv/data/default/another/registry: denied by Vault`, `path "kv/data/default/another/registry" { capabilities = ["read"] }`}},
	"registry credentials under another key": {driver: "vault-docker",
		config: "auth {\n vault_path = \"kv/data/default/errors/config\"\n username_key = \"color\"\n }", says: []string{
			`auth: vault_path: kv/data/default/errors/config has no text under the key "password": write it, or correct password_key`}},
	"registry credentials from two places": {driver: "vault-docker",
		config: "auth {\n vault_path = \"kv/default/errors/config\"\n password = \"" + canary + "\"\n }", says: []string{
			`auth: both password and vault_path are set: keep one`}},
	"registry credentials without an image": {config: "auth {\n vault_path = \"kv/default/errors/config\"\n }",
		says: []string{
			`No argument or block type is named "auth"`}},
	"the same mistake in another driver": {driver: "vault-docker", old: `role = "errors"`, new: `role = "erors"`,
		says: []string{
			`role "erors"`, `create role "erors"`}},
	"the same mistake in the third driver": {driver: "vault-raw_exec", old: `file = true`, says: []string{
		`identity "vault"`, `add to the task: identity {`}},
}

// linker is a task that runs before the others and leaves a link to the host's /etc where one of them wants to write.
const linker = `
task "linker" {
  driver = "raw_exec"
  lifecycle {
    hook = "prestart"
  }
  config {
    command = "/bin/ln"
    args    = ["-s", "/etc", "${NOMAD_ALLOC_DIR}/data/link"]
  }
  resources {
    cpu    = 20
    memory = 32
  }
}`

// canary is in every secret of these tests, and must be in no message.
const canary = "mint-green"

// leased is a template with a database credential, which a start that fails has to give back.
var leased = "vault {\n role = \"errors\"\n }\n" +
	file("secrets/db", `{{ with secret "database/creds/errors" }}{{ .Data.password }}{{ end }}`, "")

func setUpErrors(t *testing.T, s *stack.Stack) {
	ctx := within(t, 2*time.Minute)
	const policy = `
		path "kv/data/default/errors/*" { capabilities = ["read"] }
		path "errors-v1/*" { capabilities = ["read"] }
		path "database/creds/errors" { capabilities = ["read"] }`
	must.NoError(t, s.Vault.Put(ctx, "kv/data/default/errors/config",
		map[string]any{"data": map[string]any{"color": canary}}))
	must.NoError(t, s.Vault.Put(ctx, "kv/data/default/errors/deleted",
		map[string]any{"data": map[string]any{"color": canary}}))
	_, err := s.Vault.API.Logical().DeleteWithContext(ctx, "kv/data/default/errors/deleted")
	must.NoError(t, err)
	must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, "errors-v1", &vault.MountInput{Type: "kv"}))
	must.NoError(t, s.Vault.Put(ctx, "errors-v1/config", map[string]any{"color": canary}))
	must.NoError(t, s.Vault.DatabaseRole(ctx, "errors", time.Hour, time.Hour))
	must.NoError(t, s.Vault.Role(ctx, "errors", policy, nil))
	must.NoError(t, s.Vault.Role(ctx, "errors-bound", policy,
		map[string]any{"bound_claims": map[string]any{"nomad_job_id": "another"}}))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	s := common(t)
	setUpErrors(t, s)
	t.Run("starts that fail", func(t *testing.T) {
		t.Run("no mistake", func(t *testing.T) {
			t.Parallel()
			must.NoError(t, run(t, s, job{Name: "errors-none", Driver: "vault-exec", Args: []string{"show"},
				Config: leased}).Running(within(t, 2*time.Minute)))
		})
		for i, sentence := range slices.Sorted(maps.Keys(mistakes)) {
			t.Run(sentence, func(t *testing.T) {
				t.Parallel()
				mistakes[sentence].check(t, s, fmt.Sprintf("errors-%d", i))
			})
		}
	})
	eventually(t, 30*time.Second, func() error {
		leases, err := s.Vault.Leases(t.Context(), "errors")
		if err == nil && len(leases) > 0 {
			err = fmt.Errorf("leases are left: %v", leases)
		}
		return err
	})
}

// said reports whether the line says all that it must.
func (m mistake) said(line string) bool {
	return !slices.ContainsFunc(m.says, func(part string) bool { return !strings.Contains(line, part) })
}

// job is one with the mistake, and its jobspec.
func (m mistake) job(t *testing.T, name string) (j job, spec string) {
	t.Helper()
	j = job{Name: name, Driver: cmp.Or(m.driver, "vault-exec"), Args: []string{"show"}, Config: leased + m.config,
		Group: m.group}
	spec = j.spec()
	if m.old != "" {
		spec = regexp.MustCompile(m.old).ReplaceAllLiteralString(spec, m.new)
		must.NotEq(t, j.spec(), spec)
	}
	return j, spec
}

// check makes the mistake and reads what Nomad shows: at once, on one line, with nothing started and nothing left
// behind.
func (m mistake) check(t *testing.T, s *stack.Stack, name string) {
	j, spec := m.job(t, name)
	registered, alloc := register(t, s, spec)
	failed, took := failure(t, alloc, name)
	t.Log(failed)
	must.True(t, slices.ContainsFunc(strings.Split(failed, "\n"), m.said),
		must.Sprintf("no line of the message has all of %q:\n%s", m.says, failed))
	must.StrNotContains(t, failed, canary)
	if !strings.Contains(failed, "failed to parse config") { // which Nomad finds before it asks the driver
		m.logged(t, j, alloc)
	}
	must.Less(t, 30*time.Second, took, must.Sprint("start_timeout is 60s: nothing was to be waited for"))
	must.NoError(t, leftBehind(t, s, registered.ID, alloc))
}

// ours is the beginning of the line that says why a task of the job is not started.
func ours(j job) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^\[` + regexp.QuoteMeta(j.Driver) + `\] \S+Z not started: `)
}

// logged reads the same in the task's log. Nomad shows no log of a task that was never started, so this is the file.
func (m mistake) logged(t *testing.T, j job, alloc *stack.Alloc) {
	t.Helper()
	eventually(t, slack, func() error {
		log, err := os.ReadFile(alloc.Path("alloc", "logs/"+j.Name+".stderr.0"))
		line := slices.IndexFunc(strings.Split(string(log), "\n"), m.said)
		if err == nil && (line < 0 || !ours(j).Match(log)) {
			err = fmt.Errorf("the task's log is %q", log)
		}
		return err
	})
}

// failure waits for the end of the allocation and returns why its task did not start, and after how long.
func failure(t *testing.T, alloc *stack.Alloc, task string) (message string, took time.Duration) {
	t.Helper()
	ended, err := alloc.Ended(within(t, 2*time.Minute))
	must.NoError(t, err)
	must.Eq(t, "failed", ended.ClientStatus)
	state := ended.TaskStates[task]
	must.True(t, state.StartedAt.IsZero(), must.Sprint("it was started"))
	var began time.Time
	for _, e := range state.Events {
		switch at := time.Unix(0, e.Time); e.Type {
		case nomad.TaskSetup:
			began = at
		case nomad.TaskStarted:
			t.Errorf("the task was started")
		case nomad.TaskDriverFailure, nomad.TaskFailedValidation:
			message, took = e.DisplayMessage, at.Sub(began)
		}
	}
	must.NotEq(t, "", message, must.Sprint(alloc.Report(t.Context())))
	return message, took
}

// leftBehind returns an error while anything is left of a task that has ended for good: a process, a container, a file,
// a record of the plugin's, a token, a lease.
func leftBehind(t *testing.T, s *stack.Stack, jobID string, alloc *stack.Alloc) error {
	t.Helper()
	if left := processes(alloc); len(left) > 0 {
		return fmt.Errorf("%d processes are left, the first is %d: %q", len(left), left[0].pid, left[0].cmdline)
	}
	if container, err := alloc.Container(t.Context(), jobID); err == nil || !strings.Contains(err.Error(),
		"No such container") {
		return fmt.Errorf("a container is left: %s (%s)", container, fmt.Sprint(err))
	}
	if files := rendered(t, alloc); len(files) > 0 {
		return fmt.Errorf("files are left: %v", files)
	}
	if records, err := filepath.Glob(filepath.Join(s.Dir, "state", "*", alloc.ID+"*")); err != nil || len(records) > 0 {
		return fmt.Errorf("records are left: %v (%s)", records, fmt.Sprint(err))
	}
	return unrevoked(t, t.Context(), s, jobID)
}

// tokensOf returns the accessors of the living tokens that tasks of the job have logged in for. The job's role must map
// the claim nomad_job_id, as nomad-workloads does.
func tokensOf(t *testing.T, s *stack.Stack, jobID string) []string {
	t.Helper()
	ctx := within(t, time.Minute)
	all, err := s.Vault.Tokens(ctx)
	must.NoError(t, err)
	return slices.DeleteFunc(all, func(accessor string) bool {
		token, err := s.Vault.API.Auth().Token().LookupAccessorWithContext(ctx, accessor)
		if err != nil {
			return true // It has ended since.
		}
		meta, _ := token.Data["meta"].(map[string]any)
		return meta["nomad_job_id"] != jobID
	})
}

// rendered returns the files in the directories of an allocation's tasks that neither Nomad nor a wrapped driver has
// made.
func rendered(t *testing.T, alloc *stack.Alloc) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(alloc.Path("", ""), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		// The last two are of a chroot.
		theirs := []string{".nomad-mount", "executor.out", "state.json", "api.sock", "nomad_token", "busybox", "passwd"}
		jwt := strings.HasSuffix(d.Name(), ".jwt") &&
			(strings.HasPrefix(d.Name(), "nomad_") || strings.Contains(path, "/private/"))
		mountPoint := strings.Contains(path, "/run/systemd/resolve/") // of a task that runs, on a host with systemd-resolved
		made := d.Type().IsRegular() || d.Type()&(fs.ModeSocket|fs.ModeSymlink) != 0 && strings.Contains(path, "/secrets/")
		if err == nil && made && !jwt && !mountPoint && !slices.Contains(theirs, d.Name()) &&
			!strings.Contains(path, "/alloc/logs/") {
			found = append(found, path)
		}
		return err
	})
	must.NoError(t, err)
	return found
}

// TestErrorsOfAClusterThatCannotBeAsked is about what only the operator can mend: it is told by the cluster's name,
// address and field.
func TestErrorsOfAClusterThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	needMachine(t)
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	plain, secure := httptest.NewServer(answer), httptest.NewUnstartedServer(answer)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // It would tell of every handshake that fails.
	secure.StartTLS()
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // The server sees only after the body that the client has gone.
		<-r.Context().Done()
	}))
	t.Cleanup(secure.Close)
	t.Cleanup(plain.Close)
	t.Cleanup(hung.Close)
	cluster := func(name, address string) string { return fmt.Sprintf("vault %q {\n address = %q\n}\n", name, address) }
	const limit = 10 * time.Second
	s := own(t, stack.Options{Plugins: []stack.Plugin{{Name: "vault-exec", Config: fmt.Sprintf("start_timeout = %q\n",
		limit) +
		cluster("dead", "http://127.0.0.1:1") + cluster("hung", hung.URL) + cluster("untrusted", secure.URL) +
		cluster("plain", strings.Replace(plain.URL, "http", "https", 1))}}})

	for name, c := range map[string]struct {
		waits bool
		says  []string
	}{
		"dead": {true, []string{`Vault unavailable`, `connection refused`,
			`address in the plugin's vault "dead" block is http://127.0.0.1:1`}},
		"hung": {true, []string{`Vault unavailable`, `no answer in time`,
			`address in the plugin's vault "hung" block is ` + hung.URL}},
		"untrusted": {false, []string{`certificate signed by unknown authority`,
			`set ca_file or ca_path in the plugin's vault "untrusted" block to the CA of ` + secure.URL}},
		"plain": {false, []string{`address in the plugin's vault "plain" block says https, the server speaks http`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alloc := run(t, s, job{Name: "errors-" + name, Driver: "vault-exec", Args: []string{"show"}, Config: fmt.Sprintf(
				"vault {\n cluster = %q\n}\n", name) + renders(`{{ with secret "kv/data/x" }}{{ end }}`, "")})
			message, took := failure(t, alloc, "errors-"+name)
			t.Log(took, message)
			for _, part := range c.says {
				must.StrContains(t, message, part)
			}
			must.StrNotContains(t, message, "\n")
			if c.waits {
				must.Between(t, limit-time.Second, took, limit+stretched(slack))
			} else {
				must.Less(t, limit-time.Second, took)
			}
			must.SliceEmpty(t, rendered(t, alloc))
		})
	}
}
