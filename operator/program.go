package operator

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"
)

// Name is the program's, as a person types it.
const Name = "nomad-driver-vault"

// Exit codes of the subcommands. An unknown subcommand has the library's own, 127, as nomad and vault have it.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// A Program is what a person runs: subcommands, -h, -version, and completion in the shells that the library knows.
type Program struct {
	Version  string // what -version prints
	About    string // what -h says above the list of subcommands
	Notes    string // and below it
	Commands []Command
}

// Run runs what args ask for and returns the exit code: 0 if it succeeded or printed its help, 1 if it failed, 2 for a
// wrong command line.
func (p Program) Run(args []string, t Terminal) int {
	c := cli.NewCLI(Name, p.Version)
	c.Args, c.HelpWriter, c.ErrorWriter = args, t.Out, t.Err
	c.Commands = make(map[string]cli.CommandFactory, len(p.Commands))
	for _, command := range p.Commands {
		c.Commands[command.Name] = func() (cli.Command, error) { return subcommand{command, t}, nil }
	}
	c.HelpFunc = func(commands map[string]cli.CommandFactory) string {
		if unknown := c.Subcommand(); unknown != "" && !c.IsHelp() {
			return fmt.Sprintf("%s: %q is no subcommand: use one of %s; -h lists them", Name, unknown,
				strings.Join(slices.Sorted(maps.Keys(commands)), ", "))
		}
		return p.help()
	}
	code, err := c.Run()
	if err != nil {
		fmt.Fprintf(t.Err, "%s: %v\n", Name, err)
	}
	return code
}

// help is what -h prints. The library adds the last newline.
func (p Program) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s <subcommand> [flags]\n\n%s\n\nSubcommands, each with a -h of its own:\n\n", Name, p.About)
	for _, c := range slices.SortedFunc(slices.Values(p.Commands), func(a, b Command) int {
		return strings.Compare(a.Name, b.Name)
	}) {
		fmt.Fprintf(&b, "  %-8s  %s\n", c.Name, c.Summary)
	}
	fmt.Fprintf(&b, `
Flags:

  -version
    	print the version; the subcommand version says more
  -autocomplete-install
    	let bash, zsh or fish complete subcommands and flags, by a line in the files that they read at their start
  -autocomplete-uninstall
    	remove that line

%s`, p.Notes)
	return b.String()
}

// A subcommand is a Command as the library wants it.
type subcommand struct {
	Command
	terminal Terminal
}

// Synopsis is the line of the list of subcommands.
func (s subcommand) Synopsis() string { return s.Summary }

// Help is what -h prints. The library adds the last newline.
func (s subcommand) Help() string {
	flags, _ := s.flags()
	usage, list := []string{"Usage:", Name, s.Name}, strings.Builder{}
	flags.SetOutput(&list)
	if flags.PrintDefaults(); list.Len() > 0 {
		usage = append(usage, "[flags]")
	}
	if s.Operands != "" {
		usage = append(usage, s.Operands)
	}
	help := strings.Join(usage, " ") + "\n\n" + s.About
	if list.Len() > 0 {
		help += "\n\nFlags:\n\n" + strings.TrimSuffix(list.String(), "\n")
	}
	return help
}

// Run runs the command and returns the exit code.
func (s subcommand) Run(args []string) int {
	flags, run := s.flags()
	err := flags.Parse(args)
	switch {
	case err != nil:
		err = UsageError{err}
	case flags.NArg() > 0 && s.Operands == "":
		err = Usagef("argument %q is not understood", flags.Arg(0))
	default:
		err = run(context.Background(), flags.Args(), s.terminal)
	}
	var wrong UsageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(s.terminal.Err, "%s %s: %v; -h shows the flags\n", Name, s.Name, err)
		return exitUsage
	case !errors.Is(err, ErrReported):
		fmt.Fprintf(s.terminal.Err, "%s %s: %v\n", Name, s.Name, err)
	}
	return exitFailed
}

// flags returns a new set of the command's flags, and what runs with their values.
func (s subcommand) flags() (*flag.FlagSet, Run) {
	flags := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	return flags, s.Flags(flags)
}

// AutocompleteFlags tells a shell the flags, and what their values are by the names that the help gives them.
func (s subcommand) AutocompleteFlags() complete.Flags {
	all := complete.Flags{}
	flags, _ := s.flags()
	flags.VisitAll(func(f *flag.Flag) {
		value, _ := flag.UnquoteUsage(f)
		all["-"+f.Name] = predictor(value)
	})
	return all
}

// AutocompleteArgs tells a shell what the operands are.
func (s subcommand) AutocompleteArgs() complete.Predictor {
	return predictor(strings.ToLower(strings.TrimSuffix(s.Operands, "...")))
}

// predictor returns what completes a value of which the help says that it is a file, a folder, nothing, or anything
// else.
func predictor(value string) complete.Predictor {
	switch value {
	case "file":
		return complete.PredictFiles("*")
	case "folder":
		return complete.PredictDirs("*")
	case "":
		return complete.PredictNothing
	default:
		return complete.PredictAnything
	}
}
