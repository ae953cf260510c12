package e2e

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// operate runs the program as an operator does, who may do everything, and returns what it printed and its exit code.
func operate(t *testing.T, s *stack.Stack, stdin string, args ...string) (string, int) {
	t.Helper()
	return operateWith(t, s, nil, stdin, args...)
}

// operateWith is operate with another environment.
func operateWith(t *testing.T, s *stack.Stack, env []string, stdin string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), filepath.Join(s.Dir, "plugins", "vault-exec"), args...)
	cmd.Env = append([]string{"HOME=" + s.Dir, "VAULT_ADDR=" + s.Vault.Addr, "VAULT_TOKEN=" + s.Vault.Token,
		"NOMAD_ADDR=" + s.Nomad.Addr, "NOMAD_TOKEN=" + s.Nomad.Token}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		must.NoError(t, err)
	}
	for _, variable := range cmd.Env {
		if name, secret, _ := strings.Cut(variable, "="); strings.HasSuffix(name, "_TOKEN") {
			must.StrNotContains(t, string(out), secret)
		}
	}
	must.StrNotContains(t, string(out), "eyJ")
	return string(out), cmd.ProcessState.ExitCode()
}

// mounted is all of Vault that setup could change, as text.
func mounted(t *testing.T, s *stack.Stack) string {
	t.Helper()
	ctx := within(t, time.Minute)
	var all []any
	for _, path := range []string{"sys/auth", "sys/mounts"} {
		found, err := s.Vault.API.Logical().ReadWithContext(ctx, path)
		must.NoError(t, err)
		for _, mount := range slices.Sorted(maps.Keys(found.Data)) {
			all = append(all, mount, found.Data[mount])
		}
	}
	policies, err := s.Vault.API.Sys().ListPoliciesWithContext(ctx)
	must.NoError(t, err)
	for _, name := range policies {
		text, err := s.Vault.API.Sys().GetPolicyWithContext(ctx, name)
		must.NoError(t, err)
		all = append(all, name, text)
	}
	text, err := json.MarshalIndent(all, "", " ")
	must.NoError(t, err)
	return string(text)
}

// greeting is a job that gets one secret of its own.
func greeting(name string) job {
	return job{Name: name, Driver: "vault-exec", Args: []string{"show", "secrets/out"},
		Config: file("secrets/out", `{{ with secret "kv/data/default/`+name+`/config" }}{{ .Data.data.greeting }}{{ end }}`,
			"")}
}

