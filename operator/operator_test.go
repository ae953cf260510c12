package operator

import (
	"context"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestRunLeavesThePluginsOwnArgumentsAlone(t *testing.T) {
	commands := []Command{{Name: "setup"}}
	for _, args := range [][]string{nil, {"-driver=exec"}, {"serve"}, {"-setup"}} {
		_, known := Run(commands, args, Terminal{})
		must.False(t, known, must.Sprint(args))
	}
}

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
		"help names what it does":          {args: []string{"-h"}, out: "Usage: nomad-driver-vault try [flags]\n\nTries it."},
	} {
		t.Run(sentence, func(t *testing.T) {
			try := Command{Name: "try", Run: func(_ context.Context, args []string, t Terminal) error {
				flags := flag.NewFlagSet("try", flag.ContinueOnError)
				flags.Bool("hard", false, "more than once")
				if err := ParseFlags(flags, "Tries it.", args, t); err != nil {
					return err
				}
				return c.fails
			}}
			var out, stderr strings.Builder
			code, known := Run([]Command{try}, append([]string{"try"}, c.args...), Terminal{Out: &out, Err: &stderr})
			must.True(t, known)
			must.Eq(t, c.code, code)
			must.StrHasPrefix(t, c.out, out.String())
			must.StrContains(t, stderr.String(), c.says)
			must.Eq(t, c.says == "", stderr.String() == "")
			must.LessEq(t, 1, strings.Count(stderr.String(), "\n"))
		})
	}
}
