package driver

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"nomad-driver-vault/driver/template"
)

// product is what a template, secret or pki block is to the rest of the driver: bytes for files and for the environment, made in
// one pass with those of all others, and what to do when they change.
type product struct {
	*OutputConfig
	config blockConfig
	name   string // in messages: template "secrets/db.env"
	what   string // in the story of a change
	parts  []part
	secret bool // no template: its files are the task's user's, its variables nobody else's
}

// part is one of the things that a block makes.
type part struct {
	key         string                                  // of its bytes in generations and records
	option      string                                  // that names the destination
	destination string                                  // as the job's author wrote it; empty: no file
	public      bool                                    // the file is for everybody to read, whatever perms says
	path        string                                  // of the file, with slashes, below the allocation's directory
	env         func([]byte) (map[string]string, error) // what the bytes are in the task's environment; nil: nothing
}

// blockConfig is a block as the job's author wrote it.
type blockConfig interface {
	check() error
	// prepare reads and checks what can be wrong before Vault is asked.
	prepare(*renderer) (maker, error)
	// questions are what it asks Vault, as far as that can be told without a task but for its environment.
	questions(env map[string]string) ([]Question, error)
}

// maker makes the bytes of each part of a block. None, without an error, means that there is nothing yet.
type maker func(ctx context.Context, from *source, in template.Input) ([][]byte, error)

func (t *TemplateConfig) product(i int) *product {
	p := part{key: t.Destination, option: "destination", destination: t.Destination}
	if t.Env {
		p.env = template.ParseEnv
	}
	return &product{OutputConfig: &t.OutputConfig, config: t, name: "template " + t.label(i), what: t.Destination, parts: []part{p}}
}

// label is how messages name a template: by its destination, or by its place where it has none.
func (t *TemplateConfig) label(i int) string {
	if t.Destination != "" {
		return strconv.Quote(t.Destination)
	}
	return fmt.Sprintf("number %d", i+1)
}

func (t *TemplateConfig) check() error {
	switch {
	case t.Destination == "":
		return errors.New(`destination is missing: name a file such as "secrets/app.env"`)
	case t.Data == "" && t.Source == "":
		return errors.New("neither data nor source is set: give the template's text, or the file it is in")
	case t.Data != "" && t.Source != "":
		return errors.New("both data and source are set: keep one")
	}
	return nil
}

func (t *TemplateConfig) prepare(r *renderer) (maker, error) {
	data, err := r.text(t)
	if err != nil {
		return nil, err
	}
	parsed, err := t.parse(data, r.cfg.Env, r.budget)
	return func(ctx context.Context, from *source, in template.Input) ([][]byte, error) {
		in.Source = from
		output, err := parsed.Execute(ctx, in)
		return [][]byte{output}, err
	}, err
}
