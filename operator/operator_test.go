package operator

import (
	"context"
	"errors"
	"flag"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestRunSaysWhatIsWrongAndReturnsTheExitCode(t *testing.T) {
	for sentence, c := range map[string]struct {
		args      []string
		fails     error
		code      int
		out, says string
	}{
		"it succeeds": {args: nil},
		"it fails": {fails: errors.New("no Vault"), code: 1,
			says: "nomad-driver-vault try: no Vault\n"},
		"it said itself why": {fails: ErrReported, code: 1},
		"an unknown flag": {args: []string{"-x"}, code: 2,
			says: "nomad-driver-vault try: flag provided but not defined: -x; -h shows the flags\n"},
		"an argument": {args: []string{"now"}, code: 2,
			says: "nomad-driver-vault try: argument \"now\" is not understood; -h shows the flags\n"},
		"a wrong value, found by the flag": {args: []string{"-hard=maybe"}, code: 2, says: "-hard"},
		"help names what it does": {args: []string{"-h"},
			out: "Usage: nomad-driver-vault try [flags]\n\nTries it.\n\nFlags:\n\n  -hard\n    \tmore than once\n"},
	} {
		t.Run(sentence, func(t *testing.T) {
			try := Command{Name: "try", About: "Tries it.", Flags: func(flags *flag.FlagSet) Run {
				flags.Bool("hard", false, "more than once")
				return func(context.Context, []string, Terminal) error { return c.fails }
			}}
			var out, stderr strings.Builder
			code := Program{Commands: []Command{try}}.Run(append([]string{"try"}, c.args...), Terminal{Out: &out, Err: &stderr})
			must.Eq(t, c.code, code)
			must.Eq(t, c.out, out.String())
			must.StrContains(t, stderr.String(), c.says)
			must.Eq(t, c.says == "", stderr.String() == "")
			must.LessEq(t, 1, strings.Count(stderr.String(), "\n"))
		})
	}
}

func TestProgramNamesItsSubcommands(t *testing.T) {
	none := func(*flag.FlagSet) Run {
		return func(_ context.Context, operands []string, t Terminal) error {
			_, err := t.Out.Write([]byte(strings.Join(operands, ",")))
			return err
		}
	}
	p := Program{Version: "it 1.2.3", About: "It does much.", Notes: "No more.", Commands: []Command{
		{Name: "try", Summary: "try it", Flags: none, Operands: "FILE..."}, {Name: "end", Summary: "end it", Flags: none}}}
	for args, c := range map[string]struct {
		code      int
		out, says string
	}{
		"-version": {out: "^it 1.2.3\n$"},
		"-h":       {out: `(?s)^Usage: .*It does much\.\n.*  end       end it\n  try       try it\n.*No more\.\n$`},
		"":         {code: 127, says: `(?s)It does much`},
		"nothing":  {code: 127, says: `^nomad-driver-vault: "nothing" is no subcommand: use one of end, try; -h lists them\n$`},
		"try -h":   {out: `^Usage: nomad-driver-vault try FILE\.\.\.\n`},
		"try a b":  {out: "^a,b$"},
		"end a":    {code: 2, says: `^nomad-driver-vault end: argument "a" is not understood; -h shows the flags\n$`},
	} {
		t.Run(args, func(t *testing.T) {
			var out, stderr strings.Builder
			must.Eq(t, c.code, p.Run(strings.Fields(args), Terminal{Out: &out, Err: &stderr}))
			must.RegexMatch(t, regexp.MustCompile(c.out), out.String())
			must.RegexMatch(t, regexp.MustCompile(c.says), stderr.String())
			must.Eq(t, c.says == "", stderr.String() == "")
		})
	}
}
