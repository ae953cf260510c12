package operator

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl"
	nomad "github.com/hashicorp/nomad/api"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin"
)

// agent is what matters here of an agent's configuration.
type agent struct {
	Plugins []struct {
		Name   string         `hcl:",key"`
		Args   []string       `hcl:"args"`
		Config map[string]any `hcl:"config"`
	} `hcl:"plugin"`
	DataDir string `hcl:"data_dir"`
	Client  struct {
		Options  map[string]string `hcl:"options"`
		AllocDir string            `hcl:"alloc_dir"`
	} `hcl:"client"`
}

// readAgent reads files, or the files of folders, that an agent is started with.
func readAgent(paths []string) (all agent, err error) {
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			files, _ = filepath.Glob(filepath.Join(path, "*.hcl"))
		}
		for _, file := range files {
			text, err := os.ReadFile(filepath.Clean(file))
			if err == nil {
				err = hcl.Decode(&all, string(text)) // adds to what is there
			}
			if err != nil {
				return all, fmt.Errorf("read %s: %w", file, err)
			}
		}
	}
	return all, nil
}

// A published is one driver of ours: what it wraps, and how it is configured.
type published struct {
	name, wraps string
	conf        config.Operator
	local       bool // by -config, with the files that it names; otherwise as clients tell it
	block       map[string]any
	other       map[string]string // clusters that clients tell differently, and who tells what
}

// readPlugins reads the plugin blocks of -config that are ours.
func (c *checker) readPlugins(ctx context.Context) (err error) {
	if c.agent, err = readAgent(c.configs); err != nil {
		return usage{err}
	}
	for _, block := range c.agent.Plugins {
		wraps, name, err := c.named(append([]string{block.Name}, block.Args...))
		if err != nil {
			continue // another plugin
		}
		about := fmt.Sprintf("plugin %q", block.Name)
		conf, err := plugin.ReadConfig(ctx, wraps, name, block.Config)
		if err != nil {
			c.fault(about, err)
		} else {
			c.ok(about, "its configuration is read")
		}
		c.plugins[name] = &published{name: name, wraps: wraps, conf: conf, local: true, block: block.Config}
	}
	c.entered(cmp.Or(c.agent.Client.AllocDir, c.agent.DataDir))
	return nil
}

// entered tells whether the users of this host can enter the directory that tasks have theirs in, where Nomad lets everyone read and write.
func (c *checker) entered(dir string) {
	for d := filepath.Clean(dir); dir != ""; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err != nil || info.Mode()&0o001 == 0 {
			return
		}
		if d == filepath.Dir(d) {
			c.warn("data_dir", "run chmod 0700 "+dir, "every user of this host can enter %s, and read what tasks have in files of mode 0644 or in an identity's file", dir)
			return
		}
	}
}

// chroot tells of a root of exec tasks that is Nomad's own.
func (c *checker) chroot(about string, p *published) {
	var on []string
	for _, client := range c.clients {
		if info := client.Drivers[p.name]; info != nil && info.Attributes["driver."+p.name+".filesystem"] == "chroot" {
			on = append(on, client.Name)
		}
	}
	if p.local {
		on = nil
		if set, _ := p.block["filesystem"].(string); set == "chroot" || set == "" && p.name == "exec" {
			on = []string{"this client"}
		}
	}
	if p.wraps == "exec" && len(on) > 0 {
		c.warn(about, `set filesystem = "bind" in the plugin's configuration`, "with filesystem = \"chroot\" on %s, tasks can write to files of the host that are "+
			"linked into their root, and have the log collector write to any", few(on))
	}
}

// driver returns the published driver of a task, nil where it is none of ours: by -config, or as the clients tell it, or by its name.
func (c *checker) driver(name string) *published {
	if known := c.plugins[name]; known != nil {
		return known
	}
	p := &published{name: name, conf: config.Operator{Name: name, Allow: config.Allow{}}, other: map[string]string{}}
	clusters := map[string]vault.Cluster{}
	for _, client := range c.clients {
		if wraps, these := told(client, name); wraps != "" {
			p.wraps = wraps
			maps.Copy(clusters, these)
		}
	}
	if wraps, ours := strings.CutPrefix(name, "vault-"); p.wraps == "" && ours && slices.Contains(plugin.Drivers(), wraps) {
		p.wraps = wraps
		clusters[c.cluster] = vault.Cluster{Name: c.cluster, AuthPath: c.path, Namespace: c.vault.Namespace()}
	}
	if p.wraps == "" {
		return nil
	}
	for _, cluster := range slices.Sorted(maps.Keys(clusters)) {
		server := clusters[cluster]
		p.conf.Clusters = append(p.conf.Clusters, server)
		p.other[cluster] = c.differences(name, cluster)
		if server.Issues() { // and only the client knows what its operator allows
			p.conf.Allow[cluster] = map[string][]string{"*": {"*"}}
		}
	}
	return p
}

