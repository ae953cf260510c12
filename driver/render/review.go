package render

import (
	"fmt"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// A Use is a vault block of a task and what the task's other blocks ask there.
type Use struct {
	config.Vault
	Server        vault.Cluster // of the plugin's configuration
	IdentityBlock string        // what the task must have, as its author writes it
	Questions     []Question
}

// A Question is what a block asks Vault.
type Question struct {
	Block string // as messages name it, with the line of a template
	Text  string // a template's call as it is written, or why it cannot be read here
	// Request is what the driver would send; its path is empty where only the task can know it.
	Request vault.Request
}

// Review checks a task's config block as a start does, without a task, and returns what would be asked of which
// Vault. Of cfg it needs the name, the environment and the user. The error is the one that the start would fail with.
func Review(op config.Operator, cfg *drivers.TaskConfig, conf config.Task) ([]Use, error) {
	if err := conf.Validate(op.PollInterval); err != nil {
		return nil, err
	}
	if err := conf.Permit(op, cfg.Namespace); err != nil {
		return nil, err
	}
	r, err := New(cfg, &conf, op, nil, nil)
	if err != nil {
		return nil, err
	}
	asked := map[string][]Question{}
	for _, b := range r.blocks {
		questions, err := b.kind.questions(cfg.Env)
		if err != nil {
			return nil, err
		}
		asked[b.Vault] = append(asked[b.Vault], questions...)
	}
	if a := conf.Auth; a.FromVault() {
		asked[a.Vault] = append(asked[a.Vault], Question{Block: "auth", Request: authRequest(a)})
	}
	blocks := conf.Vaults
	if !conf.HasVault("default") && len(asked["default"]) > 0 {
		blocks = append([]config.Vault{conf.Vault("default")}, blocks...)
	}
	var uses []Use
	for _, block := range blocks {
		server, err := op.Cluster(block.Cluster)
		if err != nil {
			return nil, err
		}
		uses = append(uses, Use{Vault: block, Server: server, IdentityBlock: credentials.IdentitySource(block, cfg).Block(),
			Questions: asked[block.Name]})
	}
	return uses, nil
}

// questions are those of one template, without executing it.
func (t templateBlock) questions(env map[string]string) ([]Question, error) {
	if t.Source != "" {
		text := fmt.Sprintf("source %q, a file of the task", t.Source)
		return []Question{{Block: fmt.Sprintf("template %q", t.Destination), Text: text}}, nil
	}
	parsed, err := t.parse(t.Data, env, nil)
	if err != nil {
		return nil, err
	}
	var all []Question
	for _, ask := range parsed.Asks() {
		q := Question{Block: fmt.Sprintf("template %q line %d", t.Destination, ask.Line), Text: ask.Text,
			Request: vault.Request{Op: vault.Read, Path: ask.Path}}
		switch {
		case ask.Write:
			q.Request.Op = vault.Write
		case ask.Func == "secrets":
			q.Request.Op = vault.List
		}
		all = append(all, q)
	}
	return all, nil
}

func (s secretBlock) questions(map[string]string) ([]Question, error) {
	return []Question{{Block: s.String(), Request: s.request()}}, nil
}

func (p pkiBlock) questions(map[string]string) ([]Question, error) {
	all := []Question{{Block: p.String(), Request: p.request()}}
	if p.Revoke {
		all = append(all, Question{Block: p.String(), Request: vault.Request{Op: vault.Write, Path: p.RevokedAt()}})
	}
	return all, nil
}

// parse checks the template's text. In data the agent has replaced ${...} by values of the task's environment; a
// source is as it was.
func (t templateBlock) parse(text string, env map[string]string, all *template.Budget) (*template.Template, error) {
	spec := template.Spec{Name: t.Destination, Data: text, LeftDelim: t.LeftDelimiter, RightDelim: t.RightDelimiter,
		ErrorOnMissingKey: t.ErrorOnMissingKey, Budget: all}
	if t.Source == "" {
		spec.Values = env
	}
	return template.Parse(spec)
}
