package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestAgentThatRefusesItsConfigurationLeavesNoProcess starts an agent with what an operator may mistype, as systemd
// does it: again and again.
func TestAgentThatRefusesItsConfigurationLeavesNoProcess(t *testing.T) {
	needMachine(t)
	for name, config := range map[string]string{
		"an address":        `vault "default" { address = "vault:8200" }`,
		"a duration":        `start_timeout = "soon"`,
		"an unknown option": `no_such_option = true`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			binary, err := filepath.Abs(cmp.Or(os.Getenv("PLUGIN_BIN"), "../bin/nomad-driver-vault"))
			must.NoError(t, err)
			must.NoError(t, os.Mkdir(filepath.Join(dir, "plugins"), 0o755))
			must.NoError(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o700))
			var blocks string
			for _, driver := range []string{"vault-exec", "vault-raw_exec"} {
				must.NoError(t, os.Symlink(binary, filepath.Join(dir, "plugins", driver)))
				blocks += fmt.Sprintf("plugin %q {\n config {\n %s\n }\n}\n", driver, config)
			}
			file := filepath.Join(dir, "agent.hcl")
			must.NoError(t, os.WriteFile(file, fmt.Appendf(nil,
				"data_dir = %q\nplugin_dir = %q\nclient {\n enabled = true\n}\n%s",
				dir+"/data", dir+"/plugins", blocks), 0o600))
			for range 3 {
				agent := exec.CommandContext(within(t, time.Minute), cmp.Or(os.Getenv("NOMAD_BIN"), "../bin/nomad"), "agent",
					"-config="+file)
				agent.Env = append(os.Environ(), "TMPDIR="+dir+"/tmp")
				out, err := agent.CombinedOutput()
				must.Error(t, err)
				must.StrContains(t, string(out), "plugin", must.Sprint("it is a plugin's configuration that it refuses"))
			}
			eventually(t, 20*time.Second, func() error {
				if left := startedFrom(t, filepath.Join(dir, "plugins")); len(left) > 0 {
					return fmt.Errorf("processes %v are left", left)
				}
				return nil
			})
			sockets, err := filepath.Glob(dir + "/tmp/*")
			must.NoError(t, err)
			must.SliceEmpty(t, sockets)
		})
	}
}

// startedFrom are the processes that were started from a directory.
func startedFrom(t *testing.T, dir string) (pids []string) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must.NoError(t, err)
	for _, file := range all {
		if command, _ := os.ReadFile(file); bytes.HasPrefix(command, []byte(dir+"/")) {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}
