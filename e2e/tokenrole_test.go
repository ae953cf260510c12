package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// tokenRoles is a stack with clusters that make tokens by token roles, and where their tokens are.
type tokenRoles struct {
	*stack.Stack
	dir string
}

// startTokenRoles sets Vault up only when the plugins serve: until then every cluster is off.
func startTokenRoles(t *testing.T) tokenRoles {
	dir := t.TempDir()
	cluster := func(file, role, allow string) string {
		return fmt.Sprintf("token_file = %q\n create_from_role = %q\n allow \"default\" {\n policies = [%s]\n }\n",
			filepath.Join(dir, file), role, allow)
	}
	return tokenRoles{dir: dir, Stack: own(t, stack.Options{Agent: patient, Blocks: map[string]string{
		"roles": cluster("token", "nomad-cluster", `"roles-*", "hello-*", "nomad-server"`) +
			"allow \"team\" {\n policies = [\"team\"]\n }\n",
		"maximum":  cluster("token", "nomad-maximum", `"*"`),
		"aperiod":  cluster("token", "nomad-aperiod", `"*"`),
		"missing":  cluster("token", "nomad-missing", `"*"`),
		"brief":    cluster("brief", "nomad-cluster", `"roles-*"`),
		"replaced": cluster("replaced", "nomad-cluster", `"roles-*"`),
	}})}
}

