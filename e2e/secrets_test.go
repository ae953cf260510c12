package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What a task gets from Vault and Nomad, where it finds it, and that it keeps up with what changes there.

// each runs a test for both drivers that isolate their tasks, all side by side. The job has a name of its own, with a
// random end for the sake of -count; what the test makes in Vault and Nomad has that name too.
func each(t *testing.T, name string, test func(t *testing.T, s *stack.Stack, j job)) {
	t.Helper()
	t.Parallel()
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			test(t, common(t), job{Name: name + "-" + driver[len("vault-"):] + "-" + strings.ToLower(rand.Text()[:4]),
				Driver: driver})
		})
	}
}

// How a template block goes on after its text: nobody waits longer than he must, and the mode.
const (
	quick     = "splay = \"0s\"\n poll_interval = \"1s\"\n "
	onNoop    = quick + `change_mode = "noop"`
	onRestart = quick + `change_mode = "restart"`
	onSignal  = quick + "change_mode = \"signal\"\n change_signal = \"SIGHUP\""
)

// file is a template block (HCL).
func file(destination, data, more string) string {
	return fmt.Sprintf("template {\n destination = %q\n data = %q\n %s\n }\n", destination, data, more)
}

// inJob is a template that shows one field of the job's secret kv/<namespace>/<job>/config, which the role
// nomad-workloads may read.
func inJob(j job, field string) string {
	return fmt.Sprintf(`{{ with secret "kv/data/default/%s/config" }}{{ .Data.data.%s }}{{ end }}`, j.Name, field)
}

// put writes a new version of that secret.
func put(t *testing.T, s *stack.Stack, j job, fields map[string]any) {
	t.Helper()
	must.NoError(t, s.Vault.Put(t.Context(), "kv/data/default/"+j.Name+"/config", map[string]any{"data": fields}))
}

// shown returns what `app show` printed of a file, the first n times.
func shown(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, file string, n int) []string {
	t.Helper()
	printed, err := alloc.Log(ctx, j.Name, "stdout", `(?m)^`+regexp.QuoteMeta(file)+`: (".*")$`, n)
	must.NoError(t, err)
	for i, quoted := range printed {
		printed[i], err = strconv.Unquote(quoted)
		must.NoError(t, err)
	}
	return printed
}

// whole returns all that the task has written on stdout, after having waited until the last of it is there.
func whole(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, last string) string {
	t.Helper()
	_, err := alloc.Log(ctx, j.Name, "stdout", `(?m)^`+regexp.QuoteMeta(last)+`$`, 1)
	must.NoError(t, err)
	log, err := alloc.Logs(ctx, j.Name, "stdout")
	must.NoError(t, err)
	return log
}

// state is the task as Nomad sees it now.
func state(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) *nomad.TaskState {
	t.Helper()
	now, err := alloc.Wait(ctx, "allocation", func(*nomad.Allocation) bool { return true })
	must.NoError(t, err)
	must.MapContainsKey(t, now.TaskStates, j.Name)
	return now.TaskStates[j.Name]
}

// changes returns the messages of the task's events about changed secrets.
func changes(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) []string {
	t.Helper()
	var messages []string
	for _, e := range state(t, ctx, alloc, j).Events {
		if strings.Contains(e.DisplayMessage, "Secrets changed") {
			messages = append(messages, e.DisplayMessage)
		}
	}
	return messages
}