// told is what a client tells of a driver: what it wraps, empty where it is not there or none of ours, and its clusters.
func told(client *nomad.NodeListStub, name string) (wraps string, clusters map[string]vault.Cluster) {
	if info := client.Drivers[name]; info != nil && info.Detected {
		return plugin.ReadFingerprint(name, info.Attributes)
	}
	return "", nil
}

// differences says which clients tell what of a cluster, empty where all tell the same.
func (c *checker) differences(name, cluster string) string {
	on := map[string][]string{}
	for _, client := range c.clients {
		wraps, clusters := told(client, name)
		if wraps == "" {
			continue
		}
		text := "no such cluster"
		if t, ok := clusters[cluster]; ok {
			text = fmt.Sprintf("address = %q jwt_auth_backend_path = %q create_from_role = %q namespace = %q", t.Address, t.AuthPath, t.Role, t.Namespace)
		}
		on[text] = append(on[text], client.Name)
	}
	if len(on) < 2 {
		return ""
	}
	var lines []string
	for _, text := range slices.Sorted(maps.Keys(on)) {
		lines = append(lines, few(on[text])+": "+text)
	}
	return strings.Join(lines, "; ")
}

// few names clients, of which there may be thousands.
func few(clients []string) string {
	const most = 5
	if more := len(clients) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(clients[:most], ", "), more)
	}
	return strings.Join(clients, ", ")
}

// served tells whether clients have the driver, and whether another docker driver on them removes its containers.
func (c *checker) served(ctx context.Context, about string, p *published) {
	var with, ill, beside []string
	for _, client := range c.clients {
		info := client.Drivers[p.name]
		if info == nil || !info.Detected {
			continue
		}
		with = append(with, client.Name)
		if !info.Healthy {
			ill = append(ill, fmt.Sprintf("%s (%s)", client.Name, info.HealthDescription))
		}
		if docker := client.Drivers["docker"]; docker != nil && docker.Detected {
			beside = append(beside, client.Name)
		}
	}
	switch {
	case c.clients == nil:
	case len(with) == 0:
		c.problem(about, "install the plugin there; the agent's log says why it was not loaded",
			"no client has the driver %s, of %d that are ready in the job's datacenters and node pool", p.name, len(c.clients))
	case len(ill) > 0:
		c.warn(about, "see the agent's log there", "the driver %s is not healthy on %s", p.name, few(ill))
	default:
		c.ok(about, "%d of %d clients have the driver %s", len(with), len(c.clients), p.name)
	}
	c.chroot(about, p)
	if p.wraps == "docker" && p.name != "docker" {
		c.dangling(ctx, p, beside)
	}
}

const danglingOff = `in the agent's plugin %q { config { } }: gc { dangling_containers { enabled = false } }`

// dangling tells whether two docker drivers on one engine remove each other's containers: ours, and Nomad's own where it is.
func (c *checker) dangling(ctx context.Context, p *published, beside []string) {
	if !p.local {
		if len(beside) > 0 {
			c.warn("docker", "give -config, or look for "+fmt.Sprintf(danglingOff, "docker"),
				"Nomad's own docker driver is on %s, too, and removes the containers of %s after five minutes unless it is told not to", few(beside), p.name)
		}
		return
	}
	if slices.Contains(strings.Split(c.agent.Client.Options["driver.denylist"], ","), "docker") {
		return
	}
	blocks := map[string]map[string]any{"docker": nil, p.name: p.block}
	for _, block := range c.agent.Plugins {
		if block.Name == "docker" {
			blocks["docker"] = block.Config
		}
	}
	for _, name := range slices.Sorted(maps.Keys(blocks)) {
		if removes, err := plugin.RemovesForeign(ctx, name, blocks[name]); err != nil {
			c.fault(fmt.Sprintf("plugin %q", name), err)
		} else if removes {
			c.problem("docker", fmt.Sprintf(danglingOff, name),
				"the driver %s removes the containers of the other docker driver on the same engine, five minutes after their start", name)
		}
	}
}
