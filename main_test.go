package main

import (
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/shoenig/test/must"
)

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
		"a link with another prefix says nothing": {args: []string{"docker"}, err: "no driver to wrap: set -driver"},
		"an unknown driver is refused":            {args: []string{"vault-java"}, err: "one of docker, exec, raw_exec"},
		"a bad name is refused":                   {args: []string{"vault-exec", "-name=a b"}, err: `-name "a b"`},
		"an argument is refused": {args: []string{"vault-exec", "serve"},
			err: `argument "serve" is no subcommand: use one of`},
		"an unknown flag is refused": {args: []string{"vault-exec", "-x"}, err: "-x; -h shows the flags"},
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
