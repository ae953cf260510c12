package render

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/internal/logtext"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// In the wrapped driver's own options, $(NAME) stands for a variable that a block sets with env = true, as in the
// command and args of a Pod (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/, args).

// reference matches $(NAME) with all dollars before it, two of which stand for one.
var reference = regexp.MustCompile(`(\$+)\(([A-Za-z_][A-Za-z0-9_.]*)\)`)

// Linux has no longer argument (MAX_ARG_STRLEN in linux/binfmts.h), and by default not more of them together
// (execve(2)).
const (
	maxExpanded    = 128<<10 - 1
	maxAllExpanded = 2 << 20
)

// Expansion is the config block for the wrapped driver in one generation, nil where nothing is replaced. It does not
// print itself.
type Expansion struct {
	options map[string]any
	values  map[string]string // that are in them now, by their variables
}

// String keeps the values out of what is printed.
func (*Expansion) String() string { return "[expanded options]" }

// GoString does so for %#v.
func (*Expansion) GoString() string { return "[expanded options]" }

// expander replaces the variables of env.
type expander struct {
	env     map[string]string
	used    map[string]string
	bytes   int // of what it has made
	changed bool
}

// expand makes the Expansion of a generation with those variables, nil where nothing is replaced. An error names the
// option.
func (r *Renderer) expand(env map[string]string) (*Expansion, error) {
	if !r.setsEnv() {
		return nil, nil
	}
	var options map[string]any
	if err := r.cfg.DecodeDriverConfig(&options); err != nil {
		return nil, fmt.Errorf("decode config block: %w", err)
	}
	x := expander{env: env, used: map[string]string{}}
	ours := config.TaskSpec()
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if ours[name] != nil {
			continue
		}
		var err error
		if options[name], err = x.expand(name, options[name]); err != nil {
			return nil, fmt.Errorf("config %w", err)
		}
	}
	if !x.changed {
		return nil, nil
	}
	return &Expansion{options, x.used}, nil
}

// setsEnv reports whether a block may set variables.
func (r *Renderer) setsEnv() bool {
	return slices.ContainsFunc(r.blocks, func(b *block) bool { return b.Env }) ||
		slices.ContainsFunc(r.conf.Vaults, func(v config.Vault) bool { return v.Env })
}

// expand returns an option's value, of any depth, with its texts expanded.
func (x *expander) expand(option string, value any) (_ any, err error) {
	switch value := value.(type) {
	case string:
		return x.text(option, value)
	case []any:
		for i := range value {
			if value[i], err = x.expand(fmt.Sprintf("%s[%d]", option, i), value[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			if value[key], err = x.expand(option+"."+key, value[key]); err != nil {
				return nil, err
			}
		}
	}
	return value, nil
}

// text expands one text. It looks once at each place: what a value brings stays as it is.
func (x *expander) text(option, text string) (string, error) {
	var wrong error
	size := len(text)
	expanded := reference.ReplaceAllStringFunc(text, func(found string) string {
		parts := reference.FindStringSubmatch(found)
		dollars, name := len(parts[1]), parts[2]
		value, set := x.env[name]
		if dollars%2 == 0 || !set {
			return strings.Repeat("$", dollars/2+dollars%2) + "(" + name + ")"
		}
		if strings.ContainsRune(value, 0) {
			wrong = fmt.Errorf("%s: the value of %s has a NUL byte, which no argument can have: use a file", option, name)
		}
		if size += len(value); size > maxExpanded {
			wrong = fmt.Errorf("%s: longer than %d bytes with the value of %s: use a file", option, maxExpanded, name)
			return ""
		}
		x.used[name] = value
		return strings.Repeat("$", dollars/2) + value
	})
	if expanded != text {
		x.changed, x.bytes = true, x.bytes+len(expanded)
	}
	if wrong == nil && x.bytes > maxAllExpanded {
		wrong = fmt.Errorf("%s: with it, the options are longer than %d bytes: use files", option, maxAllExpanded)
	}
	return expanded, wrong
}

// Give puts the options into the config block of cfg, which has to be the copy for the wrapped driver alone: the task's
// own is what Nomad is given to store.
func (e *Expansion) Give(cfg *drivers.TaskConfig) error {
	if e == nil {
		return nil
	}
	if err := cfg.EncodeConcreteDriverConfig(e.options); err != nil {
		return fmt.Errorf("encode config block: %w", err)
	}
	return nil
}

// Values are the values in the options, by their variables: the wrapped driver must not log them.
func (e *Expansion) Values() map[string]string {
	if e == nil {
		return nil
	}
	return e.values
}

// Conceal returns an error of the wrapped driver without the values, and recoverable if it was. The agent asserts that
// and does not unwrap (plugins/drivers/server.go).
func (e *Expansion) Conceal(err error) error {
	text := logtext.Without(e.Values()).Replace(err.Error())
	if text == err.Error() {
		return err
	}
	if r, ok := err.(structs.Recoverable); ok {
		return structs.NewRecoverableError(errors.New(text), r.IsRecoverable())
	}
	return errors.New(text)
}
