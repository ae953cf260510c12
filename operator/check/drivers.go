package check

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/operator"
	"nomad-driver-vault/plugin"
)

// readAgent reads -config and checks the plugin blocks of this plugin.
func (c *checker) readAgent(ctx context.Context) (err error) {
	if c.agent, err = operator.ReadAgent(c.configs); err != nil {
		return operator.UsageError{Err: err}
	}
	ours := c.agent.Drivers(ctx, c.publisher)
	if len(ours) == 0 && len(c.configs) > 0 {
		c.add(finding{Status: statusProblem, About: "plugin", Message: "no plugin block of -config is of this plugin",
			Fix: "add to the agent's configuration:", Paste: pluginBlock})
	}
	for _, d := range ours {
		about := fmt.Sprintf("plugin %q", d.Block.Name)
		switch {
		case d.Err != nil:
			c.driverError(about, d.Err)
		case len(d.Conf.Clusters) == 0: // hcl.Decode, which Nomad reads it with, loses objects of a single object in JSON
			c.warn(about, `add vault "default" { address = ... } to its config, in JSON with each block as a list: `+
				`"config": [{"vault": [{"default": [{"address": ...}]}]}]`, "the agent reads no vault block in it")
		default:
			c.ok(about, "its configuration is read")
		}
		c.checkInstalled(about, d)
		c.checkFiles(about, d.Conf)
		c.drivers[d.Name] = &taskDriver{name: d.Name, wraps: d.Wraps, conf: d.Conf, local: true, block: d.Block.Config}
	}
	c.checkTaskDirs(c.agent.TaskDirs())
	return nil
}

const pluginBlock = `plugin "vault-exec" {
  config {
    vault "default" {
      address = "https://vault.service.consul:8200"
    }
  }
}`

// checkInstalled says whether an agent finds the plugin by the name of its block.
func (c *checker) checkInstalled(about string, d operator.Driver) {
	dir := c.agent.PluginDir()
	if dir == "" {
		return
	}
	file := filepath.Join(dir, d.Block.Name)
	self, err := os.Executable()
	if err != nil {
		return
	}
	info, err := os.Stat(file)
	own, ownErr := os.Stat(self)
	switch {
	case err != nil:
		c.problem(about, fmt.Sprintf("run ln -s %s %s", self, file), "the agent does not find it: %s", err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		c.problem(about, "run chmod 0755 "+file, "the agent leaves %s out: it is not executable", file)
	case ownErr == nil && !os.SameFile(info, own):
		c.warn(about, "run "+file+" check if it is another version", "%s is another file than the one that checks", file)
	default:
		c.ok(about, "it is in plugin_dir")
	}
}

// checkFiles looks at what the driver opens after the agent has accepted its configuration.
func (c *checker) checkFiles(about string, conf config.Operator) {
	if info, err := os.Stat(conf.StateDir); err == nil && !info.IsDir() {
		c.problem(about, "name a directory, or leave it out", "state_dir %s is a file", conf.StateDir)
	}
	for _, cluster := range conf.Clusters {
		if cluster.TokenFile == "" {
			continue
		}
		text, err := os.ReadFile(cluster.TokenFile)
		if err == nil && vault.TokenIn(text) == "" {
			err = fmt.Errorf("%s holds none", cluster.TokenFile)
		}
		if err != nil {
			c.warn(about, "put a token that is valid into it", "vault %q: read token_file: %s", cluster.Name, err)
		}
	}
}

// checkClusters says whether the clusters of the agent's drivers answer.
func (c *checker) checkClusters(ctx context.Context) {
	c.cluster = "" // VAULT_ADDR is none of theirs
	for _, name := range slices.Sorted(maps.Keys(c.drivers)) {
		for _, server := range c.drivers[name].conf.Clusters {
			l := newLogin("", c.drivers[name], render.Use{Vault: config.Vault{Cluster: server.Name}, Server: server}, identity{})
			if err := c.prepare(l); err == nil { // what is wrong there is a problem of the plugin's configuration already
				c.checkReachable(ctx, l)
			}
		}
	}
}

// driver returns the driver of a task as -config has it, or else as the clients publish it, or else by its name. It
// is nil for a driver that is not of this plugin.
func (c *checker) driver(name string) *taskDriver {
	if local := c.drivers[name]; local != nil {
		return local
	}
	wraps, clusters := c.clients.clusters(name)
	if by, ours := strings.CutPrefix(name, "vault-"); wraps == "" && ours && slices.Contains(plugin.Drivers(), by) {
		wraps = by
		clusters[c.cluster] = vault.Cluster{Name: c.cluster, AuthPath: c.path, Namespace: c.vault.Namespace()}
	}
	if wraps == "" {
		return nil
	}
	conf := config.Operator{Name: name, Allow: config.Allow{}}
	d := &taskDriver{name: name, wraps: wraps, conf: conf, differ: map[string]string{}}
	for _, cluster := range slices.Sorted(maps.Keys(clusters)) {
		server := clusters[cluster]
		d.conf.Clusters = append(d.conf.Clusters, server)
		d.differ[cluster] = c.clients.differences(name, cluster)
		if server.Issues() { // only the client knows which policies its operator allows
			d.conf.Allow[cluster] = map[string][]string{"*": {"*"}}
		}
	}
	return d
}

// checkDriver says whether clients have the driver, and what is dangerous about its configuration.
func (c *checker) checkDriver(ctx context.Context, about string, d *taskDriver) {
	var with, unhealthy, withBuiltin []string
	for _, client := range c.clients {
		info := client.Drivers[d.name]
		if info == nil || !info.Detected {
			continue
		}
		with = append(with, client.Name)
		if !info.Healthy {
			unhealthy = append(unhealthy, fmt.Sprintf("%s (%s)", client.Name, info.HealthDescription))
		}
		if docker := client.Drivers["docker"]; docker != nil && docker.Detected {
			withBuiltin = append(withBuiltin, client.Name)
		}
	}
	switch {
	case c.clients == nil:
	case len(with) == 0:
		c.problem(about, "install the plugin there; the agent's log says why it was not loaded",
			"no client has the driver %s, of %d that are ready in the job's datacenters and node pool", d.name, len(c.clients))
	case len(unhealthy) > 0:
		c.warn(about, "see the agent's log there", "the driver %s is not healthy on %s", d.name, shorten(unhealthy))
	default:
		c.ok(about, "%d of %d clients have the driver %s", len(with), len(c.clients), d.name)
	}
	c.checkChroot(about, d)
	if d.wraps == "docker" && d.name != "docker" {
		c.checkDangling(ctx, d, withBuiltin)
	}
}

// checkTaskDirs warns if the users of this host can enter the directory of tasks, in which Nomad lets everyone read
// and write.
func (c *checker) checkTaskDirs(dir string) {
	for d := filepath.Clean(dir); dir != ""; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err != nil || info.Mode()&0o001 == 0 {
			return
		}
		if d == filepath.Dir(d) {
			c.warn("data_dir", "run chmod 0700 "+dir, "every user of this host can enter %s, "+
				"and read what tasks have in files of mode 0644 or in an identity's file", dir)
			return
		}
	}
}

