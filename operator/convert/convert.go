// Package convert rewrites a jobspec that uses Nomad's own vault and template blocks into one for this plugin. It
// edits the file's text, so that comments and layout stay, and names what a person has to decide.
package convert

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/pmezard/go-difflib/difflib"

	"nomad-driver-vault/operator"
)

const about = `Rewrites jobs (HCL) of Nomad's drivers docker, exec and raw_exec that use Nomad's vault and template blocks
into jobs for vault-docker, vault-exec and vault-raw_exec. It prints what it would change as a unified diff, and on the
standard error, a line each, what a person has to decide. Nobody is asked, and a job that is converted stays as it is.

The exit code is 1 if a file cannot be read, parsed or written, and with -check also if something would change or has to
be decided; 2 for wrong flags.`

// Command returns the subcommand.
func Command() operator.Command {
	return operator.Command{Name: "convert", Summary: "rewrite jobs that use Nomad's own vault and template blocks",
		About: about, Operands: "FILE...", Flags: flags}
}

// options are what the command line asks for.
type options struct {
	audience     string
	write, check bool
}

func flags(flags *flag.FlagSet) operator.Run {
	o := new(options)
	flags.BoolVar(&o.write, "w", false, "write the files in place of printing a diff")
	flags.BoolVar(&o.check, "check", false, "exit with 1 if something would change or has to be decided")
	flags.StringVar(&o.audience, "audience", "vault.io",
		"aud of the identity blocks, as default_identity of the agents has it")
	return func(_ context.Context, files []string, t operator.Terminal) error {
		switch {
		case len(files) == 0:
			return operator.Usagef("name a jobspec, for example api.nomad.hcl")
		case o.write && o.check:
			return operator.Usagef("-w and -check exclude each other")
		}
		var failed []error
		for _, name := range files {
			failed = append(failed, o.convert(name, t))
		}
		return errors.Join(failed...)
	}
}

// convert converts one file. It returns ErrReported if -check has found something.
func (o options) convert(name string, t operator.Terminal) error {
	text, err := os.ReadFile(filepath.Clean(name))
	if err != nil {
		return fmt.Errorf("read jobspec: %w", err)
	}
	made, findings, err := rewrite(jobspec{name: name, text: text, audience: o.audience})
	if err != nil {
		return err
	}
	for _, f := range findings {
		fmt.Fprintf(t.Err, "%s:%d: %s\n", name, f.line, f.says)
	}
	changed := string(made) != string(text)
	switch {
	case changed && o.write:
		err = replace(name, made)
	case changed:
		err = printDiff(t.Out, name, string(text), string(made))
	}
	if err == nil && o.check && (changed || len(findings) > 0) {
		return operator.ErrReported
	}
	return err
}

func printDiff(w io.Writer, name, before, after string) error {
	return difflib.WriteUnifiedDiff(w, difflib.UnifiedDiff{A: difflib.SplitLines(before), B: difflib.SplitLines(after),
		FromFile: name, ToFile: name + " (converted)", Context: 3})
}

// replace puts text in the place of the file that name leads to, at once and with the mode of before.
func replace(name string, text []byte) error {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return fmt.Errorf("write jobspec: %w", err)
	}
	before, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("write jobspec: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("write jobspec: %w", err)
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Chmod(before.Mode().Perm()), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write jobspec: %w", errors.Join(err, os.Remove(file.Name())))
	}
	return nil
}
