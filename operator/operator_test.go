package operator

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
)

// output runs a subcommand that talks to nobody.
func output(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out strings.Builder
	code, known := Run(args, func([]string) (string, string, error) { return "", "", errors.New("none") }, Terminal{Out: &out, Err: &out})
	must.True(t, known)
	return out.String(), code
}

func TestRunLeavesThePluginsOwnArgumentsAlone(t *testing.T) {
	for _, args := range [][]string{nil, {"-driver=exec"}, {"serve"}, {"-setup"}} {
		_, known := Run(args, nil, Terminal{})
		must.False(t, known, must.Sprint(args))
	}
}

// TestTerraformIsHCL parses what is printed as Terraform does; a URL may have what would be an interpolation there.
func TestTerraformIsHCL(t *testing.T) {
	out, code := output(t, "setup", "-dry-run", "-format=terraform", "-path=jwt/team", "-role=r", "-policy=p", "-kv=team/kv",
		"-audience=https://vault/", "-jwks-url=http://nomad/${x}?a=1&b=%{2}")
	must.Zero(t, code, must.Sprint(out))
	must.Eq(t, string(hclwrite.Format([]byte(out))), out, must.Sprint("not as terraform fmt has it"))
	file, diagnostics := hclparse.NewParser().ParseHCL([]byte(out), "main.tf")
	must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics, out))
	found := map[string]map[string]string{}
	for _, block := range file.Body.(*hclsyntax.Body).Blocks {
		must.Eq(t, "resource", block.Type)
		args := map[string]string{}
		for name, attribute := range block.Body.Attributes {
			if value, diagnostics := attribute.Expr.Value(nil); !diagnostics.HasErrors() && value.Type().FriendlyName() == "string" {
				args[name] = value.AsString()
			}
		}
		found[block.Labels[0]] = args
	}
	must.Eq(t, map[string]map[string]string{
		"vault_jwt_auth_backend":      {"path": "jwt/team", "type": "jwt", "jwks_url": "http://nomad/${x}?a=1&b=%{2}", "default_role": "r"},
		"vault_policy":                {"name": "p"}, // the policy has the accessor of another resource in it
		"vault_jwt_auth_backend_role": {"role_name": "r", "role_type": "jwt", "token_type": "service", "user_claim": "/nomad_job_id"},
		"vault_mount":                 {"path": "team/kv", "type": "kv"},
	}, found)
	must.StrContains(t, out, `path "team/kv/data/{{identity.entity.aliases.${vault_jwt_auth_backend.nomad.accessor}.metadata.nomad_namespace}}/`)
	must.StrContains(t, out, `bound_audiences         = ["https://vault/"]`)
}

