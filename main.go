// Command nomad-driver-vault is a Nomad task driver plugin: one of Nomad's own drivers, with what each of its tasks
// needs from Vault. Nomad starts it from plugin_dir. Which driver it wraps is in the name it is started by, a link
// such as vault-docker, or in the args of its plugin block.
//
// Whoever else starts it is a person, who gets the subcommands of package operator and those below it.
//
// A first argument of doors makes it the process that serves the tasks' doors, which the plugin starts.
//
// A first argument of executor, docker_logger or init never gets here, whoever starts it: Nomad's drivers start this
// binary again with those and take over in their packages' init functions.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins"
	"github.com/hashicorp/nomad/plugins/base"

	"nomad-driver-vault/driver/door/process"
	_ "nomad-driver-vault/internal/inherited" // initialises before the executor does
	"nomad-driver-vault/operator"
	"nomad-driver-vault/plugin"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == process.Argument {
		os.Exit(process.Main(os.Args[2:], process.Kinds))
	}
	if os.Getenv(base.Handshake.MagicCookieKey) == "" {
		os.Exit(command(os.Args, operator.Terminal{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}
	parent := os.Getppid()
	o, err := parse(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-vault:", err)
		os.Exit(2)
	}
	if err := scrub(o.driver); err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-vault:", err)
		os.Exit(1)
	}
	var served *plugin.Plugin
	plugins.ServeCtx(func(ctx context.Context, logger hclog.Logger) any {
		served = plugin.New(ctx, logger, o.driver, o.name)
		go served.EndOrphan(parent)
		return served
	})
	served.End()
}

// options are what the args of a plugin block ask for.
type options struct {
	driver string // the wrapped driver, one of plugin.Drivers
	name   string // what Nomad knows us by
}

// publishedBy is parse for a plugin block of an agent's configuration: the file's name and its args.
func publishedBy(args []string) (wraps, name string, err error) {
	o, err := parse(args)
	return o.driver, o.name, err
}

// nameRule is what can stand in a job's driver field and in an attribute's name.
var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)

// flags returns the plugin's flags, which set o. linked is the driver that the name of the file says, if it says one.
func (o *options) flags(linked string) *flag.FlagSet {
	flags := flag.NewFlagSet("nomad-driver-vault", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.driver, "driver", linked, "the driver to wrap: "+strings.Join(plugin.Drivers(), ", "))
	flags.StringVar(&o.name, "name", "", "the name jobs use (default \"vault-<driver>\")")
	return flags
}

// parse reads the arguments, the program's own name first. An error names the flag.
func parse(args []string) (options, error) {
	var o options
	linked, isLink := strings.CutPrefix(filepath.Base(args[0]), "vault-")
	if !isLink {
		linked = ""
	}
	flags := o.flags(linked)
	if err := flags.Parse(args[1:]); err != nil {
		return o, fmt.Errorf("%w; nomad-driver-vault -h shows the flags", err)
	}
	if o.name == "" {
		o.name = "vault-" + o.driver
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("argument %q is not understood; nomad-driver-vault -h shows the flags", flags.Arg(0))
	case !slices.Contains(plugin.Drivers(), o.driver):
		return o, fmt.Errorf("no driver to wrap: set -driver to one of %s, or start it by a link named vault-<driver>",
			strings.Join(plugin.Drivers(), ", "))
	case !nameRule.MatchString(o.name):
		return o, fmt.Errorf("-name %q: use lower case letters, digits, - and _", o.name)
	}
	return o, nil
}

// scrub takes the agent's own Vault settings out of the environment, which the Vault API client would read on every
// request, and hides its home directory, where a ~/.vault-token may lie. HOME is set and not unset because a library
// asks getent for it in each executor otherwise; docker keeps it for its credential helpers.
//
// The environment of tasks is not made from ours: Nomad sends it with each task, and plugin adds the host's part only
// where Nomad leaves it out.
func scrub(driver string) error {
	for _, entry := range os.Environ() {
		if key, _, _ := strings.Cut(entry, "="); strings.HasPrefix(key, "VAULT_") {
			if err := os.Unsetenv(key); err != nil {
				return fmt.Errorf("unset %s: %w", key, err)
			}
		}
	}
	if driver == "docker" {
		return nil
	}
	return os.Setenv("HOME", "/nonexistent")
}
