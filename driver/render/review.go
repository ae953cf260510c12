package render

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// Asked is what the blocks of a task ask.
type Asked struct {
	Vaults []Use
	Nomad  []string // the templates that ask Nomad for services or variables
	OnDisk []string // the blocks with secrets in files that are not in secrets/, which is in memory
}

// A Use is a vault block of a task and what the task's other blocks ask there.
type Use struct {
	config.Vault
	Server    vault.Cluster // of the plugin's configuration
	Questions []Question
	Doors     []string // names of those that lead to it, or whose credentials are read there
}

// A Question is what a block asks Vault.
type Question struct {
	Block string // as messages name it, with the line of a template
	Door  string // the name of the door whose credential is asked for; empty: the task gets the answer
	Text  string // a template's call as it is written, or why it cannot be read here
	// Request is what the driver would send; its path is empty where only the task can know it.
	Request vault.Request
	Lookups []template.Lookup // the fields that a template names of it
}

// Review checks a task's config block as a start does, without a task, and returns what would be asked of which
// Vault. Of cfg it needs the name, the environment and the user. The error is the one that the start would fail with.
func Review(op config.Operator, cfg *drivers.TaskConfig, conf config.Task) (all Asked, err error) {
	if err := conf.Validate(op); err != nil {
		return all, err
	}
	if err := conf.Permit(op, cfg.Namespace); err != nil {
		return all, err
	}
	if err := op.PermitUser(cfg.User); err != nil {
		return all, err
	}
	r, err := New(cfg, &conf, op, nil, nil)
	if err != nil {
		return all, err
	}
	asked := map[string][]Question{}
	for _, b := range r.blocks {
		questions, asksNomad, err := b.kind.questions(cfg.Env)
		if err != nil {
			return all, err
		}
		asked[b.Vault] = append(asked[b.Vault], questions...)
		if asksNomad {
			all.Nomad = append(all.Nomad, b.name)
		}
		asksVault := func(q Question) bool { return q.Request.Op != "" }
		if slices.ContainsFunc(questions, asksVault) && slices.ContainsFunc(b.outputs, r.onDisk) {
			all.OnDisk = append(all.OnDisk, b.name)
		}
	}
	if _, err := taskOwner(cfg, &conf, r.blocks, op); err != nil {
		return all, err
	}
	all.Vaults, err = uses(op, conf, asked)
	return all, err
}

// onDisk reports whether an output is a file with secrets outside of the task's secrets directory.
func (r *Renderer) onDisk(o output) bool {
	return o.path != "" && !o.public && !strings.HasPrefix(o.path, r.below("secrets")+"/")
}

// uses returns the task's vault blocks with what is asked there, by their names.
func uses(op config.Operator, conf config.Task, asked map[string][]Question) ([]Use, error) {
	if a := conf.Auth; a.FromVault() {
		asked[a.Vault] = append(asked[a.Vault], Question{Block: "auth", Request: authRequest(a)})
	}
	blocks := conf.Vaults
	if !conf.HasVault("default") && len(asked["default"]) > 0 {
		blocks = append([]config.Vault{conf.Vault("default")}, blocks...)
	}
	var all []Use
	for _, block := range blocks {
		server, err := op.Cluster(block.Cluster)
		if err != nil {
			return nil, err
		}
		use := Use{Vault: block, Server: server, Questions: asked[block.Name]}
		for _, name := range slices.Sorted(maps.Keys(conf.Doors)) {
			if conf.Doors[name].Common().Vault == block.Name {
				use.Doors = append(use.Doors, name)
			}
		}
		all = append(all, use)
	}
	return all, nil
}

// questions are those of one template, without executing it.
func (t templateBlock) questions(env map[string]string) (all []Question, asksNomad bool, err error) {
	if t.Source != "" {
		text := fmt.Sprintf("source %q, a file of the task", t.Source)
		return []Question{{Block: fmt.Sprintf("template %q", t.Destination), Text: text}}, false, nil
	}
	parsed, err := t.parse(t.Data, env, nil)
	if err != nil {
		return nil, false, err
	}
	return asked(parsed, fmt.Sprintf("template %q", t.Destination)), parsed.AsksNomad(), nil
}

// asked are the questions of a template to Vault; block is how messages name it.
func asked(parsed *template.Template, block string) (all []Question) {
	lookups := map[string][]template.Lookup{}
	for _, l := range parsed.Lookups() {
		lookups[l.Path] = append(lookups[l.Path], l)
	}
	for _, ask := range parsed.Asks() {
		q := Question{Block: fmt.Sprintf("%s line %d", block, ask.Line), Text: ask.Text,
			Request: vault.Request{Op: vault.Read, Path: ask.Path, Optional: ask.Func == "secretExists"}}
		switch {
		case ask.Write:
			q.Request.Op = vault.Write
		case ask.Func == "secrets":
			q.Request.Op = vault.List
		default:
			q.Lookups = lookups[ask.Path]
		}
		all = append(all, q)
	}
	return all
}

func (s secretBlock) questions(map[string]string) ([]Question, bool, error) {
	return []Question{{Block: s.String(), Request: s.request()}}, false, nil
}

func (p pkiBlock) questions(map[string]string) ([]Question, bool, error) {
	all := []Question{{Block: p.String(), Request: p.request()}}
	if p.Revoke {
		all = append(all, Question{Block: p.String(), Request: vault.Request{Op: vault.Write, Path: p.RevokedAt()}})
	}
	return all, false, nil
}

// parse checks the template's text. In data the agent has replaced ${...} by values of the task's environment; a
// source is as it was.
func (t templateBlock) parse(text string, env map[string]string, all *template.Budget) (*template.Template, error) {
	spec := template.Spec{Name: t.Destination, Data: text, LeftDelim: t.LeftDelimiter, RightDelim: t.RightDelimiter,
		ErrorOnMissingKey: t.ErrorOnMissingKey, Env: t.Env, Budget: all}
	if t.Source == "" {
		spec.Values = env
	}
	return template.Parse(spec)
}