// status waits until a plugin's node attribute of a cluster says so.
func (s tokenRoles) status(t *testing.T, driver, cluster, says string) {
	t.Helper()
	ctx := within(t, time.Minute)
	eventually(t, time.Minute, func() error {
		nodes, _, err := s.Nomad.API.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		node, _, err := s.Nomad.API.Nodes().Info(nodes[0].ID, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		if attribute := node.Attributes["driver."+driver+".cluster."+cluster]; !strings.Contains(attribute, says) {
			return fmt.Errorf("cluster %s of %s: %q", cluster, driver, attribute)
		}
		return nil
	})
}

// put writes a token file.
func (s tokenRoles) put(t *testing.T, file, token string) {
	t.Helper()
	must.NoError(t, os.WriteFile(filepath.Join(s.dir, file), []byte(token), 0o600))
}

// make makes a token like that of example/token-role.sh, of that period.
func (s tokenRoles) make(t *testing.T, period string) string {
	t.Helper()
	made, err := s.Vault.API.Auth().Token().CreateOrphan(&vault.TokenCreateRequest{Policies: []string{"nomad-server"},
		Period: period})
	must.NoError(t, err)
	return made.Auth.ClientToken
}

// tokens are the accessors of the living tokens that were made for the job.
func (s tokenRoles) tokens(ctx context.Context, job string) ([]*vault.Secret, error) {
	all, err := s.Vault.API.Logical().ListWithContext(ctx, "auth/token/accessors")
	if err != nil {
		return nil, err
	}
	var found []*vault.Secret
	for _, accessor := range all.Data["keys"].([]any) {
		token, err := s.Vault.API.Auth().Token().LookupAccessorWithContext(ctx, accessor.(string))
		if err != nil {
			continue // It has ended since.
		}
		if meta, _ := token.Data["meta"].(map[string]any); meta["JobID"] == job {
			found = append(found, token)
		}
	}
	return found, nil
}

// asking is a job that shows the field color of kv/roles/config with a token of those policies, HCL.
func asking(name, driver, cluster, policies string) job {
	return job{Name: name, Driver: driver, Args: []string{"show", "/secrets/color"},
		Config: fmt.Sprintf("vault {\n cluster = %q\n %s\n }\n", cluster, policies) +
			file("secrets/color", `{{ with secret "kv/data/roles/config" }}{{ .Data.data.color }}{{ end }}`, onSignal)}
}

// plain is a jobspec whose task has no identity to log in with.
func plain(j job) string { return identityBlock.ReplaceAllString(j.spec(), "") }

func TestTokenRoles(t *testing.T) {
	t.Parallel()
	s := startTokenRoles(t)
	ctx := within(t, 8*time.Minute)
	s.status(t, "vault-exec", "roles", "no such file or directory")
	must.NoError(t, s.Vault.Script(ctx, "token-role.sh", filepath.Join(s.dir, "token")))
	brief := s.make(t, "30s")
	s.put(t, "brief", brief)
	s.put(t, "replaced", "hvs.nonsense")
	const read = `path "kv/data/roles/*" { capabilities = ["read"] }`
	for name, policy := range map[string]string{"roles-read": read,
		"roles-other": `path "kv/data/other" { capabilities = ["read"] }`} {
		must.NoError(t, s.Vault.API.Sys().PutPolicyWithContext(ctx, name, policy))
	}
	role := map[string]any{"disallowed_policies": "nomad-server", "orphan": true, "token_period": "1h"}
	must.NoError(t, s.Vault.Put(ctx, "auth/token/roles/nomad-maximum",
		map[string]any{"disallowed_policies": "nomad-server", "token_period": "1h", "token_explicit_max_ttl": "2h"}))
	must.NoError(t, s.Vault.Put(ctx, "auth/token/roles/nomad-aperiod",
		map[string]any{"disallowed_policies": "nomad-server", "orphan": true}))
	// to be seen by the token of the script
	for _, name := range []string{"nomad-maximum", "nomad-aperiod", "nomad-missing"} {
		must.NoError(t, grants(ctx, s.Stack, name))
	}
	must.NoError(t, s.Vault.Put(ctx, "auth/token/roles/nomad-cluster", role))
	must.NoError(t, s.Vault.Put(ctx, "kv/data/roles/config", map[string]any{"data": map[string]any{"color": "green"}}))

	for _, driver := range []string{"vault-exec", "vault-docker"} {
		s.status(t, driver, "roles", "ready")
	}
	s.status(t, "vault-exec", "maximum", `check token role "nomad-maximum": refused by Vault: token_explicit_max_ttl is set`)
	s.status(t, "vault-exec", "aperiod", `check token role "nomad-aperiod": refused by Vault: token_period is 0`)
	s.status(t, "vault-exec", "missing", `check token role "nomad-missing": not found in Vault: there is no such role`)
	s.status(t, "vault-exec", "replaced", `look up the cluster's own token: denied by Vault`)
	s.status(t, "vault-exec", "brief", "ready")

	t.Run("example", func(t *testing.T) { runExample(t, s.Stack, "token-role.nomad.hcl") })
	t.Run("refused", func(t *testing.T) { refusedByTokenRoles(t, s) })
	t.Run("replaced", func(t *testing.T) {
		s.put(t, "replaced", s.make(t, "1h"))
		s.status(t, "vault-exec", "replaced", "ready")
		j := asking("roles-replaced", "vault-exec", "replaced", `policies = ["roles-read"]`)
		_, alloc := register(t, s.Stack, plain(j))
		must.Eq(t, []string{"green"}, shown(t, within(t, time.Minute), alloc, j, "/secrets/color", 1))
	})
	t.Run("renewed", func(t *testing.T) {
		before := s.renewed(t, brief)
		eventually(t, 30*time.Second+slack, func() error {
			if now := s.renewed(t, brief); now <= before+5 { // not by another plugin's first look
				return fmt.Errorf("renewed at %d, and at %d before", now, before)
			}
			return nil
		})
	})
	t.Run("served", func(t *testing.T) { servedByTokenRoles(t, s) })
}

// renewed is when a token was renewed last, in seconds.
func (s tokenRoles) renewed(t *testing.T, token string) int64 {
	t.Helper()
	known, err := s.Vault.API.Auth().Token().LookupWithContext(within(t, time.Minute), token)
	must.NoError(t, err)
	at, _ := known.Data["last_renewal_time"].(json.Number)
	seconds, err := at.Int64()
	must.NoError(t, err)
	return seconds
}

// grants lets the clusters' own tokens use another token role.
func grants(ctx context.Context, s *stack.Stack, role string) error {
	policy, err := s.Vault.API.Sys().GetPolicyWithContext(ctx, "nomad-server")
	if err != nil {
		return err
	}
	return s.Vault.API.Sys().PutPolicyWithContext(ctx, "nomad-server", policy+fmt.Sprintf(`
		path "auth/token/create/%s" { capabilities = ["update"] }
		path "auth/token/roles/%[1]s" { capabilities = ["read"] }`, role))
}

// refusedByTokenRoles: one clear line each, nothing is started and no token is left.
func refusedByTokenRoles(t *testing.T, s tokenRoles) {
	for name, c := range map[string]struct{ cluster, policies, says string }{
		"operator": {"roles", `policies = ["roles-read", "admin"]`,
			`vault "default": policies: "admin" is not allowed in Nomad namespace "default": the operator allows ["roles-*" "hello-*" "nomad-server"] there`},
		"namespace": {"roles", `policies = ["team"]`, `vault "default": policies: "team" is not allowed in Nomad namespace "default"`},
		"role": {"roles", `policies = ["nomad-server"]`,
			`make a token by token role "nomad-cluster" of vault "roles": refused by Vault: token policy "nomad-server" is disallowed by this role (400); correct policies`},
		"none": {"roles", ``, `vault "default": policies is missing: cluster "roles" makes tokens by its token role`},
		"both": {"roles", "policies = [\"roles-read\"]\n role = \"api\"",
			`vault "default": role is set, but cluster "roles" makes tokens`},
		"login": {"default", `policies = ["roles-read"]`,
			`vault "default": policies is set, but cluster "default" has no token role`},
		"maximum": {"maximum", `policies = ["roles-read"]`,
			`check token role "nomad-maximum": refused by Vault: token_explicit_max_ttl is set`},
		"invalid": {"replaced", `policies = ["roles-read"]`,
			`look up the cluster's own token: denied by Vault: permission denied; invalid token (403); put a token that is valid into token_file`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := asking("roles-refused-"+name, "vault-exec", c.cluster, c.policies)
			_, alloc := register(t, s.Stack, plain(j))
			message, _ := failure(t, alloc, j.Name)
			must.StrContains(t, message, c.says)
			must.StrNotContains(t, message, "\n")
			must.SliceEmpty(t, rendered(t, alloc))
			left, err := s.tokens(t.Context(), j.Name)
			must.NoError(t, err)
			must.SliceEmpty(t, left)
		})
	}
}