// TestPoliciesAreReadAsVaultReadsThem has the examples of Vault's documentation; e2e compares with Vault itself.
func TestPoliciesAreReadAsVaultReadsThem(t *testing.T) {
	for sentence, c := range map[string]struct {
		policies     []string
		allows, not  []string
		capabilities string
	}{
		"a path without a wildcard is that path": {[]string{`path "kv/a" { capabilities = ["read"] }`}, []string{"kv/a", "/kv/a"}, []string{"kv/ab", "kv/a/b", "kv"}, "read"},
		"a * at the end is anything":             {[]string{`path "kv/a*" { capabilities = ["read"] }`}, []string{"kv/a", "kv/ab", "kv/a/b/c"}, []string{"kv/b", "kv"}, "read"},
		"a + is one segment":                     {[]string{`path "kv/+/x" { capabilities = ["read"] }`}, []string{"kv/a/x"}, []string{"kv/x", "kv/a/b/x", "kv/a/xy"}, "read"},
		"both":                                   {[]string{`path "kv/+/x*" { capabilities = ["read"] }`}, []string{"kv/a/x", "kv/a/xy/z"}, []string{"kv/a/b", "kv/x"}, "read"},
		"the most specific path counts alone": {[]string{`path "kv/*" { capabilities = ["read"] } path "kv/a/*" { capabilities = ["list"] } path "kv/a/b" { capabilities = ["read"] }`},
			[]string{"kv/b", "kv/a/b"}, []string{"kv/a/c"}, "read"},
		"what is denied in one policy is denied":           {[]string{`path "kv/a" { capabilities = ["read"] }`, `path "kv/a" { capabilities = ["deny"] }`}, nil, []string{"kv/a"}, "read"},
		"the same path in two policies is both":            {[]string{`path "kv/a" { capabilities = ["list"] }`, `path "kv/a" { capabilities = ["read"] }`}, []string{"kv/a"}, nil, "read"},
		"a list may be granted without its slash":          {[]string{`path "kv/a" { capabilities = ["list"] }`}, []string{"kv/a/"}, []string{"kv/b/"}, "list"},
		"and of a list, what fits without it counts first": {[]string{`path "kv/*" { capabilities = ["read"] } path "kv/a/*" { capabilities = ["list"] }`}, []string{"kv/a/b/"}, []string{"kv/a/"}, "list"},
		"names are put in, and what is not known is left out": {[]string{`path "kv/{{ identity.entity.name }}/*" { capabilities = ["read"] } path "kv/{{identity.entity.aliases.here.name}}/*" { capabilities = ["read"] }`},
			[]string{"kv/api/x"}, []string{"kv//x", "kv/x"}, "read"},
	} {
		t.Run(sentence, func(t *testing.T) {
			var a acl
			for _, text := range c.policies {
				must.NoError(t, a.add("p", text, map[string]string{"identity.entity.aliases.here.name": "api"}))
			}
			for _, path := range c.allows {
				must.True(t, a.allows(path, []string{"other", c.capabilities}), must.Sprint(path))
			}
			for _, path := range c.not {
				must.False(t, a.allows(path, []string{c.capabilities}), must.Sprint(path))
			}
		})
	}
	must.ErrorContains(t, new(acl).add("p", `path {`, nil), `policy "p"`)
	var a acl
	must.NoError(t, a.add("default", `path "identity/entity/id/{{identity.entity.id}}" { capabilities = ["read"] } path "kv/{{identity.entity.aliases.before.name}}" { capabilities = ["read"] }`, nil))
	must.Eq(t, []string{"{{identity.entity.aliases.before.name}}"}, a.left)
}

// TestClientsThatDiffer has nodes as Nomad lists them.
func TestClientsThatDiffer(t *testing.T) {
	client := func(name, clusters string, facts ...string) *nomad.NodeListStub {
		attributes := map[string]string{"driver.vault-exec.wraps": "exec", "driver.vault-exec.clusters": clusters}
		for _, fact := range facts {
			key, value, _ := strings.Cut(fact, "=")
			attributes["driver.vault-exec."+key] = value
		}
		return &nomad.NodeListStub{Name: name, Drivers: map[string]*nomad.DriverInfo{"vault-exec": {Detected: true, Attributes: attributes}}}
	}
	without := &nomad.NodeListStub{Name: "without"}
	for sentence, c := range map[string]struct {
		clients []*nomad.NodeListStub
		says    string
	}{
		"none has the driver": {clients: []*nomad.NodeListStub{without}},
		"all tell the same": {clients: []*nomad.NodeListStub{without, client("a", "default", "vault.default.address=http://v"),
			client("b", "default,west", "vault.default.address=http://v", "vault.west.address=http://w")}},
		"by the role": {clients: []*nomad.NodeListStub{client("a", "default", "vault.default.address=http://v"), client("a", "default", "vault.default.address=http://v"),
			client("b", "default", "vault.default.address=http://v", "vault.default.create_from_role=r")},
			says: `a, a: address = "http://v" jwt_auth_backend_path = "" create_from_role = "" namespace = ""; ` +
				`b: address = "http://v" jwt_auth_backend_path = "" create_from_role = "r" namespace = ""`},
		"by the address, and most of them": {clients: append(slices.Repeat([]*nomad.NodeListStub{client("a", "default", "vault.default.address=http://v")}, 7),
			client("b", "default", "vault.default.address=http://w")),
			says: `a, a, a, a, a and 2 more: address = "http://v"`},
		"one does not have it": {clients: []*nomad.NodeListStub{client("a", "default", "vault.default.address=http://v"), client("b", "west")},
			says: "; b: no such cluster"},
	} {
		t.Run(sentence, func(t *testing.T) {
			check := checker{cluster: "default", vault: new(api.Client), clients: c.clients}
			other := check.driver("vault-exec").other["default"]
			must.StrContains(t, other, c.says)
			must.Eq(t, c.says == "", other == "")
		})
	}
}

