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
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/operator"
	"nomad-driver-vault/plugin"
)

// readAgent reads -config and checks the plugin blocks of this plugin.
func (c *checker) readAgent(ctx context.Context) (err error) {
	if c.agent, err = operator.ReadAgent(c.configs); err != nil {
		return operator.UsageError{Err: err}
	}
	for _, d := range c.agent.Drivers(ctx, c.publisher) {
		about := fmt.Sprintf("plugin %q", d.Block.Name)
		if d.Err != nil {
			c.driverError(about, d.Err)
		} else {
			c.ok(about, "its configuration is read")
		}
		c.drivers[d.Name] = &taskDriver{name: d.Name, wraps: d.Wraps, conf: d.Conf, local: true, block: d.Block.Config}
	}
	c.checkTaskDirs(c.agent.TaskDirs())
	return nil
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
	if d.wraps != "exec" {
		return
	}
	on := c.clients.withChroot(d.name)
	if d.local {
		on = nil
		if set, _ := d.block["filesystem"].(string); set == "chroot" || set == "" && d.name == "exec" {
			on = []string{"this client"}
		}
	}
	if len(on) > 0 {
		c.warn(about, `set filesystem = "bind" in the plugin's configuration`, "with filesystem = \"chroot\" on %s, "+
			"tasks can write to files of the host that are linked into their root, and have the log collector write to any",
			shorten(on))
	}
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
