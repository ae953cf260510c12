package render

import (
	"context"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/template"
)

// block is how a template, secret, pki or door block is rendered: bytes for files, for the environment and for doors,
// made of one snapshot with those of all others.
type block struct {
	*config.Output
	kind    kind
	name    string // in messages: template "secrets/db.env"
	what    string // in reports of a change
	outputs []output
	secret  bool // no template: its files belong to the task's user, and no other block may set its variables
}

// output is one of the things that a block makes.
type output struct {
	key         string                                  // of its bytes in generations and records
	option      string                                  // that names the destination
	destination string                                  // as the job's author wrote it; empty: no file
	public      bool                                    // everybody may read the file, whatever perms says
	path        string                                  // of the file, with slashes, below the allocation's directory
	env         func([]byte) (map[string]string, error) // decodes the bytes into variables; nil: it sets none
}

// kind is what differs between the kinds of blocks.
type kind interface {
	// prepare finds what is wrong in the block before Vault is asked. asks means that rendering it always asks Vault.
	prepare(*Renderer) (render renderFunc, asks bool, err error)
	// questions are what the block asks Vault, as far as its text and the task's environment tell. asksNomad means that
	// it asks for services or variables, too.
	questions(env map[string]string) (all []Question, asksNomad bool, err error)
}

// renderFunc makes the bytes of each output of a block. None, without an error, means that there is nothing yet.
type renderFunc func(ctx context.Context, from *credentials.Source, in template.Input) ([][]byte, error)

func newBlock(c config.Block) *block {
	b := &block{Output: c.Common(), name: c.String(), what: c.String()}
	switch c := c.(type) {
	case *config.Template:
		b.kind, b.what, b.outputs = templateBlock{c}, c.Destination, templateOutputs(c)
	case *config.Secret:
		b.kind, b.secret, b.outputs = secretBlock{c}, true, secretOutputs(c)
	case *config.PKI:
		b.kind, b.secret, b.outputs = pkiBlock{c}, true, pkiOutputs(c)
	case *config.Door:
		b.kind, b.secret, b.outputs = doorBlock{Door: c}, true, []output{{key: DoorSum(c.Label)}}
	}
	return b
}

type templateBlock struct{ *config.Template }

func templateOutputs(t *config.Template) []output {
	o := output{key: t.Destination, option: "destination", destination: t.Destination}
	if t.Env {
		o.env = template.ParseEnv
	}
	return []output{o}
}

func (t templateBlock) prepare(r *Renderer) (render renderFunc, asks bool, err error) {
	data, err := r.text(t.Template)
	if err != nil {
		return nil, false, err
	}
	parsed, err := t.parse(data, r.cfg.Env, r.budget)
	if err != nil {
		return nil, false, err
	}
	return func(ctx context.Context, from *credentials.Source, in template.Input) ([][]byte, error) {
		in.Source = from
		output, err := parsed.Execute(ctx, in)
		return [][]byte{output}, err
	}, parsed.AlwaysAsks(), nil
}

// change returns what new bytes of the block ask for.
func (b *block) change() Change {
	c := Change{what: []string{b.what}}
	if _, c.Doors = b.kind.(doorBlock); c.Doors {
		return c
	}
	switch b.ChangeMode {
	case "restart":
		c.Restart = true
	case "script":
		c.scripts = []*config.ChangeScript{b.ChangeScript}
	case "signal":
		c.signals = []string{b.ChangeSignal}
	default:
		c.Silent = true
		return c
	}
	c.Splay = b.SplayMax
	return c
}