func TestAClientThatMayRunTheJob(t *testing.T) {
	for sentence, c := range map[string]struct {
		pool        string
		datacenters []string
		node        nomad.NodeListStub
		may         bool
	}{
		"in the default pool, anywhere": {node: nomad.NodeListStub{Status: "ready", NodePool: "default", Datacenter: "dc1"}, may: true},
		"in another pool":               {node: nomad.NodeListStub{Status: "ready", NodePool: "gpu", Datacenter: "dc1"}},
		"in any pool":                   {pool: "all", node: nomad.NodeListStub{Status: "ready", NodePool: "gpu", Datacenter: "dc1"}, may: true},
		"in its datacenters":            {datacenters: []string{"eu-*", "dc1"}, node: nomad.NodeListStub{Status: "ready", NodePool: "default", Datacenter: "eu-2"}, may: true},
		"in another datacenter":         {datacenters: []string{"eu-*"}, node: nomad.NodeListStub{Status: "ready", NodePool: "default", Datacenter: "us-1"}},
		"that is away":                  {node: nomad.NodeListStub{Status: "down", NodePool: "default", Datacenter: "dc1"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			must.Eq(t, c.may, admissible(&nomad.Job{NodePool: &c.pool, Datacenters: c.datacenters}, &c.node))
		})
	}
}

func TestARoleAdmitsTheJob(t *testing.T) {
	role := func(more settings) settings {
		s := settings{"bound_audiences": []any{"vault.io"}, "user_claim": "/nomad_job_id", "user_claim_json_pointer": true}
		maps.Copy(s, more)
		return s
	}
	for sentence, c := range map[string]struct {
		role settings
		says string // "ok" or the beginning of the finding
	}{
		"by its audience":                  {role(nil), "ok"},
		"a role without audiences":         {role(settings{"bound_audiences": nil}), `problem aud is ["vault.io"]`},
		"another user claim":               {role(settings{"user_claim": "sub"}), "ok"},
		"a pointer that is none":           {role(settings{"user_claim_json_pointer": false}), "problem user_claim"},
		"a user claim of others":           {role(settings{"user_claim": "/email"}), "problem user_claim"},
		"a claim that is bound":            {role(settings{"bound_claims": map[string]any{"nomad_job_id": "api"}}), "ok"},
		"by a pointer, and in a list":      {role(settings{"bound_claims": map[string]any{"/nomad_namespace": []any{"a", "default"}}}), "ok"},
		"a claim that is bound to others":  {role(settings{"bound_claims": map[string]any{"nomad_task": []any{"a"}}}), `problem role "r" of auth/jwt does not admit this job: nomad_task is "web"`},
		"a glob, where it is not one":      {role(settings{"bound_claims": map[string]any{"nomad_job_id": "ap*"}}), "problem"},
		"a glob":                           {role(settings{"bound_claims_type": "glob", "bound_claims": map[string]any{"nomad_job_id": "a*"}}), "ok"},
		"a glob for others":                {role(settings{"bound_claims_type": "glob", "bound_claims": map[string]any{"nomad_job_id": "b*i"}}), "problem"},
		"a claim that is not known before": {role(settings{"bound_claims": map[string]any{"nomad_allocation_id": "x"}}), "warning bound_claims"},
		"a subject, whatever the region":   {role(settings{"bound_subject": "eu:default:api:g:web:vault"}), "ok"},
		"a subject of another task":        {role(settings{"bound_subject": "eu:default:api:g:other:vault"}), "problem role"},
	} {
		t.Run(sentence, func(t *testing.T) {
			var check checker
			check.admits(login{about: "x", role: "r", path: "jwt", settings: c.role, audience: []string{"vault.io"}, subject: "default:api:g:web:vault",
				claims: map[string]string{"nomad_job_id": "api", "nomad_namespace": "default", "nomad_task": "web"}})
			must.SliceLen(t, 1, check.findings)
			must.StrHasPrefix(t, c.says, check.findings[0].Status+" "+check.findings[0].Message)
		})
	}
}