// checkChroot warns of exec tasks whose root Nomad makes.
func (c *checker) checkChroot(about string, d *taskDriver) {
	if on := c.chroots(d); len(on) > 0 {
		c.warn(about, `set filesystem = "bind" in the plugin's configuration`, "with filesystem = \"chroot\" on %s, "+
			"tasks can write to files of the host that are linked into their root, and have the log collector write to any",
			shorten(on))
	}
}

// chroots are the clients on which Nomad makes the root of the driver's tasks, if that is exec.
func (c *checker) chroots(d *taskDriver) []string {
	set, _ := d.block["filesystem"].(string)
	switch {
	case d.wraps != "exec":
		return nil
	case !d.local:
		return c.clients.withChroot(d.name)
	case set == "chroot" || set == "" && d.name == "exec":
		return []string{"this client"}
	}
	return nil
}

const danglingOff = `in the agent's plugin %q { config { } }: gc { dangling_containers { enabled = false } }`

// checkDangling says whether two docker drivers on one engine remove each other's containers. withBuiltin are the
// clients that have Nomad's own docker driver, too.
func (c *checker) checkDangling(ctx context.Context, d *taskDriver, withBuiltin []string) {
	if !d.local {
		if len(withBuiltin) > 0 {
			c.warn("docker", "give -config, or look for "+fmt.Sprintf(danglingOff, "docker"), "Nomad's own docker driver is on "+
				"%s, too, and removes the containers of %s after five minutes unless it is told not to",
				shorten(withBuiltin), d.name)
		}
		return
	}
	if slices.Contains(strings.Split(c.agent.Client.Options["driver.denylist"], ","), "docker") {
		return
	}
	blocks := map[string]map[string]any{"docker": c.agent.PluginConfig("docker"), d.name: d.block}
	for _, name := range slices.Sorted(maps.Keys(blocks)) {
		if removes, err := plugin.RemovesForeign(ctx, name, blocks[name]); err != nil {
			c.driverError(fmt.Sprintf("plugin %q", name), err)
		} else if removes {
			c.problem("docker", fmt.Sprintf(danglingOff, name), "the driver %s removes the containers of the other docker "+
				"driver on the same engine, five minutes after their start", name)
		}
	}
}
