package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/plugins/base"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/plugin"
)

// TestMain lets a test start this binary as the program.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_MAIN") == "" {
		os.Exit(m.Run())
	}
	main()
}

// typed runs the program as a shell does, by a name and with variables of the shell.
func typed(t *testing.T, env []string, args ...string) (out, stderr string, code int) {
	t.Helper()
	run := exec.Command(os.Args[0])
	run.Args = args
	run.Env = append([]string{"RUN_MAIN=1"}, env...)
	var said, warned strings.Builder
	run.Stdout, run.Stderr = &said, &warned
	if err := run.Run(); err != nil {
		must.ErrorAs(t, err, new(*exec.ExitError))
	}
	return said.String(), warned.String(), run.ProcessState.ExitCode()
}

func TestLinkWithADriversNameInPATHSaysWhatItIs(t *testing.T) {
	for _, name := range []string{"docker", "/usr/local/bin/docker", "exec", "raw_exec"} {
		for _, args := range [][]string{{}, {"ps"}, {"version"}, {"-h"}} {
			out, stderr, code := typed(t, nil, append([]string{name}, args...)...)
			must.Eq(t, 2, code)
			must.Eq(t, "", out)
			must.StrHasPrefix(t, name+" is a link to nomad-driver-vault here", stderr)
			must.Eq(t, 1, strings.Count(stderr, "\n"))
		}
	}
	for _, name := range []string{"nomad-driver-vault", "vault-docker", "ndv"} {
		out, stderr, code := typed(t, nil, name, "-version")
		must.Zero(t, code, must.Sprint(stderr))
		must.Eq(t, "nomad-driver-vault "+plugin.Version+"\n", out)
	}
}

func TestShellsCompleteSubcommandsFlagsAndFiles(t *testing.T) {
	for line, want := range map[string][]string{
		"nomad-driver-vault ch":                    {"check"},
		"nomad-driver-vault ":                      {"check", "convert", "setup", "status", "version"},
		"nomad-driver-vault status -w":             {"-watch"},
		"nomad-driver-vault check -job example/ex": {"example/exec.nomad.hcl"},
		"nomad-driver-vault convert example/exec.": {"example/exec.nomad.hcl"},
		"nomad-driver-vault check -alloc ex":       {},
		"nomad-driver-vault status -state-dir exa": {"example/"},
	} {
		t.Run(line, func(t *testing.T) {
			words := strings.Split(line, " ") // as bash calls it: the command, the last word, the one before
			out, _, code := typed(t, []string{"COMP_LINE=" + line}, "nomad-driver-vault", "nomad-driver-vault",
				words[len(words)-1], words[len(words)-2])
			must.Zero(t, code)
			got := strings.Fields(out)
			slices.Sort(got)
			must.Eq(t, want, slices.DeleteFunc(got, func(s string) bool { return line[len(line)-1] == ' ' && s[0] == '-' }))
		})
	}
}

// TestAgentStartsThePlugin looks at what go-plugin gets, which starts it with Nomad's cookie.
func TestAgentStartsThePlugin(t *testing.T) {
	cookie := base.Handshake.MagicCookieKey + "=" + base.Handshake.MagicCookieValue
	for name, args := range map[string][]string{
		"a link":             {"/opt/nomad/plugins/vault-raw_exec"},
		"a driver's name":    {"/opt/nomad/plugins/docker", "-driver", "raw_exec", "-name", "raw_exec"},
		"the binary's name":  {"/opt/nomad/plugins/nomad-driver-vault", "-driver=raw_exec"},
		"args that are ours": {"/opt/nomad/plugins/vault-raw_exec", "-driver=raw_exec", "-name=status"},
	} {
		t.Run(name, func(t *testing.T) {
			run := exec.Command(os.Args[0])
			run.Args, run.Env = args, []string{"RUN_MAIN=1", cookie, "TMPDIR=" + t.TempDir()}
			out, err := run.StdoutPipe()
			must.NoError(t, err)
			must.NoError(t, run.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			must.NoError(t, err)
			must.RegexMatch(t, regexp.MustCompile(`^1\|2\|unix\|/.*\|grpc\|`), line)
			must.NoError(t, run.Process.Kill())
			_ = run.Wait()
		})
	}
	_, stderr, code := typed(t, []string{cookie}, "nomad-driver-vault", "status")
	must.Eq(t, 2, code)
	must.StrHasPrefix(t, `nomad-driver-vault: argument "status" is not understood`, stderr)
}

func TestVersionSaysWhatIsInside(t *testing.T) {
	var out strings.Builder
	must.NoError(t, printVersion(&out, &debug.BuildInfo{
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "4d9ef00"}, {Key: "vcs.modified", Value: "true"}},
		Deps: []*debug.Module{{Path: "github.com/hashicorp/nomad", Version: "v1.11.3"},
			{Path: "github.com/hashicorp/consul-template", Version: "v0.42.1"}},
	}))
	must.Eq(t, fmt.Sprintf(`nomad-driver-vault %s
Commit           4d9ef00, modified
Nomad            v1.11.3
consul-template  v0.42.1
Go               %s linux/%s
`, plugin.Version, runtime.Version(), runtime.GOARCH), out.String())
}

