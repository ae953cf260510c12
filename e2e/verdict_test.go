package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What check says of a job before it runs, and what a start of it says, are the same.

// A verdict is what check finds wrong with a job, and with what its start is refused.
type verdict struct {
	problems []string
	refused  string // empty: it started
}

// agrees reports whether both find nothing, or the start what check has found: in its words, but for what stands before
// them, which says where.
func (v verdict) agrees() bool {
	if v.refused == "" {
		return len(v.problems) == 0
	}
	return slices.ContainsFunc(v.problems, func(says string) bool {
		_, what, _ := strings.Cut(says, ": ")
		return strings.Contains(v.refused, cmp.Or(what, says))
	})
}

// verdicts checks each jobspec, and then starts them all as groups of one job: their group and task are the first of
// each.
func verdicts(t *testing.T, s *stack.Stack, files map[string]string, args ...string) map[string]verdict {
	t.Helper()
	ctx := within(t, 3*time.Minute)
	var all *nomad.Job
	found := map[string]verdict{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		found[name] = verdict{problems: problemsOf(t, s, files[name], args...)}
		job := readJob(t, files[name])
		group := job.TaskGroups[0]
		group.Name = &name
		*group.Tasks[0].Resources.CPU = 10 // there are a hundred of them
		if all == nil {
			all = job
			continue
		}
		all.TaskGroups = append(all.TaskGroups, group)
	}
	registered, err := s.Nomad.RunJob(ctx, all)
	must.NoError(t, err)
	allocs, err := registered.Allocs(ctx)
	must.NoError(t, err)
	must.SliceLen(t, len(files), allocs)
	for _, alloc := range allocs {
		now, err := alloc.Wait(ctx, "a task that runs or has failed", func(a *nomad.Allocation) bool {
			state := a.TaskStates["checked"]
			return state != nil && state.State != "pending"
		})
		must.NoError(t, err)
		v := found[now.TaskGroup]
		for _, state := range now.TaskStates {
			v.refused = cmp.Or(v.refused, failed(state))
		}
		found[now.TaskGroup] = v
	}
	must.NoError(t, registered.Stop(ctx))
	return found
}

// onlyStarts are mistakes that a start alone can find: in what Vault or Nomad answers, in an image or on the client.
var onlyStarts = []string{"a command that the image has not", "a deleted version", "a missing command", "a missing key",
	"a destination through a link that a task has made", "a field in an encoding that it has not",
	"a field that a secret has not", "a full secrets directory", "an image that nobody has",
	"lines that are no environment", "registry credentials under another key"}

// beside is text in the task, beside its config block.
func beside(text string) flaw { return flaw{old: "config {", new: text + "\n config {"} }

// of is another role of the task's first vault block.
func of(role string) flaw { return flaw{old: `role = "checked"`, new: `role = "` + role + `"`} }

// right are jobs that check may warn of, and that start.
var right = map[string]flaw{
	"no flaw":                                {},
	"a secret on disk":                       {config: file("local/out", asksData, "")},
	"Nomad's vault block beside ours":        beside("vault {\n }"),
	"Nomad's template block beside ours":     beside("template {\n data = \"x\"\n destination = \"local/beside\"\n }"),
	"kill_timeout that config does not have": beside(`kill_timeout = "20s"`),
	"kill_signal that config does not have":  beside(`kill_signal = "SIGQUIT"`),
	"the job's own address":                  beside("env {\n VAULT_ADDR = \"http://x\"\n }"),
	"an identity in the environment":         {old: `file = true`, new: `env = true`},
	"an identity without an end":             {old: `ttl  = "1h"`},
	"a policy in JSON":                       of("checked-json"),
	"a policy in the old form":               of("checked-old"),
	"a user_claim of the servers":            asVaultDefault("checked-user"),
	"a door to Vault":                        hidden(privately, "door \"x\" {\n vault = \"b\"\n}\n"),
	"a door and a template with its secret": hidden(privately, "door \"x\" {\n vault = \"b\"\n}\n"+
		renders(asksData, `vault = "b"`)),
}

// privately is where an identity is that no process of a task can read.
const privately = `filepath = "private/vault.jwt"`

// hidden has an identity with more options, and a vault block b that wants it where no process of the task reads it.
func hidden(identity, config string) flaw {
	return flaw{old: `file = true`, new: "file = true\n " + identity,
		config: "vault {\n name = \"b\"\n role = \"checked\"\n identity_file = \"private/vault.jwt\"\n }\n" + config}
}

// door is a job with a door to that URL, with more options.
func door(url, more string) flaw {
	return hidden(privately, doorBlock(url, "vault = \"b\"\n"+more))
}

func doorBlock(url, more string) string {
	return fmt.Sprintf("door \"x\" {\n url = %q\n bearer = <<EOT\n%s\nEOT\n%s\n}\n", url, asksData, more)
}

