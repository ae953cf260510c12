package convert

import (
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// formatted lays text out as nomad fmt does.
func formatted(text string) string { return string(hclwrite.Format([]byte(text))) }

// vaultBlock returns the task's vault block as the driver has it: what Nomad does by default is written out.
func (t *task) vaultBlock() string {
	text := t.cut(t.vault, nil)
	if t.vault.OpenBraceRange.Start.Line == t.vault.CloseBraceRange.Start.Line {
		open, shut := strings.Index(text, "{"), strings.LastIndex(text, "}")
		text = text[:open+1] + "\n" + strings.TrimSpace(text[open+1:shut]) + "\n" + text[shut:]
	}
	file, diagnostics := hclwrite.ParseConfig([]byte(text), t.name, hcl.InitialPos)
	if diagnostics.HasErrors() {
		panic(diagnostics) // the same text has been parsed as a part of the file
	}
	body := file.Body().Blocks()[0].Body()
	t.showToken(body)
	t.refuseFields(body)
	if id := t.ownIdentity(); t.hasIdentity(id) {
		body.SetAttributeValue("identity", cty.StringVal(id))
	}
	return formatted(strings.ReplaceAll(string(file.Bytes()), "{\n\n", "{\n"))
}

// showToken has the task see its token as it does in Nomad: in the environment and in a file unless it says otherwise.
func (t *task) showToken(body *hclwrite.Body) {
	if body.GetAttribute("env") == nil {
		body.SetAttributeValue("env", cty.True)
	}
	hidden := t.vaultAttribute("disable_file")
	switch off, known := literalBool(hidden); {
	case !known:
		source := string(hidden.Expr.Range().SliceBytes(t.text))
		body.SetAttributeRaw("file", hclwrite.Tokens{{Bytes: []byte("!(" + source + ")")}})
	case !off:
		body.SetAttributeValue("file", cty.True)
	}
	body.RemoveAttribute("disable_file")
	env, known := literalBool(t.vaultAttribute("env"))
	inEnv := !known || env || t.vaultAttribute("env") == nil
	if inEnv {
		t.names["VAULT_TOKEN"] = true
	}
	if body.GetAttribute("change_mode") == nil && (inEnv || body.GetAttribute("file") != nil) {
		body.SetAttributeValue("change_mode", cty.StringVal("restart"))
	}
}

// refuseFields takes out what the driver does not have, and names what does not go together.
func (t *task) refuseFields(body *hclwrite.Body) {
	if attr := t.vaultAttribute("allow_token_expiration"); attr != nil {
		body.RemoveAttribute("allow_token_expiration")
		if expires, known := literalBool(attr); expires || !known {
			t.find(attr.NameRange, "allow_token_expiration is unknown to the driver: write once = true into the templates")
		}
	}
	if t.vaultAttribute("policies") == nil {
		return
	}
	for _, name := range []string{"namespace", "role"} {
		if attr := t.vaultAttribute(name); attr != nil {
			body.RemoveAttribute(name)
			t.find(attr.NameRange, "%s beside policies is left out: the cluster says it; name that with cluster", name)
		}
	}
	t.find(t.vaultAttribute("policies").NameRange,
		"policies need a cluster with token_file in the plugin's configuration: for workload identities write role, and "+
			"the identity block that check prints")
}

func (t *task) hasIdentity(name string) bool {
	for _, b := range blocksOf(t.body, "identity") {
		if attr := b.Body.Attributes["name"]; attr != nil {
			if text, _ := literalText(attr.Expr); text == name {
				return true
			}
		}
	}
	return false
}
