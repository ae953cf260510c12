package operator

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"
)

// printVault prints what the vault command reads, each with the command that reads it.
func (s *setup) printVault(w io.Writer) error {
	indented := func(of settings) []byte {
		text, _ := json.MarshalIndent(of, "", "  ") // it is written here
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
`, s.path, indented(s.configSettings()), s.policy, s.missing("", "<accessor>"), s.rolePath(), indented(s.roleSettings()), s.kv)
	return err
}

// printTerraform prints resources of the Terraform provider for Vault
// (https://registry.terraform.io/providers/hashicorp/vault/latest/docs), whose arguments have the names of Vault's API.
func (s *setup) printTerraform(w io.Writer) error {
	role := s.roleSettings()
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
`, s.path, s.configSettings().terraform(), s.policy, s.missing("", "${vault_jwt_auth_backend.nomad.accessor}"), s.role, role.terraform(), s.kv)
	_, err := w.Write(hclwrite.Format([]byte(text)))
	return err
}

// terraform is the settings as arguments; JSON is HCL but for what begins an interpolation.
func (want settings) terraform() string {
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(want.lines())
}
