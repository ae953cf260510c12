package operator

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestReadAgent(t *testing.T) {
	const inHCL = `
data_dir = "/opt/nomad"
plugin "vault-exec" {
  config {
    linger = "5s"
    vault "default" { address = "http://v" }
  }
}`
	const inJSON = `{"data_dir": "/opt/nomad", "plugin": {"vault-exec": {"config": {"linger": "5s",
		"vault": {"default": {"address": "http://v"}}}}}}`
	const inList = `{"data_dir": "/opt/nomad", "plugin": [{"vault-exec": [{"config": [{"linger": "5s",
		"vault": [{"default": [{"address": "http://v"}]}]}]}]}]}`
	publisher := func(args []string) (wraps, name string, err error) { return "exec", args[0], nil }
	for name, text := range map[string]string{"a.hcl": inHCL, "b.json": inJSON, "c.json": inList} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			must.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("{"), 0o600))
			for _, path := range []string{dir, filepath.Join(dir, name)} {
				agent, err := ReadAgent([]string{path})
				must.NoError(t, err)
				must.Eq(t, "/opt/nomad/plugins", agent.PluginDir())
				drivers := agent.Drivers(t.Context(), publisher)
				must.SliceLen(t, 1, drivers)
				must.NoError(t, drivers[0].Err)
				must.Eq(t, "http://v", drivers[0].Conf.Clusters[0].Address)
				must.Eq(t, "5s", drivers[0].Conf.Linger.String())
			}
		})
	}
}