func TestSetupPreparesAVault(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec")}})
	ctx := within(t, 5*time.Minute)
	api := s.Vault.API

	empty := func() {
		must.NoError(t, api.Sys().DisableAuthWithContext(ctx, "jwt-nomad"))
		must.NoError(t, api.Sys().DeletePolicyWithContext(ctx, "nomad-workloads"))
		must.NoError(t, api.Sys().UnmountWithContext(ctx, "kv"))
	}
	empty() // of what the stack has
	before := mounted(t, s)

	t.Run("what the vault command has made of -dry-run is as good, and is not removed", func(t *testing.T) {
		out, code := operate(t, s, "", "setup", "-dry-run")
		must.Zero(t, code)
		byHand(t, s, out)
		made := mounted(t, s)
		out, code = operate(t, s, "", "setup")
		must.Zero(t, code, must.Sprint(out))
		must.StrContains(t, out, "Nothing is to be done.")
		out, code = operate(t, s, "", "setup", "-destroy", "-yes")
		must.Zero(t, code, must.Sprint(out))
		must.Eq(t, 4, strings.Count(out, "setup has not made it"))
		must.Eq(t, made, mounted(t, s))
		empty()
	})

	t.Run("what is only shown changes nothing", func(t *testing.T) {
		for _, format := range []string{"vault", "terraform"} {
			out, code := operate(t, s, "", "setup", "-dry-run", "-format="+format)
			must.Zero(t, code)
			must.StrContains(t, out, s.Nomad.Addr+"/.well-known/jwks.json")
		}
		for answer, says := range map[string]string{"n\n": "nothing was changed", "\n": "nothing was changed",
			"": "there is nobody to ask: use -yes"} {
			out, code := operate(t, s, answer, "setup")
			must.Eq(t, 1, code)
			must.StrContains(t, out, "create  role auth/jwt-nomad/role/nomad-workloads")
			must.StrContains(t, out, says)
		}
		must.Eq(t, before, mounted(t, s))
	})
	t.Run("a mistake leaves nothing", func(t *testing.T) {
		out, code := operate(t, s, "", "setup", "-yes", "-jwks-url=http://127.0.0.1:1/none")
		must.Eq(t, 1, code)
		must.StrContains(t, out, "set -jwks-url to Nomad's address as Vault reaches it")
		must.Eq(t, before, mounted(t, s))
	})
	t.Run("keys behind a CA of one's own", func(t *testing.T) {
		nomad, err := url.Parse(s.Nomad.Addr)
		must.NoError(t, err)
		server := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(nomad))
		defer server.Close()
		ca := filepath.Join(t.TempDir(), "ca.pem")
		must.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			0o600))
		keys := "-jwks-url=" + server.URL + "/.well-known/jwks.json"
		out, code := operate(t, s, "", "setup", "-yes", keys)
		must.Eq(t, 1, code, must.Sprint(out))
		must.Eq(t, before, mounted(t, s))
		out, code = operate(t, s, "", "setup", "-yes", keys, "-jwks-ca-file="+ca)
		must.Zero(t, code, must.Sprint(out))
		out, code = operate(t, s, "", "setup", "-destroy", "-yes")
		must.Zero(t, code, must.Sprint(out))
		must.Eq(t, before, mounted(t, s))
	})
	t.Run("a job gets its secrets", func(t *testing.T) {
		out, code := operate(t, s, "y\n", "setup")
		must.Zero(t, code, must.Sprint(out))
		must.NoError(t, s.Vault.Put(ctx, "kv/data/default/set-up/config",
			map[string]any{"data": map[string]any{"greeting": "made by setup"}}))
		_, err := run(t, s, greeting("set-up")).Log(within(t, 2*time.Minute), "set-up", "stdout", "made by setup", 1)
		must.NoError(t, err)
	})
	after := mounted(t, s)
	t.Run("a second run has nothing to do", func(t *testing.T) {
		out, code := operate(t, s, "", "setup")
		must.Zero(t, code, must.Sprint(out))
		must.StrContains(t, out, "Nothing is to be done.")
		must.StrNotContains(t, out, "create")
		must.StrNotContains(t, out, "change")
		must.Eq(t, after, mounted(t, s))
	})
	t.Run("what others have set is shown before it is changed, and added to", func(t *testing.T) {
		role := "auth/jwt-nomad/role/nomad-workloads"
		must.NoError(t, s.Vault.Put(ctx, role, map[string]any{"role_type": "jwt", "user_claim": "nomad_task",
			"user_claim_json_pointer": true,
			"bound_audiences":         []string{"other"}, "token_policies": []string{"other"},
			"bound_claims": map[string]any{"nomad_namespace": "default"}}))
		out, code := operate(t, s, "", "setup")
		must.Eq(t, 1, code)
		must.StrContains(t, out, `user_claim: "nomad_task" -> "/nomad_job_id"`)
		must.StrContains(t, out, `bound_audiences: ["other"] -> ["other","vault.io"]`)
		out, code = operate(t, s, "", "setup", "-yes")
		must.Zero(t, code, must.Sprint(out))
		found, err := api.Logical().ReadWithContext(ctx, role)
		must.NoError(t, err)
		must.Eq(t, []any{"other", "nomad-workloads"}, found.Data["token_policies"].([]any))
		must.Eq(t, map[string]any{"nomad_namespace": "default"}, found.Data["bound_claims"].(map[string]any))
	})
	t.Run("rules that others have added to the policy stay, and what is missing is added", func(t *testing.T) {
		full, err := api.Sys().GetPolicyWithContext(ctx, "nomad-workloads")
		must.NoError(t, err)
		theirs, removed := "path \"database/creds/theirs\" {\n  capabilities = [\"read\"]\n}\n", "path \"kv/metadata/*\" "+
			"{\n  capabilities = [\"list\"]\n}\n"
		must.StrContains(t, full, removed)
		must.NoError(t, api.Sys().PutPolicyWithContext(ctx, "nomad-workloads", strings.Replace(full, removed, theirs, 1)))
		out, code := operate(t, s, "y\n", "setup")
		must.Zero(t, code, must.Sprint(out))
		must.StrContains(t, out, `+ path "kv/metadata/*" {`)
		must.StrNotContains(t, out, "theirs")
		now, err := api.Sys().GetPolicyWithContext(ctx, "nomad-workloads")
		must.NoError(t, err)
		must.Eq(t, strings.Replace(full, removed, theirs, 1)+removed, now)
		out, code = operate(t, s, "", "setup")
		must.Zero(t, code, must.Sprint(out))
		must.NoError(t, api.Sys().PutPolicyWithContext(ctx, "nomad-workloads", full))
	})
	t.Run("an auth method of another type is left alone", func(t *testing.T) {
		must.NoError(t, api.Sys().EnableAuthWithOptionsWithContext(ctx, "people", &vault.EnableAuthOptions{Type: "userpass"}))
		for _, args := range [][]string{{"setup", "-yes", "-path=people"}, {"setup", "-destroy", "-yes", "-path=people"}} {
			out, code := operate(t, s, "", args...)
			must.Eq(t, 1, code)
			must.StrContains(t, out, `auth/people is an auth method of type "userpass", not "jwt": choose another -path`)
		}
		must.NoError(t, api.Sys().DisableAuthWithContext(ctx, "people"))
	})
	t.Run("destroy removes what setup made, and nothing else", func(t *testing.T) {
		must.NoError(t, s.Vault.Role(ctx, "theirs", `path "kv/*" { capabilities = ["read"] }`, nil))
		out, code := operate(t, s, "", "setup", "-destroy", "-yes")
		must.Zero(t, code, must.Sprint(out))
		must.StrContains(t, out, "it has other roles: theirs")
		must.StrContains(t, out, "it has secrets")
		found, err := api.Logical().ReadWithContext(ctx, "kv/data/default/set-up/config")
		must.NoError(t, err)
		must.NotNil(t, found)
		found, err = api.Logical().ReadWithContext(ctx, "auth/jwt-nomad/role/nomad-workloads")
		must.NoError(t, err)
		must.Nil(t, found)

		_, err = api.Logical().DeleteWithContext(ctx, "auth/jwt-nomad/role/theirs")
		must.NoError(t, err)
		must.NoError(t, api.Sys().DeletePolicyWithContext(ctx, "theirs"))
		_, err = api.Logical().DeleteWithContext(ctx, "kv/metadata/default/set-up/config")
		must.NoError(t, err)
		out, code = operate(t, s, "", "setup", "-destroy", "-yes")
		must.Zero(t, code, must.Sprint(out))
		must.Eq(t, before, mounted(t, s))
	})
	t.Run("the example, twice", func(t *testing.T) {
		for range 2 {
			must.NoError(t, s.Vault.Script(ctx, "setup.sh"))
		}
		runExample(t, s, "setup.nomad.hcl")
	})
}

// byHand gives the vault command what -dry-run prints for it.
func byHand(t *testing.T, s *stack.Stack, printed string) {
	t.Helper()
	parts := strings.Split(printed, "# vault ")[1:]
	must.SliceLen(t, 5, parts)
	for _, part := range parts {
		command, input, _ := strings.Cut(part, "\n")
		command, _, _ = strings.Cut(command, "     (") // where the accessor is found
		if strings.Contains(input, "<accessor>") {
			method, err := s.Vault.API.Logical().ReadWithContext(t.Context(), "sys/auth/jwt-nomad")
			must.NoError(t, err)
			input = strings.ReplaceAll(input, "<accessor>", method.Data["accessor"].(string))
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(s.Dir, "bin", "vault"), strings.Fields(command)...)
		cmd.Env = []string{"HOME=" + s.Dir, "VAULT_ADDR=" + s.Vault.Addr, "VAULT_TOKEN=" + s.Vault.Token}
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprint(command, string(out)))
	}
}
