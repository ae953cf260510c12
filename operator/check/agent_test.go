package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestAnAgentsConfiguration is about what an agent would meet with it: DIR stands for its directory.
func TestAnAgentsConfiguration(t *testing.T) {
	link := func(t *testing.T, file string) {
		self, err := os.Executable()
		must.NoError(t, err)
		must.NoError(t, os.Symlink(self, file))
	}
	write := func(mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, file string) { must.NoError(t, os.WriteFile(file, []byte("x"), mode)) }
	}
	for sentence, c := range map[string]struct {
		plugin  string
		install func(t *testing.T, file string)
		says    string // the beginning of what is not ok
	}{
		"right": {install: link},
		"not installed": {install: func(*testing.T, string) {},
			says: "problem the agent does not find it: stat DIR/plugins/vault-exec"},
		"not executable": {install: write(0o644), says: "problem the agent leaves DIR/plugins/vault-exec out"},
		"another file": {install: write(0o755),
			says: "warning DIR/plugins/vault-exec is another file than the one that checks"},
		"an unknown option":      {plugin: `{"lingr": "5s"}`, install: link, says: `problem config block: `},
		"a CA that is not there": {plugin: `[{"vault": [{"default": [{"address": "https://v", "ca_file": "DIR/none"}]}]}]`, install: link, says: `problem vault "default": ca_file, ca_path, cert_file or key_file: `},
		"no URL":                 {plugin: `[{"vault": [{"default": [{"address": "v"}]}]}]`, install: link, says: `problem vault "default": address "v" is not a URL`},
		"a block that JSON hides": {plugin: `{"vault": {"default": {"address": "http://v"}}}`, install: link,
			says: "warning the agent reads no vault block in it"},
		"an interval":             {plugin: `{"poll_interval": "1s"}`, install: link, says: "problem poll_interval 1s is below min_poll_interval 5s"},
		"a token that is missing": {plugin: `[{"vault": [{"default": [{"address": "http://v", "create_from_role": "r", "token_file": "DIR/none"}]}]}]`, install: link, says: `warning vault "default": read token_file: open DIR/none`},
		"a state_dir that is a file": {plugin: `[{"vault": [{"default": [{"address": "http://v"}]}], "state_dir": "DIR/plugins/vault-exec"}]`, install: link,
			says: "problem state_dir DIR/plugins/vault-exec is a file"},
	} {
		t.Run(sentence, func(t *testing.T) {
			dir := t.TempDir()
			must.NoError(t, os.Mkdir(filepath.Join(dir, "plugins"), 0o755))
			c.install(t, filepath.Join(dir, "plugins", "vault-exec"))
			if c.plugin == "" {
				c.plugin = `[{"vault": [{"default": [{"address": "http://v"}]}]}]`
			}
			text := strings.ReplaceAll(`{"data_dir": "DIR", "plugin": {"vault-exec": {"config": `+c.plugin+`}}}`, "DIR", dir)
			file := filepath.Join(dir, "agent.json")
			must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			check := &checker{drivers: map[string]*taskDriver{}}
			check.configs = []string{file}
			check.publisher = func([]string) (wraps, name string, err error) { return "exec", "vault-exec", nil }
			must.NoError(t, check.readAgent(t.Context()))
			var said []string
			for _, f := range check.findings {
				if f.Status != statusOK && f.About != "data_dir" {
					said = append(said, strings.ReplaceAll(f.Status+" "+f.Message, dir, "DIR"))
				}
			}
			if c.says == "" {
				must.SliceEmpty(t, said, must.Sprint(said))
				return
			}
			must.SliceLen(t, 1, said, must.Sprint(said))
			must.StrHasPrefix(t, c.says, said[0])
		})
	}
}