func TestParse(t *testing.T) {
	for sentence, c := range map[string]struct {
		args []string
		want options
		err  string
	}{
		"the link's name says which driver is wrapped": {
			args: []string{"/opt/plugins/vault-raw_exec"},
			want: options{driver: "raw_exec", name: "vault-raw_exec"},
		},
		"a flag says it where there is no link": {
			args: []string{"nomad-driver-vault", "-driver=docker"},
			want: options{driver: "docker", name: "vault-docker"},
		},
		"the published name can be the built-in driver's": {
			args: []string{"nomad-driver-vault", "-driver", "docker", "-name", "docker"},
			want: options{driver: "docker", name: "docker"},
		},
		"a flag is stronger than the link": {
			args: []string{"vault-exec", "-driver=docker"},
			want: options{driver: "docker", name: "vault-docker"},
		},
		"a subcommand is for a person":            {args: []string{"vault-exec", "setup"}, err: `argument "setup"`},
		"a link with another prefix says nothing": {args: []string{"docker"}, err: "no driver to wrap: set -driver"},
		"an unknown driver is refused":            {args: []string{"vault-java"}, err: "one of docker, exec, raw_exec"},
		"a bad name is refused":                   {args: []string{"vault-exec", "-name=a b"}, err: `-name "a b"`},
		"an argument is refused": {args: []string{"vault-exec", "serve"},
			err: `argument "serve" is not understood`},
		"an unknown flag is refused": {args: []string{"vault-exec", "-x"}, err: "-x; nomad-driver-vault -h shows the flags"},
	} {
		t.Run(sentence, func(t *testing.T) {
			got, err := parse(c.args)
			if c.err != "" {
				must.ErrorContains(t, err, c.err)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.want, got)
		})
	}
}

func TestScrub(t *testing.T) {
	for driver, home := range map[string]string{"exec": "/nonexistent", "raw_exec": "/nonexistent", "docker": "/root/x"} {
		t.Run(driver, func(t *testing.T) {
			t.Setenv("VAULT_TOKEN", "hvs.agent")
			t.Setenv("VAULT_WRAP_TTL", "60s")
			t.Setenv("HOME", "/root/x")
			must.NoError(t, scrub(driver))
			must.Eq(t, "", os.Getenv("VAULT_TOKEN")+os.Getenv("VAULT_WRAP_TTL"))
			must.Eq(t, home, os.Getenv("HOME"))
		})
	}
}

// TestInheritedComesBeforeTheExecutor starts this test binary as Nomad's drivers start an executor: the executor's init
// ends the process, so that only what is initialised before it runs at all. The runtime lists packages in order.
func TestInheritedComesBeforeTheExecutor(t *testing.T) {
	child := exec.Command(os.Args[0], "executor", "not JSON")
	child.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	trace, err := child.CombinedOutput()
	must.Error(t, err, must.Sprint("the executor's init did not run"))
	must.RegexMatch(t, regexp.MustCompile(`(?m)^init nomad-driver-vault/internal/inherited @`), string(trace))
	must.StrNotContains(t, string(trace), "init nomad-driver-vault/plugin @")
}