func TestStaticSecretsAreThereBeforeTheProcessAndKeptCurrent(t *testing.T) {
	const interval = 2 * time.Second
	each(t, "kv", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		v1 := "v1-" + j.Name
		must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, v1, &vault.MountInput{Type: "kv",
			Options: map[string]string{"version": "1"}}))
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "kv/data/%s/*" { capabilities = ["read"] }
			path "%s/app" { capabilities = ["read"] }`, j.Name, v1), nil))
		// Version 2 by the path that Vault's API has, and by that of `vault kv`; version 1.
		sources := []struct{ file, path, field, put string }{
			{"/secrets/api", "kv/data/" + j.Name + "/api", ".Data.data.color", "data"},
			{"/secrets/cli", "kv/" + j.Name + "/cli", ".Data.data.color", "data"},
			{"/secrets/v1", v1 + "/app", ".Data.color", ""},
		}
		write := func(i int, color string) {
			data, path := map[string]any{"color": color}, sources[i].path
			if sources[i].put != "" {
				data, path = map[string]any{"data": data}, "kv/data/"+j.Name+"/"+filepath.Base(path)
			}
			must.NoError(t, s.Vault.Put(ctx, path, data))
		}
		j.Args, j.Config = []string{"show"}, fmt.Sprintf("vault {\n role = %q\n }\n", j.Name)
		for i, source := range sources {
			write(i, "green")
			j.Args = append(j.Args, source.file)
			j.Config += file(source.file[1:], fmt.Sprintf(`{{ with secret %q }}{{ %s }}{{ end }}`, source.path, source.field),
				fmt.Sprintf("splay = \"0s\"\n change_mode = \"signal\"\n change_signal = \"SIGHUP\"\n poll_interval = %q",
					interval))
		}
		alloc := run(t, s, j)
		for i, source := range sources { // One after the other: each is polled for its own sake.
			must.Eq(t, []string{"green"}, shown(t, ctx, alloc, j, source.file, 1),
				must.Sprint("a process that finds no file ends"))
			changed := time.Now()
			write(i, "blue")
			must.Eq(t, "blue", shown(t, ctx, alloc, j, source.file, i+2)[i+1])
			info, err := os.Stat(alloc.Path(j.Name, source.file))
			must.NoError(t, err)
			must.Less(t, interval+interval/10+stretched(slack), info.ModTime().Sub(changed),
				must.Sprint("a tenth is for jitter"))
		}
		must.StrHasPrefix(t, "started show\n/secrets/api: \"green\"\n/secrets/cli: \"green\"\n/secrets/v1: "+
			"\"green\"\nsignal hangup\n",
			whole(t, ctx, alloc, j, `/secrets/v1: "blue"`))
	})
}

func TestEnvironmentComesFromATemplateAndIsNewAfterAChange(t *testing.T) {
	each(t, "env", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		put(t, s, j, map[string]any{"color": "green = \"#0f0\""})
		j.Args = []string{"show", "/proc/self/environ"}
		j.Task = "env {\n SIZE = \"large\"\n COLOR = \"black\"\n }"
		j.Config = file("secrets/app.env", `COLOR={{ with secret "kv/data/default/`+j.Name+`/config" }}{{ .Data.data.color | toJSON }}{{ end }}`,
			"env = true\n "+onRestart)
		alloc := run(t, s, j)
		first := strings.Split(shown(t, ctx, alloc, j, "/proc/self/environ", 1)[0], "\x00")
		must.SliceContains(t, first, `COLOR=green = "#0f0"`, must.Sprint("a secret beats the task's env block"))
		must.SliceContains(t, first, "SIZE=large")
		put(t, s, j, map[string]any{"color": "blue"})
		second := strings.Split(shown(t, ctx, alloc, j, "/proc/self/environ", 2)[1], "\x00")
		must.SliceContains(t, second, "COLOR=blue")
		must.SliceContains(t, second, "SIZE=large")
		message, err := alloc.Event(ctx, j.Name, "Secrets changed")
		must.NoError(t, err)
		must.StrContains(t, message, "secrets/app.env; restarted")
		unnoticed(t, ctx, alloc, j)
	})
}

// unnoticed checks that Nomad knows of no end of the task's process.
func unnoticed(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) {
	t.Helper()
	now := state(t, ctx, alloc, j)
	must.Eq(t, "running", now.State)
	must.Zero(t, now.Restarts)
	must.SliceNotContainsFunc(t, now.Events, nomad.TaskTerminated, func(e *nomad.TaskEvent,
		kind string) bool {
		return e.Type == kind
	})
}

// The task logs in by an identity that no process of its sees, and with a text that Nomad's own template block has made
// beside ours.
func TestIdentityIsHiddenAndTheTextIsAFileOfTheTask(t *testing.T) {
	each(t, "hidden", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		must.NoError(t, s.Vault.Role(ctx, j.Name, `path "kv/data/default/`+j.Name+`/*" { capabilities = ["read"] }`,
			map[string]any{"bound_audiences": []string{"hidden.io"}}))
		put(t, s, j, map[string]any{"color": "green"})
		j.Task = `identity {
			name     = "hidden"
			aud      = ["hidden.io"]
			file     = true
			filepath = "private/hidden.jwt"
			ttl      = "1h"
		}
		template {
			data            = "[[ env \"NOMAD_JOB_NAME\" ]] is ` + strings.ReplaceAll(inJob(j, "color"), `"`, `\"`) + ` in $${HOME}"
			destination     = "local/app.tpl"
			left_delimiter  = "[["
			right_delimiter = "]]"
		}`
		j.Args = []string{"show", "/secrets/literal"}
		j.Config = fmt.Sprintf("vault {\n role = %q\n identity_file = \"private/hidden.jwt\"\n }\n", j.Name) +
			file("secrets/literal", "$$${HOME} %%%{if true}", onNoop) +
			"template {\n source = \"local/app.tpl\"\n destination = \"secrets/out\"\n " + onNoop + "\n }\n"
		alloc := run(t, s, j)
		must.Eq(t, "${HOME} %{if true}", shown(t, ctx, alloc, j, "/secrets/literal", 1)[0])
		out, err := os.ReadFile(alloc.Path(j.Name, "secrets/out"))
		must.NoError(t, err)
		must.Eq(t, j.Name+" is green in ${HOME}", string(out))
		_, err = os.Stat(alloc.Path(j.Name, "secrets/nomad_hidden.jwt"))
		must.ErrorIs(t, err, fs.ErrNotExist)
	})
}

func TestTokenIsWhereTheJobAsksForItAndNowhereElse(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		vault  string
		places []string // beside "docker inspect", which shows what is in the environment
	}{
		"not-asked": {"", nil},
		"env":       {"env = true", []string{"environment"}},
		"file":      {"file = true", []string{"secrets/vault_token"}},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, "token-"+name, func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				put(t, s, j, map[string]any{"color": "green"})
				j.Task = `user = "nobody"`
				j.Args = []string{"show", "/secrets/color"}
				j.Config = "vault {\n " + test.vault + "\n }\n" + file("secrets/color", inJob(j, "color"), onNoop)
				alloc := run(t, s, j)
				must.Eq(t, []string{"green"}, shown(t, ctx, alloc, j, "/secrets/color", 1))
				found := vaultTokens(t, ctx, alloc, j)
				asked := slices.Clone(test.places)
				if name == "env" && j.Docker() {
					asked = append(asked, "docker inspect")
				}
				must.SliceContainsAll(t, asked, slices.Collect(maps.Keys(found)),
					must.Sprint("every place with a token is one that was asked for"))
				for _, token := range found {
					ofJob(t, ctx, s, j, token)
				}
				if name == "file" {
					info, err := os.Stat(alloc.Path(j.Name, "secrets/vault_token"))
					must.NoError(t, err)
					must.Eq(t, 0o600, info.Mode().Perm())
					must.Eq(t, 65534, info.Sys().(*syscall.Stat_t).Uid, must.Sprint("nobody"))
					stdout, stderr, code := execute(t, alloc, j, false, "", "cat /secrets/vault_token")
					must.Zero(t, code, must.Sprint(stderr))
					must.Eq(t, found["secrets/vault_token"], stdout)
				}
				if name == "env" {
					environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", application(t, alloc)))
					must.NoError(t, err)
					must.SliceContainsSubset(t, strings.Split(string(environ), "\x00"), []string{
						"VAULT_TOKEN=" + found["environment"], "VAULT_ADDR=" + s.Vault.Addr})
				}
			})
		})
	}
}

// ofJob checks that a token lives and is the job's.
func ofJob(t *testing.T, ctx context.Context, s *stack.Stack, j job, token string) {
	t.Helper()
	secret, err := s.Vault.API.Auth().Token().LookupWithContext(ctx, token)
	must.NoError(t, err)
	meta, _ := secret.Data["meta"].(map[string]any)
	must.Eq[any](t, j.Name, meta["nomad_job_id"])
}

// vaultToken is what a service token of Vault looks like.
var vaultToken = regexp.MustCompile(`hvs\.[\w-]{20,}`)

// vaultTokens looks for tokens in every place where they could be, and returns those found by place.
func vaultTokens(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) map[string]string {
	t.Helper()
	found := map[string]string{}
	look := func(place string, in []byte) {
		if token := vaultToken.Find(in); token != nil {
			found[place] = string(token)
		}
	}
	for _, p := range processes(alloc) {
		look("environment", p.environ)
		look("arguments", p.cmdline)
	}
	if j.Docker() {
		inspected, err := alloc.Container(ctx, j.Name)
		must.NoError(t, err)
		look("docker inspect", inspected)
	}
	must.NoError(t, eachFile(alloc.Path("", ""), func(name string, content []byte) {
		look(strings.TrimPrefix(strings.TrimPrefix(name, alloc.Path("", "")), "/"+j.Name+"/"), content)
	}))
	return found
}

// eachFile calls look for every regular file below dir, but for the host's own that a plugin mounts there for a start.
func eachFile(dir string, look func(name string, content []byte)) error {
	return filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // It was renamed or removed meanwhile.
			return nil
		}
		if mounts, _ := filepath.Match("*/state/*/root-*", strings.TrimPrefix(name, filepath.Dir(dir)+"/")); mounts {
			return fs.SkipDir
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(name)
		if err == nil {
			look(name, content)
		}
		return nil
	})
}

// A process of an allocation.
type process struct {
	pid              int
	environ, cmdline []byte
}

// processes returns those that name the allocation: its tasks' own, and those of Nomad that run them.
func processes(alloc *stack.Alloc) []process {
	var all []process
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		environ, _ := os.ReadFile(proc + "/environ")
		cmdline, _ := os.ReadFile(proc + "/cmdline")
		if bytes.Contains(environ, []byte(alloc.ID)) || bytes.Contains(cmdline, []byte(alloc.ID)) {
			pid, _ := strconv.Atoi(filepath.Base(proc))
			all = append(all, process{pid, environ, cmdline})
		}
	}
	return all
}

// applications are those of them that are the task's application.
func applications(alloc *stack.Alloc) []process {
	return slices.DeleteFunc(processes(alloc), func(p process) bool {
		program, _, _ := strings.Cut(string(p.cmdline), "\x00")
		return filepath.Base(program) != filepath.Base(stack.AppPath)
	})
}

// application returns the process id of the task's application on this host.
func application(t *testing.T, alloc *stack.Alloc) int {
	t.Helper()
	all := applications(alloc)
	must.SliceNotEmpty(t, all, must.Sprint("the application is among the processes of its allocation"))
	return all[0].pid
}

func TestCertificatesAreRenewedBeforeTheyEndAndFitTheirKeys(t *testing.T) {
	each(t, "pki", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, j.Name, &vault.MountInput{Type: "pki"}))
		must.NoError(t, s.Vault.Put(ctx, j.Name+"/root/generate/internal", map[string]any{"common_name": "root", "ttl": "1h",
			"key_type": "ec"}))
		must.NoError(t, s.Vault.Put(ctx, j.Name+"/roles/app", map[string]any{"allow_any_name": true, "ttl": "30s",
			"max_ttl":  "30s",
			"key_type": "ec", "key_bits": 256}))
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "%s/issue/app" { capabilities = ["update"] }`, j.Name),
			nil))
		j.Args = []string{"show", "/secrets/a.crt", "/secrets/a.key", "/secrets/b.crt", "/secrets/b.key"}
		j.Config = fmt.Sprintf("vault {\n role = %q\n }\n", j.Name)
		for name, show := range map[string]string{
			"a.crt": `pkiCert %q "common_name=a.example" }}{{ .Cert }}`,
			"a.key": `pkiCert %q "common_name=a.example" }}{{ .Key }}`,
			"b.crt": `secret %q "common_name=b.example" }}{{ .Data.certificate }}`,
			"b.key": `secret %q "common_name=b.example" }}{{ .Data.private_key }}`,
		} {
			j.Config += file("secrets/"+name, `{{ with `+fmt.Sprintf(show, j.Name+"/issue/app")+`{{ end }}`, onSignal)
		}
		alloc := run(t, s, j)
		for _, name := range []string{"/secrets/a", "/secrets/b"} {
			certs := shown(t, ctx, alloc, j, name+".crt", 2)
			seen := time.Now()
			keys := shown(t, ctx, alloc, j, name+".key", 2)
			first, second := pair(t, certs[0], keys[0]), pair(t, certs[1], keys[1])
			must.True(t, seen.Before(first.NotAfter), must.Sprint("renewed in time"))
			must.NotEq(t, first.SerialNumber, second.SerialNumber)
			must.Eq(t, []string{filepath.Base(name) + ".example"}, second.DNSNames)
		}
		log := whole(t, ctx, alloc, j, "signal hangup")
		must.Eq(t, 1, strings.Count(log, "signal hangup"), must.Sprint("what ends together is replaced together"))
	})
}