// A job is read as nomad job run reads it: the variables are those of flags, files and the environment, and files are read.
func TestJobIsReadAsNomadRunsIt(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	write("db.tpl", `{{ with secret "database/creds/api" }}{{ end }}`)
	job := write("api.nomad.hcl", `
variable "role" {}
variable "datacenters" { type = list(string) }
variable "region" { default = "global" }
job "api" {
  region      = var.region
  datacenters = var.datacenters
  group "api" {
    task "api" {
      driver = "vault-exec"
      config {
        command = "/bin/api"
        vault { role = var.role }
        template {
          data        = file("./db.tpl")
          destination = "secrets/db"
        }
      }
    }
  }
}
`)
	vars := write("prod.hcl", `datacenters = ["a", "b"]`)
	t.Setenv("NOMAD_VAR_region", "north")
	t.Chdir(dir)
	c := checker{file: job, vars: []string{"role=$${api}"}, varFiles: []string{vars}}
	parsed, err := c.parseJob()
	must.NoError(t, err)
	must.Eq(t, "north", *parsed.Region)
	must.Eq(t, []string{"a", "b"}, parsed.Datacenters)
	config := parsed.TaskGroups[0].Tasks[0].Config
	must.Eq(t, `[map[role:$${api}]]`, fmt.Sprint(config["vault"]))
	must.StrContains(t, fmt.Sprint(config["template"]), "database/creds/api")

	c.vars = nil
	_, err = c.parseJob()
	must.ErrorContains(t, err, `parse -job: Unset variable "role"`)
	c.vars, c.varFiles = []string{"role=api", "no=such"}, append(c.varFiles, "none.hcl")
	_, err = c.parseJob()
	must.ErrorContains(t, err, "none.hcl")
}

func TestWhatTheHostsUsersAndTasksReachIsSaid(t *testing.T) {
	open, err := os.MkdirTemp("/tmp", "data-dir-") // which everyone enters
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(open)) })
	must.NoError(t, os.Chmod(open, 0o755))
	must.NoError(t, os.Mkdir(open+"/alloc", 0o755))
	chroots := []*nomad.NodeListStub{{Name: "one", Drivers: map[string]*nomad.DriverInfo{
		"vault-exec": {Detected: true, Attributes: map[string]string{"driver.vault-exec.filesystem": "chroot"}}}}}
	for sentence, c := range map[string]struct {
		dir   string
		mode  os.FileMode
		about published
		says  []string
	}{
		"a data_dir that everyone enters":     {dir: open + "/alloc", mode: 0o755, says: []string{"every user of this host can enter " + open + "/alloc"}},
		"one in a directory that nobody does": {dir: open + "/alloc", mode: 0o700},
		"none":                                {},
		"a chroot on clients":                 {about: published{name: "vault-exec", wraps: "exec"}, says: []string{`with filesystem = "chroot" on one, tasks can write`}},
		"a chroot here": {about: published{name: "vault-exec", wraps: "exec", local: true, block: map[string]any{"filesystem": "chroot"}},
			says: []string{`with filesystem = "chroot" on this client`}},
		"the built-in's name":             {about: published{name: "exec", wraps: "exec", local: true}, says: []string{`on this client`}},
		"binds here, a chroot elsewhere":  {about: published{name: "vault-exec", wraps: "exec", local: true}},
		"a driver without a root of ours": {about: published{name: "vault-docker", wraps: "docker"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			if c.mode != 0 {
				must.NoError(t, os.Chmod(open, c.mode))
			}
			check := &checker{clients: chroots}
			check.entered(c.dir)
			check.chroot("task", &c.about)
			must.SliceLen(t, len(c.says), check.findings, must.Sprint(check.findings))
			for i, says := range c.says {
				must.Eq(t, "warning", check.findings[i].Status)
				must.StrContains(t, check.findings[i].Message, says)
				must.StrContains(t, check.findings[i].Fix, map[bool]string{true: "chmod 0700", false: `"bind"`}[c.mode != 0])
			}
		})
	}
}
