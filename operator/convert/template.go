package convert

import (
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"nomad-driver-vault/driver/template"
)

var (
	readsVault = regexp.MustCompile(`\b(?:secrets?|pkiCert)\s+["(.$]|\|\s*(?:secrets?|pkiCert)\b`)
	readsNomad = regexp.MustCompile(`\bnomad(?:Service|Services|Var|VarExists|VarList|VarListSafe)\b`)
)

// template returns a template block as the driver has it. It is not moved if it reads nothing from Vault and has what
// only Nomad's own block knows.
func (t *task) template(b *hclsyntax.Block) (text string, moved bool) {
	env, known := literalBool(b.Body.Attributes["env"])
	data, seen := t.data(b.Body)
	problem := t.problem(b.Body, data)
	if problem != "" && !readsVault.MatchString(data) {
		return "", false
	}
	if problem != "" {
		t.find(b.TypeRange, "%s", problem)
	}
	if env || !known {
		t.unseen = t.unseen || !seen
		for _, name := range namesIn(b.Body, data) {
			t.names[name] = true
		}
	}
	t.asksNomad = t.asksNomad || readsNomad.MatchString(data)
	return t.cut(b, t.templateEdits(b.Body)), true
}

// problem is what the driver would say of the text.
func (t *task) problem(body *hclsyntax.Body, data string) string {
	spec := template.Spec{Name: textOf(body, "destination"), Data: data, LeftDelim: textOf(body, "left_delimiter"),
		RightDelim: textOf(body, "right_delimiter")}
	if _, err := template.Parse(spec); err != nil {
		return err.Error()
	}
	return ""
}

// textOf is the value of a string in a block, or empty.
func textOf(body *hclsyntax.Body, name string) (text string) {
	if attr := body.Attributes[name]; attr != nil {
		text, _ = literalText(attr.Expr)
	}
	return text
}

// namesIn are the variables that the lines of a template with env = true visibly set.
func namesIn(body *hclsyntax.Body, data string) (names []string) {
	end := textOf(body, "right_delimiter")
	if end == "" {
		end = "}}"
	}
	line := regexp.MustCompile(`(?m)(?:^|` + regexp.QuoteMeta(end) + `)[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)[ \t]*=`)
	for _, m := range line.FindAllStringSubmatch(data, -1) {
		names = append(names, m[1])
	}
	return names
}

// templateEdits are what changes in a template block when it is moved.
func (t *task) templateEdits(body *hclsyntax.Body) []edit {
	var edits []edit
	if attr := body.Attributes["vault_grace"]; attr != nil {
		start, end := linesOf(t.text, attr.SrcRange)
		edits = append(edits, edit{start: start, end: end})
		t.find(attr.NameRange, "vault_grace is left out: neither Nomad nor the driver does anything with it")
	}
	for _, name := range []string{"destination", "source"} {
		if attr := body.Attributes[name]; attr != nil {
			edits = append(edits, t.pathEdits(attr)...)
		}
	}
	edits = append(edits, durations(body, "splay")...)
	for _, b := range body.Blocks {
		edits = append(edits, durations(b.Body, "min", "max", "timeout")...)
	}
	if attr := body.Attributes["data"]; attr != nil {
		edits = append(edits, t.dataEdits(attr.Expr)...)
	}
	return edits
}

// durations puts the text of durations in the place of numbers.
func durations(body *hclsyntax.Body, names ...string) (edits []edit) {
	for _, name := range names {
		if attr := body.Attributes[name]; attr != nil {
			if text, ok := nanoseconds(attr.Expr); ok {
				r := attr.Expr.Range()
				edits = append(edits, edit{start: r.Start.Byte, end: r.End.Byte, text: text})
			}
		}
	}
	return edits
}

// pathEdits write the shared directory as the driver has it, and name a path that leads out of the task's.
func (t *task) pathEdits(attr *hclsyntax.Attribute) []edit {
	at := attr.Expr.Range()
	source := string(at.SliceBytes(t.text))
	switch written := strings.TrimPrefix(source, `"../alloc/`); {
	case written != source:
		return []edit{{start: at.Start.Byte, end: at.Start.Byte + len(`"../`), text: `"`}}
	case strings.Contains(source, ".."):
		t.find(attr.NameRange, "%s leads out of the task's directories: write a path below secrets/, local/ or alloc/",
			attr.Name)
	}
	return nil
}

// isComputed reports whether nomad job run puts in a value for all of an expression's variables.
func (s scope) isComputed(e hclsyntax.Expression) bool {
	for _, v := range e.Variables() {
		if !s.computes(v) {
			return false
		}
	}
	return true
}

func (s scope) computes(v hcl.Traversal) bool {
	for _, name := range s.computed {
		if v.RootName() == name {
			return true
		}
	}
	return false
}