// pair parses a certificate that has to fit its key.
func pair(t *testing.T, cert, key string) *x509.Certificate {
	t.Helper()
	both, err := tls.X509KeyPair([]byte(cert), []byte(key))
	must.NoError(t, err)
	return both.Leaf
}

// TestTemplatesMakeTokensAndSkipWhatIsDeleted: a token that a template makes ends with the task, and a list has names
// of secrets that are deleted.
func TestTemplatesMakeTokensAndSkipWhatIsDeleted(t *testing.T) {
	t.Parallel()
	s, ctx := common(t), within(t, time.Minute)
	j := job{Name: "made", Driver: "vault-exec", Args: []string{"show", "/secrets/token", "/secrets/colors"}}
	for name, color := range map[string]string{"config/made/a": "green", "config/made/b": "red"} {
		must.NoError(t, s.Vault.Put(ctx, "kv/data/"+name, map[string]any{"data": map[string]any{"color": color}}))
	}
	_, err := s.Vault.API.Logical().DeleteWithContext(ctx, "kv/data/config/made/b")
	must.NoError(t, err)
	must.NoError(t, s.Vault.Role(ctx, j.Name, `
		path "kv/data/config/made/*"    { capabilities = ["read"] }
		path "kv/metadata/config/made/" { capabilities = ["list"] }
		path "auth/token/create"        { capabilities = ["update"] }`, nil))
	j.Config = "vault {\n role = \"made\"\n }\n" +
		file("secrets/token", `{{ with secret "auth/token/create" "ttl=1h" }}{{ .Auth.ClientToken }}{{ end }}`, onNoop) +
		file("secrets/colors", `{{ range secrets "kv/config/made/" }}{{ $path := printf "kv/config/made/%s" . -}}
			{{ if secretExists $path }}{{ with secret $path }}{{ .Data.data.color }}{{ end }}{{ end }}{{ end }}`, onSignal)
	alloc := run(t, s, j)
	must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/colors", 1)[0])
	token := shown(t, ctx, alloc, j, "/secrets/token", 1)[0]
	_, err = s.Vault.API.Auth().Token().LookupWithContext(ctx, token)
	must.NoError(t, err)
	must.NoError(t, s.Vault.Put(ctx, "kv/data/config/made/b", map[string]any{"data": map[string]any{"color": "blue"}}))
	must.Eq(t, "greenblue", shown(t, ctx, alloc, j, "/secrets/colors", 2)[1])
	stop(t, ctx, s, alloc, j)
	eventually(t, 2*slack, func() error {
		if _, err := s.Vault.API.Auth().Token().LookupWithContext(ctx, token); err == nil {
			return errors.New("the token that the template made lives on")
		}
		return nil
	})
}

