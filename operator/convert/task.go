package convert

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// wrapped are the drivers whose tasks are converted.
var wrapped = []string{"docker", "exec", "raw_exec"}

// A task is one of a job, while this is converted.
type task struct {
	*job
	scope
	group  *hclsyntax.Body // or the job's, of a task without a group
	own    *hclsyntax.Block
	config *hclsyntax.Block
	driver string // empty where nomad job run computes it

	converted bool
	renamed   bool            // the driver is this plugin's now
	names     map[string]bool // variables that the templates set
	unseen    bool            // a template sets variables that are not to be seen here
	asksNomad bool            // a template has functions of Nomad's services or variables
}

func newTask(j *job, in, s scope) *task {
	t := &task{job: j, scope: s, group: in.body, own: first(s.body, "vault"), config: first(s.body, "config"),
		names: map[string]bool{}}
	if t.own != nil {
		t.vault = t.own
	}
	t.secrets = append(slices.Clone(t.secrets), blocksOf(s.body, "secret")...)
	if attr := s.body.Attributes["driver"]; attr != nil {
		t.driver, _ = literalText(attr.Expr)
	}
	return t
}

// usesVault reports whether there is something to convert.
func (t *task) usesVault() bool {
	return t.vault != nil && (slices.Contains(wrapped, t.driver) || t.driver == "" && t.body.Attributes["driver"] != nil)
}

// convert makes the edits of one task.
func (t *task) convert() {
	if !t.usesVault() || t.refused() {
		return
	}
	t.converted = true
	t.setDriver()
	inside := t.killFields()
	var beside []string
	if !t.readsVaultItself() {
		inside = append(inside, t.vaultBlock())
		if t.own != nil {
			t.remove(t.own)
		}
	}
	for _, b := range blocksOf(t.body, "template") {
		if text, moved := t.template(b); moved {
			inside = append(inside, text)
			t.remove(b)
		}
	}
	if !t.readsVaultItself() && t.vaultAttribute("policies") == nil {
		beside = append(beside, t.identityForVault()...)
	}
	if t.asksNomad {
		beside = append(beside, t.identityForNomad()...)
	}
	if len(beside) > 0 {
		t.insert(strings.Join(beside, "\n"))
	}
	t.fill(strings.Join(inside, "\n"))
	t.useNames()
}

func (t *task) setDriver() {
	t.renamed = true
	t.replace(t.body.Attributes["driver"].Expr.Range(), fmt.Sprintf("%q", "vault-"+t.driver))
}

// refused names why the task cannot be converted. It stays as it is then.
func (t *task) refused() bool {
	switch at := t.body.Attributes["driver"].Expr.Range(); {
	case t.driver == "":
		t.find(at, `the driver is computed: write "vault-docker", "vault-exec" or "vault-raw_exec", and convert again`)
	case t.config == nil:
		t.find(at, "the task has no config block: write one, and convert again")
	default:
		for _, b := range blocksOf(t.body, "dynamic") {
			if slices.Equal(b.Labels, []string{"template"}) {
				t.find(b.TypeRange, `config has no dynamic blocks: write a template block for each, and convert again`)
				return true
			}
		}
		return false
	}
	return true
}

// readsVaultItself reports whether Nomad's own secret block reads Vault, with Nomad's own token.
func (t *task) readsVaultItself() bool {
	return slices.ContainsFunc(t.secrets, func(b *hclsyntax.Block) bool {
		provider := b.Body.Attributes["provider"]
		if provider == nil {
			return false
		}
		name, _ := literalText(provider.Expr)
		return name == "vault"
	})
}

func (t *task) replace(at hcl.Range, text string) {
	t.edits = append(t.edits, edit{start: at.Start.Byte, end: at.End.Byte, text: text})
}

// killFields are the task's kill_signal and kill_timeout, which Nomad does not tell its drivers.
func (t *task) killFields() []string {
	var lines strings.Builder
	for _, name := range []string{"kill_signal", "kill_timeout"} {
		attr := t.body.Attributes[name]
		if attr == nil || t.config.Body.Attributes[name] != nil {
			continue
		}
		value := string(attr.Expr.Range().SliceBytes(t.text))
		if d, ok := nanoseconds(attr.Expr); ok {
			value = d
		}
		fmt.Fprintf(&lines, "%s = %s\n", name, value)
	}
	if lines.Len() == 0 {
		return nil
	}
	return []string{formatted(lines.String())}
}

// identityForVault is what default_identity of the agents has added, or an edit of the one that the job has.
func (t *task) identityForVault() []string {
	if t.identity("vault", t.ownIdentity()) != nil {
		return nil
	}
	return []string{formatted(fmt.Sprintf("identity {\nname = \"vault\"\naud = [%q]\nfile = true\nttl = \"1h\"\n}\n",
		t.audience))}
}

// identityForNomad is the same for the identity with which templates read services and variables.
func (t *task) identityForNomad() []string {
	if t.identity("", "default") != nil {
		return nil
	}
	return []string{"identity {\n  file = true\n}\n"}
}