// servedByTokenRoles: a task gets a token of its policies, keeps it over the end of the plugin, and loses it when it
// stops.
func servedByTokenRoles(t *testing.T, s tokenRoles) {
	ctx := within(t, 4*time.Minute)
	var jobs []job
	var allocs []*stack.Alloc
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		j := asking("roles-"+driver, driver, "roles", `policies = ["roles-read", "roles-other"]`)
		j.Config += "vault {\n name = \"other\"\n cluster = \"brief\"\n policies = [\"roles-other\"]\n file = true\n }\n"
		_, alloc := register(t, s.Stack, plain(j))
		must.Eq(t, []string{"green"}, shown(t, ctx, alloc, j, "/secrets/color", 1))
		jobs, allocs = append(jobs, j), append(allocs, alloc)
		tokens, err := s.tokens(ctx, j.Name)
		must.NoError(t, err)
		must.SliceLen(t, 2, tokens)
		slices.SortFunc(tokens, func(a, b *vault.Secret) int {
			return len(fmt.Sprint(b.Data["policies"])) - len(fmt.Sprint(a.Data["policies"]))
		})
		must.Eq(t, []any{"default", "roles-other", "roles-read"}, tokens[0].Data["policies"].([]any))
		must.Eq(t, []any{"default", "roles-other"}, tokens[1].Data["policies"].([]any),
			must.Sprint("two blocks, and each its own"))
		meta := tokens[0].Data["meta"].(map[string]any)
		must.Eq(t, alloc.ID, meta["AllocationID"].(string))
		must.Eq(t, j.Name, meta["Task"].(string))
		must.NotEq(t, "", meta["NodeID"].(string))
		must.True(t, tokens[0].Data["orphan"].(bool))
		must.StrContains(t, tokens[0].Data["display_name"].(string), alloc.ID+"-"+j.Name)
	}
	before := living(t, ctx, s, jobs)
	killPlugins(t, s.Stack)
	for i, alloc := range allocs {
		_, err := alloc.Log(ctx, jobs[i].Name, "stderr",
			`taken over after the end of the plugin before, vault "default" token`, 1)
		must.NoError(t, err)
	}
	must.NoError(t, s.Vault.Put(ctx, "kv/data/roles/config", map[string]any{"data": map[string]any{"color": "blue"}}))
	for i, alloc := range allocs {
		must.Eq(t, []string{"green", "blue"}, shown(t, ctx, alloc, jobs[i], "/secrets/color", 2))
	}
	must.Eq(t, before, living(t, ctx, s, jobs), must.Sprint("the same tokens"))

	own, err := os.ReadFile(filepath.Join(s.dir, "token"))
	must.NoError(t, err)
	secrets := map[string]string{"own token": strings.TrimSpace(string(own))}
	must.SliceEmpty(t, search(t, s.Stack, secrets))
	records, err := filepath.Glob(filepath.Join(s.Dir, "state", "*", "*.json"))
	must.NoError(t, err)
	must.SliceNotEmpty(t, records)
	for _, record := range records {
		text, err := os.ReadFile(record)
		must.NoError(t, err)
		must.StrNotContains(t, string(text), secrets["own token"])
	}
	for i, alloc := range allocs {
		stop(t, ctx, s.Stack, alloc, jobs[i])
		eventually(t, 2*slack, func() error {
			if left, err := s.tokens(ctx, jobs[i].Name); err != nil || len(left) > 0 {
				return fmt.Errorf("%d tokens are left: %w", len(left), errors.Join(err))
			}
			return nil
		})
	}
}

// living are the accessors of the jobs' tokens.
func living(t *testing.T, ctx context.Context, s tokenRoles, jobs []job) (accessors []string) {
	t.Helper()
	for _, j := range jobs {
		tokens, err := s.tokens(ctx, j.Name)
		must.NoError(t, err)
		for _, token := range tokens {
			accessors = append(accessors, token.Data["accessor"].(string))
		}
	}
	slices.Sort(accessors)
	return accessors
}
