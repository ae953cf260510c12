package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"nomad-driver-vault/operator"
	"nomad-driver-vault/operator/check"
	"nomad-driver-vault/operator/convert"
	"nomad-driver-vault/operator/setup"
	"nomad-driver-vault/operator/status"
	"nomad-driver-vault/plugin"
)

// command runs what a person has typed, the program's own name first, and returns the exit code.
func command(args []string, t operator.Terminal) int {
	if name := filepath.Base(args[0]); slices.Contains(plugin.Drivers(), name) {
		fmt.Fprintf(t.Err, "%s is a link to %s here, a plugin of Nomad, which does nothing in place of %s: "+
			"keep the link in plugin_dir, out of PATH\n", args[0], operator.Name, name)
		return 2
	}
	return program().Run(args[1:], t)
}

// program is what a person runs.
func program() operator.Program {
	var notes strings.Builder
	flags := new(options).flags("")
	flags.SetOutput(&notes)
	flags.PrintDefaults()
	return operator.Program{
		Version: operator.Name + " " + plugin.Version,
		About: "A Nomad task driver plugin that gives tasks what they need from Vault. The agent starts it from its\n" +
			"plugin_dir, by a link for each driver. What a person runs are its subcommands.",
		Notes: "Flags for the args of a plugin block in the agent's configuration:\n\n" +
			strings.TrimSuffix(notes.String(), "\n"),
		Commands: []operator.Command{setup.Command(), check.Command(publishedBy), convert.Command(), status.Command(),
			{Name: "version", Summary: "show what this program was built from", About: "Shows the version, the commit, " +
				"and the versions of Nomad, consul-template and Go that are inside.", Flags: versionFlags}},
	}
}

func versionFlags(*flag.FlagSet) operator.Run {
	return func(_ context.Context, _ []string, t operator.Terminal) error {
		built, _ := debug.ReadBuildInfo()
		return printVersion(t.Out, built)
	}
}

// printVersion prints our version and what the program was built from. A build outside of a git repository has no
// commit.
func printVersion(w io.Writer, built *debug.BuildInfo) error {
	found := map[string]string{}
	if built != nil {
		for _, s := range built.Settings {
			found[s.Key] = s.Value
		}
		for _, m := range built.Deps {
			found[m.Path] = m.Version
		}
	}
	commit := cmp.Or(found["vcs.revision"], "unknown")
	if found["vcs.modified"] == "true" {
		commit += ", modified"
	}
	_, err := fmt.Fprintf(w, `%s %s
Commit           %s
Nomad            %s
consul-template  %s
Go               %s %s/%s
`, operator.Name, plugin.Version, commit, found["github.com/hashicorp/nomad"],
		found["github.com/hashicorp/consul-template"], runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