// ownIdentity is how the agent names the identity for the vault block.
func (t *task) ownIdentity() string {
	if attr := t.vaultAttribute("cluster"); attr != nil {
		cluster, _ := literalText(attr.Expr)
		return "vault_" + cluster
	}
	return "vault_default"
}

// identity returns the task's identity of one of these names, and sees to it that the task gets its token.
func (t *task) identity(names ...string) *hclsyntax.Block {
	for _, b := range blocksOf(t.body, "identity") {
		name := ""
		if attr := b.Body.Attributes["name"]; attr != nil {
			name, _ = literalText(attr.Expr)
		}
		if !slices.Contains(names, name) {
			continue
		}
		if b.Body.Attributes["file"] == nil && b.Body.Attributes["env"] == nil {
			t.addTo(b, "file = true\n")
		}
		return b
	}
	return nil
}

func (t *task) vaultAttribute(name string) *hclsyntax.Attribute { return t.vault.Body.Attributes[name] }

// insert puts blocks before the config block, or at the end of a task without one.
func (t *task) insert(text string) {
	text = indented(text, "", t.indent())
	start := t.end()
	if t.config != nil {
		start, _ = linesOf(t.text, t.config.Range())
		text += "\n"
	}
	if above := strings.TrimSpace(lineBefore(t.text, start)); above != "" && !strings.HasSuffix(above, "{") {
		text = "\n" + text
	}
	t.edits = append(t.edits, edit{start: start, end: start, text: text})
}

// end is where the line begins that closes the task.
func (t *task) end() int {
	brace := t.body.SrcRange.End.Byte - 1
	return brace - len(lineUpTo(t.text, brace))
}

// indent is that of what stands in the task.
func (t *task) indent() string {
	return indentOf(t.text, t.body.Attributes["driver"].NameRange.Start.Byte)
}

// fill puts blocks at the end of config.
func (t *task) fill(text string) { t.addTo(t.config, text) }

// addTo puts text at the end of a block.
func (t *task) addTo(b *hclsyntax.Block, text string) {
	outer := indentOf(t.text, b.TypeRange.Start.Byte)
	from, to := b.OpenBraceRange.End.Byte, b.CloseBraceRange.Start.Byte
	inner := innerIndent(t.text, b)
	text = indented(text, "", inner)
	if b.OpenBraceRange.Start.Line != b.CloseBraceRange.Start.Line {
		line := to - len(lineUpTo(t.text, to))
		above := strings.TrimSpace(lineBefore(t.text, line))
		if strings.Contains(text, "{") && above != "" && !strings.HasSuffix(above, "{") {
			text = "\n" + text
		}
		t.edits = append(t.edits, edit{start: line, end: line, text: text})
		return
	}
	content := strings.TrimSpace(string(t.text[from:to]))
	if content == "" {
		t.edits = append(t.edits, edit{start: from, end: to, text: "\n" + text + outer})
		return
	}
	before := from + strings.Index(string(t.text[from:to]), content)
	if strings.Contains(text, "{") {
		text = "\n" + text
	}
	t.edits = append(t.edits, edit{start: from, end: before, text: "\n" + inner},
		edit{start: before + len(content), end: to, text: "\n" + text + outer})
}

// innerIndent is the indent of what stands in the block.
func innerIndent(text []byte, b *hclsyntax.Block) string {
	starts := slices.Collect(maps.Values(b.Body.Attributes))
	slices.SortFunc(starts, func(a, b *hclsyntax.Attribute) int { return a.SrcRange.Start.Byte - b.SrcRange.Start.Byte })
	outer := indentOf(text, b.TypeRange.Start.Byte)
	if len(starts) > 0 && starts[0].SrcRange.Start.Line > b.OpenBraceRange.Start.Line {
		return indentOf(text, starts[0].SrcRange.Start.Byte)
	}
	if strings.HasSuffix(outer, "\t") {
		return outer + "\t"
	}
	return outer + "  "
}

// literalText is the value of a string without variables or functions.
func literalText(e hclsyntax.Expression) (string, bool) {
	if v, diagnostics := e.Value(nil); !diagnostics.HasErrors() && v.Type() == cty.String && v.IsKnown() && !v.IsNull() {
		return v.AsString(), true
	}
	return "", false
}

// literalBool is that of a switch, which is absent where attr is nil.
func literalBool(attr *hclsyntax.Attribute) (value, ok bool) {
	if attr == nil {
		return false, true
	}
	if v, diagnostics := attr.Expr.Value(nil); !diagnostics.HasErrors() && v.Type() == cty.Bool && !v.IsNull() {
		return v.True(), true
	}
	return false, false
}

// nanoseconds returns the text of a duration that is written as a number, as Nomad may have it and the driver not.
func nanoseconds(e hclsyntax.Expression) (string, bool) {
	v, diagnostics := e.Value(nil)
	if diagnostics.HasErrors() || v.Type() != cty.Number || v.IsNull() {
		return "", false
	}
	n, _ := v.AsBigFloat().Int64()
	return fmt.Sprintf("%q", time.Duration(n).String()), true
}