// wrong are more flaws, without what check says of them.
var wrong = map[string]flaw{
	"a denied user":                   beside(`user = "root"`),
	"the poll floor":                  {config: renders(asksData, `poll_interval = "100ms"`)},
	"policies":                        {old: `role = "checked"`, new: `policies = ["checked"]`},
	"two tokens in env":               {config: "vault {\n name = \"b\"\n env = true\n }\n" + tokenInEnv},
	"one file, twice":                 {config: renders(asksData, "") + renders(asksData, "")},
	"Nomad's own folder":              {config: file("private/x", asksData, "")},
	"a vault block that there is not": {config: renders(asksData, `vault = "b"`)},

	"a door beside a shown identity":    {config: doorBlock("https://192.0.2.1", "")},
	"a door beside one in env":          hidden("filepath = \"private/vault.jwt\"\n env = true", doorBlock("https://192.0.2.1", `vault = "b"`)),
	"a door without its identity":       hidden("", doorBlock("https://192.0.2.1", `vault = "b"`)),
	"a door with a port and no network": door("https://192.0.2.1", "listen = 4000"),
	"a door to the metadata of a cloud": door("https://169.254.169.254", ""),
	"a door without TLS":                door("http://192.0.2.1", ""),
	"a door with authorities of none":   door("https://192.0.2.1", `ca_pem = "x"`),
	"a door to a database without TLS": hidden(privately, "door \"x\" {\n vault = \"b\"\n insecure = true\n "+
		"postgres = \"postgres://192.0.2.1/app?sslmode=prefer\"\n username = \"u\"\n password = \"p\"\n}\n"),
	"a door whose template is none":       door("https://192.0.2.1", "header = {\n X = \"{{ with }}\"\n}"),
	"a door whose secret nobody may read": door("https://192.0.2.1", "header = {\n X = \"{{ with secret `kv/data/default/another/config` }}{{ end }}\"\n}"),

	"a user_claim of the servers, for another identity":  of("checked-user"),
	"a bound claim of the servers, for another identity": of("checked-team"),
	"a claim of Nomad's own vault block":                 of("checked-role"),
	"a claim that the servers do not add":                asVaultDefault("checked-more"),
	"a claim of the servers of another value":            asVaultDefault("checked-team"),
}

const (
	asksData    = `{{ with secret "kv/data/default/checked/config" }}{{ .Data.data.color }}{{ end }}`
	tokenInEnv  = "vault {\n name = \"c\"\n env = true\n }\n"
	extraClaims = `
vault {
  default_identity {
    extra_claims {
      team = "blue"
      user = "${job.id}-${task.name}"
    }
  }
}`
)

// asVaultDefault has the only identity that Nomad's servers add claims to, and asks with it alone.
func asVaultDefault(role string) flaw {
	return flaw{old: `name = "vault"`, new: `name = "vault_default"`, config: fmt.Sprintf(
		"vault {\n name = \"b\"\n role = %q\n identity = \"vault_default\"\n }\n", role) + renders(asksData, `vault = "b"`)}
}

func setUpVerdicts(t *testing.T, s *stack.Stack) {
	setUpChecked(t, s)
	setUpErrors(t, s)
	ctx := within(t, time.Minute)
	must.NoError(t, s.Vault.DatabaseRole(ctx, "checked", time.Hour, time.Hour))
	checked, err := s.Vault.API.Sys().GetPolicyWithContext(ctx, "checked")
	must.NoError(t, err)
	pointer := func(claim string) map[string]any { return map[string]any{"user_claim": "/extra_claims/" + claim} }
	bound := func(claim, value string) map[string]any {
		return map[string]any{"bound_claims": map[string]any{claim: value}}
	}
	for role, more := range map[string]map[string]any{"checked-user": pointer("user"), "checked-more": pointer("more"),
		"checked-team": bound("/extra_claims/team", "red"), "checked-role": bound("vault_role", "checked")} {
		must.NoError(t, s.Vault.Role(ctx, role, checked, more))
	}
	must.NoError(t, s.Vault.Role(ctx, "checked-json", `{"path": {"*": {"capabilities": ["read"]}}}`, nil))
	must.NoError(t, s.Vault.Role(ctx, "checked-old", `path "*" { policy = "read" }`, nil))
}

// TestStartsSayWhatCheckSays compares the two for each flaw and each mistake of other tests, and some more.
func TestStartsSayWhatCheckSays(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Postgres: true, NomadsOwn: true, Agent: extraClaims})
	setUpVerdicts(t, s)
	files := map[string]string{}
	for _, all := range []map[string]flaw{flaws, right, wrong} {
		for sentence, f := range all {
			if f.new != "exec" && f.new != "vault-docker" { // there is no start, or none without an image
				files[sentence] = checkedJob(t, cmp.Or(f.config, asks), f)
			}
		}
	}
	for sentence, m := range mistakes {
		_, spec := m.job(t, "checked")
		files["mistake: "+sentence] = jobFile(t, spec)
	}
	for sentence, v := range verdicts(t, s, files, "-config="+filepath.Join(s.Dir, "client.hcl")) {
		_, isRight := right[sentence]
		late := slices.Contains(onlyStarts, strings.TrimPrefix(sentence, "mistake: "))
		switch {
		case isRight != (v.refused == ""):
			t.Errorf("%s: the start said %q", sentence, v.refused)
		case late && len(v.problems) > 0:
			t.Errorf("%s: check finds %q", sentence, v.problems)
		case !late && !v.agrees():
			t.Errorf("%s:\ncheck %q\nstart %q", sentence, v.problems, v.refused)
		}
	}
}
