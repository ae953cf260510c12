// Package operator is what the subcommands share that a person runs by hand: the command line, the operator's Vault,
// the jobspec and the agent's configuration. Each subcommand is a package below it. None of them is part of the
// plugin that serves an agent.
package operator

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
)

// A Terminal is where a subcommand reads answers and writes.
type Terminal struct {
	In       io.Reader
	Out, Err io.Writer
}

// A Command is a subcommand.
type Command struct {
	Name     string
	Summary  string // what it does, in one line
	About    string // the same at length, with its exit codes
	Operands string // what stands after the flags, as in "FILE..."; where it is empty, nothing may

	// Flags adds the command's flags to a set, and returns what runs with the values that they will have.
	Flags func(*flag.FlagSet) Run
}

// Run runs a command. It returns a UsageError, ErrReported, or any other error, which is then printed.
type Run func(ctx context.Context, operands []string, t Terminal) error

// ErrReported is returned by a command that has printed itself what is wrong.
var ErrReported = errors.New("problems were reported")

// A UsageError is a mistake in the command line.
type UsageError struct{ Err error }

// Error is the text of the mistake.
func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns what caused it.
func (e UsageError) Unwrap() error { return e.Err }

// Usagef returns a UsageError; format may have %w.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Repeated returns a flag's function that adds each value to the list.
func Repeated(to *[]string) func(string) error {
	return func(value string) error {
		*to = append(*to, value)
		return nil
	}
}
