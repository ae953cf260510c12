package setup

import (
	"context"
	"fmt"
	"strings"

	"nomad-driver-vault/operator"
)

// A step is one object in Vault and what happens to it.
type step struct {
	verb   string // create, change, delete, leave
	object string
	detail string // what is written, or why the object stays as it is
	run    func(ctx context.Context) error
}

// leave is the step for an object that stays as it is.
func leave(object, why string) step { return step{"leave", object, why, nil} }

// take runs the step.
func (s step) take(ctx context.Context, vault operator.Vault) error {
	err := s.run(ctx)
	if err == nil {
		return nil
	}
	err = vault.Explain(s.verb+" "+s.object, err)
	if strings.Contains(err.Error(), "checking jwks URL") {
		err = fmt.Errorf("%w; set -jwks-url to Nomad's address as Vault reaches it", err)
	}
	return fmt.Errorf("%w; run setup again for the rest", err)
}
