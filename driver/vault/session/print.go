package session

import (
	"fmt"
	"io"
)

// What has tokens and secrets in it keeps them out of logs, errors and panics. fmt would look into unexported fields
// and map keys without asking their types.

// Format keeps the token and the secrets out of logs, errors and panics.
func (s *Session) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[session with role %q]", s.role) }

// Format keeps what was read out of logs, errors and panics.
func (r *Reading) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[reading %d]", r.n) }

func (it *item) Format(f fmt.State, _ rune) { it.req.Format(f, 'v') }

func (sp spent) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[spent %s]", sp.ID) }

func (in *saved) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[saved session]") }