func TestNomadServicesAndVariablesAreLive(t *testing.T) {
	each(t, "nomad", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		variable := func(color string) {
			_, _, err := s.Nomad.API.Variables().Update(&nomad.Variable{Path: "nomad/jobs/" + j.Name,
				Items: nomad.VariableItems{"color": color}},
				(&nomad.WriteOptions{}).WithContext(ctx))
			must.NoError(t, err)
		}
		variable("green")
		// The interval is longer than the test: Nomad's data is watched, not polled.
		live := strings.Replace(onSignal, `"1s"`, `"1h"`, 1)
		j.Task = "identity {\n file = true\n }"
		if j.Docker() { // Either will do.
			j.Task = "identity {\n env = true\n }"
		}
		j.Args = []string{"show", "/local/variable", "/local/service"}
		j.Config = file("local/variable", `{{ with nomadVar "nomad/jobs/`+j.Name+`" }}{{ .color }}{{ end }}`, live) +
			file("local/service", `{{ range nomadService "`+j.Name+`" }}{{ .Address }} {{ .Port }} {{ .JobID }}{{ end }}`, live)
		alloc := run(t, s, j)
		must.Eq(t, []string{"green"}, shown(t, ctx, alloc, j, "/local/variable", 1))
		must.Eq(t, []string{""}, shown(t, ctx, alloc, j, "/local/service", 1))

		variable("blue")
		must.Eq(t, "blue", shown(t, ctx, alloc, j, "/local/variable", 2)[1])

		other := job{Name: j.Name + "-service", Driver: j.Driver, Args: []string{"show"}, Group: fmt.Sprintf(
			"network {\n port \"http\" {}\n }\n service {\n name = %q\n port = \"http\"\n provider = \"nomad\"\n }", j.Name)}
		instance := run(t, s, other)
		must.RegexMatch(t, regexp.MustCompile(`^127\.0\.0\.1 \d+ `+other.Name+`$`),
			shown(t, ctx, alloc, j, "/local/service", 3)[2])
		stop(t, ctx, s, instance, other)
		must.Eq(t, "", shown(t, ctx, alloc, j, "/local/service", 4)[3])
	})
}

