package setup

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"
)

// printVault prints the input of the vault command, each part below the command that reads it.
func (o objects) printVault(w io.Writer) error {
	indented := func(of settings) []byte {
		text, _ := json.MarshalIndent(of, "", "  ") // cannot fail, as toJSON
		return text
	}
	_, err := fmt.Fprintf(w, `# vault auth enable -path=%[1]s jwt

# vault write auth/%[1]s/config -
%[2]s

# vault policy write %[3]s -     (<accessor>: vault read -field=accessor sys/auth/%[1]s)
%[4]s
# vault write %[5]s -
%[6]s

# vault secrets enable -path=%[7]s -version=2 kv
`, o.path, indented(o.config()), o.policy, o.missingRules("", "<accessor>"),
		o.rolePath(), indented(o.roleSettings()), o.kv)
	return err
}

// printTerraform prints resources of the Terraform provider for Vault
// (https://registry.terraform.io/providers/hashicorp/vault/latest/docs), whose arguments have the names of Vault's API.
func (o objects) printTerraform(w io.Writer) error {
	role := o.roleSettings()
	delete(role, "token_policies")
	text := fmt.Sprintf(`resource "vault_jwt_auth_backend" "nomad" {
  path = %q
  type = "jwt"
%s}

resource "vault_policy" "nomad" {
  name = %q
  policy = <<EOT
%sEOT
}

resource "vault_jwt_auth_backend_role" "nomad" {
  backend = vault_jwt_auth_backend.nomad.path
  role_name = %q
  token_policies = [vault_policy.nomad.name]
%s}

resource "vault_mount" "nomad" {
  path = %q
  type = "kv"
  options = { version = "2" }
}
`, o.path, o.config().terraform(), o.policy, o.missingRules("", "${vault_jwt_auth_backend.nomad.accessor}"), o.role,
		role.terraform(), o.kv)
	_, err := w.Write(hclwrite.Format([]byte(text)))
	return err
}

// terraform is lines with what would begin an interpolation escaped.
func (s settings) terraform() string {
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(s.lines())
}
