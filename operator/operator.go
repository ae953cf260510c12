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
	"slices"
	"strings"
)

// A Terminal is where a subcommand reads answers and writes.
type Terminal struct {
	In       io.Reader
	Out, Err io.Writer
}

// A Command is a subcommand. Run gets the arguments after its name, and returns nil, an error of ParseFlags,
// ErrReported or any other error, which is then printed.
type Command struct {
	Name    string
	Summary string // what it does, in one line
	Run     func(ctx context.Context, args []string, t Terminal) error
}

// ErrReported is returned by a command that has printed itself what is wrong.
var ErrReported = errors.New("problems were reported")

// Exit codes of the subcommands.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// Run runs the command that args begin with and returns its exit code: 0 if it succeeded or printed its help, 1 if it
// failed, 2 for a wrong command line. known is false if args begin with none of the commands.
func Run(commands []Command, args []string, t Terminal) (code int, known bool) {
	if len(args) == 0 {
		return exitOK, false
	}
	i := slices.IndexFunc(commands, func(c Command) bool { return c.Name == args[0] })
	if i < 0 {
		return exitOK, false
	}
	err := commands[i].Run(context.Background(), args[1:], t)
	var wrong UsageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK, true
	case errors.As(err, &wrong):
		fmt.Fprintf(t.Err, "nomad-driver-vault %s: %v; -h shows the flags\n", args[0], err)
		return exitUsage, true
	case !errors.Is(err, ErrReported):
		fmt.Fprintf(t.Err, "nomad-driver-vault %s: %v\n", args[0], err)
	}
	return exitFailed, true
}

// Names returns the names of the commands, for a sentence: "check, setup".
func Names(commands []Command) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
}

// A UsageError is a mistake in the command line.
type UsageError struct{ Err error }

// Error is the text of the mistake.
func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns what caused it.
func (e UsageError) Unwrap() error { return e.Err }

// Usagef returns a UsageError; format may have %w.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// ParseFlags parses the arguments of the command that flags are named after. It returns flag.ErrHelp after it printed
// the help, which is what about says of the command and the flags, and a UsageError for an unknown flag, a wrong
// value or an argument that is left over.
func ParseFlags(flags *flag.FlagSet, about string, args []string, t Terminal) error {
	if err := ParseArgs(flags, "", about, args, t); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return Usagef("argument %q is not understood", flags.Arg(0))
	}
	return nil
}

// ParseArgs is ParseFlags for a command with arguments after its flags, which the help calls operands.
func ParseArgs(flags *flag.FlagSet, operands, about string, args []string, t Terminal) error {
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage := strings.TrimSpace("[flags] " + operands)
		fmt.Fprintf(t.Out, "Usage: nomad-driver-vault %s %s\n\n%s\n\n", flags.Name(), usage, about)
		flags.SetOutput(t.Out)
		flags.PrintDefaults()
		return err
	case err != nil:
		return UsageError{err}
	}
	return nil
}

// Repeated returns a flag's function that adds each value to the list.
func Repeated(to *[]string) func(string) error {
	return func(value string) error {
		*to = append(*to, value)
		return nil
	}
}
