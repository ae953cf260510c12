package setup

import (
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/operator"
)

// TestTerraformIsHCL parses what is printed as Terraform does; a URL may have what would be an interpolation there.
func TestTerraformIsHCL(t *testing.T) {
	var printed strings.Builder
	args := []string{"setup", "-dry-run", "-format=terraform", "-path=jwt/team", "-role=r", "-policy=p", "-kv=team/kv",
		"-audience=https://vault/", "-jwks-url=http://nomad/${x}?a=1&b=%{2}"}
	must.Zero(t, operator.Program{Commands: []operator.Command{Command()}}.Run(args,
		operator.Terminal{Out: &printed, Err: &printed}), must.Sprint(&printed))
	out := printed.String()
	must.Eq(t, string(hclwrite.Format([]byte(out))), out, must.Sprint("not as terraform fmt has it"))
	file, diagnostics := hclparse.NewParser().ParseHCL([]byte(out), "main.tf")
	must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics, out))
	found := map[string]map[string]string{}
	for _, block := range file.Body.(*hclsyntax.Body).Blocks {
		must.Eq(t, "resource", block.Type)
		args := map[string]string{}
		for name, attribute := range block.Body.Attributes {
			if value, diagnostics := attribute.Expr.Value(nil); !diagnostics.HasErrors() &&
				value.Type().FriendlyName() == "string" {
				args[name] = value.AsString()
			}
		}
		found[block.Labels[0]] = args
	}
	must.Eq(t, map[string]map[string]string{
		"vault_jwt_auth_backend": {"path": "jwt/team", "type": "jwt", "jwks_url": "http://nomad/${x}?a=1&b=%{2}",
			"default_role": "r"},
		"vault_policy": {"name": "p"}, // the policy has the accessor of another resource in it
		"vault_jwt_auth_backend_role": {"role_name": "r", "role_type": "jwt", "token_type": "service",
			"user_claim": "/nomad_job_id"},
		"vault_mount": {"path": "team/kv", "type": "kv"},
	}, found)
	must.StrContains(t, out, `path "team/kv/data/{{identity.entity.aliases.${vault_jwt_auth_backend.nomad.accessor}.metadata.nomad_namespace}}/`)
	must.StrContains(t, out, `bound_audiences         = ["https://vault/"]`)
}
