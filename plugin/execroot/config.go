package execroot

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// Config is what an operator says of the roots of exec tasks: options in the config block of the plugin.
type Config struct {
	Paths    []string `codec:"paths"`     // the host's directories and files that tasks see; absolute and clean
	HostEnv  []string `codec:"host_env"`  // names of the agent's environment variables that tasks have
	StateDir string   `codec:"state_dir"` // the plugin's own directory, where the mounts of a start are staged
}

// defaultPaths is what Nomad puts into a chroot (DefaultChrootEnv in client/config/config.go), less the sockets:
// Nomad copies regular files only, while a directory bound from /run would show systemd-resolved's sockets to the
// task. The files are what /etc/resolv.conf links to.
var defaultPaths = []string{
	"/run/systemd/resolve/resolv.conf", "/run/systemd/resolve/stub-resolv.conf", "/run/resolvconf/resolv.conf",
	"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64",
}

// defaultHostEnv is short: Nomad gives a task in a chroot all variables of the agent but those of the client's
// env.denylist, which no plugin sees, and a task in an image none.
var defaultHostEnv = []string{"PATH", "LANG", "LC_ALL", "TZ"}

// Options returns the options paths and host_env of a plugin's config block. state_dir is an option of every driver.
func Options() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{
		"paths":    stringList("paths", defaultPaths),
		"host_env": stringList("host_env", defaultHostEnv),
	}
}

// stringList returns an optional list of strings with a default.
func stringList(name string, value []string) *hclspec.Spec {
	return hclspec.NewDefault(hclspec.NewAttr(name, "list(string)", false),
		hclspec.NewLiteral(`["`+strings.Join(value, `", "`)+`"]`))
}

func (c Config) validate() error {
	for _, p := range c.Paths {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
			return fmt.Errorf("plugin config: paths: %q is not the absolute path of a directory or file below /", p)
		}
		switch strings.Split(p, "/")[1] {
		case "alloc", "local", "secrets", "private", "tmp", "dev", "proc", "sys":
			return fmt.Errorf("plugin config: paths: %q would hide the task's own; bind it elsewhere with a volume", p)
		}
	}
	return nil
}