// stop stops the job as `nomad job stop` does, and returns when its process has ended, which is how long ago.
func stop(t *testing.T, ctx context.Context, s *stack.Stack, alloc *stack.Alloc, j job) (ended time.Time) {
	t.Helper()
	_, _, err := s.Nomad.API.Jobs().Deregister(j.Name, false, (&nomad.WriteOptions{}).WithContext(ctx))
	must.NoError(t, err)
	last, err := alloc.Ended(ctx)
	must.NoError(t, err)
	return last.TaskStates[j.Name].FinishedAt
}

// A witness counts what Vault has granted to the tokens of a job and what it has refused them, by path: its audit log,
// where nothing is ever revoked.
type witness struct {
	file string
	job  string
}

// audit has Vault keep the log, before the first test asks anything: Vault fails requests that are under way meanwhile.
func audit(ctx context.Context, s *stack.Stack) error {
	return s.Vault.API.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &vault.EnableAuditOptions{
		Type: "file", Options: map[string]string{"file_path": filepath.Join(s.Dir, "audit.log")}})
}

func watched(s *stack.Stack, j job) witness {
	return witness{filepath.Join(s.Dir, "audit.log"), j.Name}
}

// granted returns how often requests at a path had success until now.
func (w witness) granted(t testing.TB, path string) int { return len(w.answered(t, path, true)) }

// refused returns how often they had not.
func (w witness) refused(t *testing.T, path string) int { return len(w.answered(t, path, false)) }

// answered returns when requests at a path were answered, those that had success or those that had not.
func (w witness) answered(t testing.TB, path string, well bool) (at []time.Time) {
	t.Helper()
	log, err := os.ReadFile(w.file)
	must.NoError(t, err)
	for line := range bytes.Lines(log) {
		var e struct {
			Type, Error string
			Time        time.Time
			Request     struct{ Path string }
			Auth        struct {
				Metadata struct {
					Job string `json:"nomad_job_id"`
				}
			}
		}
		if err := json.Unmarshal(line, &e); err != nil {
			continue // The last line, while it is being written.
		}
		if e.Type == "response" && e.Request.Path == path && e.Auth.Metadata.Job == w.job && (e.Error == "") == well {
			at = append(at, e.Time)
		}
	}
	return at
}
