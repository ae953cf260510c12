package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/client/taskenv"
	"github.com/zclconf/go-cty/cty"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin"
)

// agent is what matters here of an agent's configuration.
type agent struct {
	Plugins []pluginBlock `hcl:"plugin"`
	Client  struct {
		Options map[string]string `hcl:"options"`
	} `hcl:"client"`
}

type pluginBlock struct {
	Name   string         `hcl:",key"`
	Args   []string       `hcl:"args"`
	Config map[string]any `hcl:"config"`
}

// readAgent reads files, or the files of folders, that an agent is started with.
func readAgent(paths []string) (agent, error) {
	var all agent
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			files, _ = filepath.Glob(filepath.Join(path, "*.hcl"))
		}
		for _, file := range files {
			var one agent
			text, err := os.ReadFile(filepath.Clean(file))
			if err == nil {
				err = hcl.Decode(&one, string(text))
			}
			if err != nil {
				return all, fmt.Errorf("read %s: %w", file, err)
			}
			all.Plugins = append(all.Plugins, one.Plugins...)
			if one.Client.Options != nil {
				all.Client = one.Client
			}
		}
	}
	return all, nil
}

// A published is one driver of ours: what it wraps, and how it is configured.
type published struct {
	wraps string
	conf  driver.Config
	vague bool // of the clusters the names are known at most
	block map[string]any
}

// readPlugins reads the plugin blocks that are ours.
func (c *checker) readPlugins(ctx context.Context) error {
	var err error
	if c.agent, err = readAgent(c.configs); err != nil {
		return err
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
		c.plugins[name] = &published{wraps: wraps, conf: conf, block: block.Config}
	}
	return nil
}

const readNodes = `set NOMAD_TOKEN to a token with node { policy = "read" }`

// readJob returns the job, and the clients that it could run on or, of an allocation, does.
func (c *checker) readJob(ctx context.Context) (job *nomad.Job, clients []*nomad.NodeListStub, err error) {
	q := (&nomad.QueryOptions{}).WithContext(ctx)
	if c.file != "" {
		text, err := os.ReadFile(filepath.Clean(c.file))
		if err != nil {
			return nil, nil, misuse("-job: %w", err)
		}
		job, err = c.nomad.Jobs().ParseHCLOpts(&nomad.JobsParseRequest{JobHCL: string(text), Variables: strings.Join(c.vars, "\n"), Canonicalize: true})
		if err != nil {
			return nil, nil, err
		}
		clients, _, err = c.nomad.Nodes().List(q)
		if err != nil {
			c.warn("job", readNodes, "the clients cannot be looked at: %s", oneLine(err))
		}
		return job, slices.DeleteFunc(clients, func(n *nomad.NodeListStub) bool { return n.Status != nomad.NodeStatusReady }), nil
	}
	stubs, _, err := c.nomad.Allocations().PrefixList(c.alloc)
	if err == nil && len(stubs) != 1 {
		err = fmt.Errorf("%d allocations have an ID that begins with %q", len(stubs), c.alloc)
	}
	if err != nil {
		return nil, nil, err
	}
	if c.running, _, err = c.nomad.Allocations().Info(stubs[0].ID, q); err != nil {
		return nil, nil, err
	}
	node, _, err := c.nomad.Nodes().Info(c.running.NodeID, q)
	if err != nil {
		c.warn("job", readNodes, "the client cannot be looked at: %s", oneLine(err))
		return c.running.Job, nil, nil
	}
	return c.running.Job, []*nomad.NodeListStub{{Name: node.Name, Drivers: node.Drivers}}, nil
}

// driver returns the published driver of a task, nil where it is none of ours.
func (c *checker) driver(name string, clients []*nomad.NodeListStub) *published {
	if known := c.plugins[name]; known != nil {
		return known
	}
	found := &published{conf: driver.Config{Name: name}, vague: true}
	served := 0
	for _, client := range clients {
		info := client.Drivers[name]
		if info == nil || !info.Detected || info.Attributes["driver."+name+".wraps"] == "" {
			continue
		}
		found.wraps = info.Attributes["driver."+name+".wraps"]
		clusters := strings.FieldsFunc(info.Attributes["driver."+name+".clusters"], func(r rune) bool { return r == ',' })
		if served++; served == 1 {
			for _, cluster := range clusters {
				known := vault.Cluster{Name: cluster, AuthPath: c.path}
				if info.Attributes["driver."+name+".cluster."+cluster] != "" { // which only those with token roles have
					known.TokenFile, found.conf.Allow = "of the client's", unknownAllow(found.conf.Allow, cluster)
				}
				found.conf.Clusters = append(found.conf.Clusters, known)
			}
		}
		found.conf.Clusters = slices.DeleteFunc(found.conf.Clusters, func(v vault.Cluster) bool { return !slices.Contains(clusters, v.Name) })
	}
	if wraps, ours := strings.CutPrefix(name, "vault-"); found.wraps == "" && ours && slices.Contains(plugin.Drivers(), wraps) {
		found.wraps = wraps
		found.conf.Clusters = []vault.Cluster{{Name: c.cluster, AuthPath: c.path}}
	}
	if found.wraps == "" {
		return nil
	}
	return found
}

// served tells whether clients have the driver, and whether another docker driver on them removes its containers.
func (c *checker) served(ctx context.Context, about, name string, p *published, clients []*nomad.NodeListStub) {
	var with, ill, beside []string
	for _, client := range clients {
		info := client.Drivers[name]
		switch {
		case info == nil || !info.Detected:
			continue
		case !info.Healthy:
			ill = append(ill, fmt.Sprintf("%s (%s)", client.Name, info.HealthDescription))
		}
		with = append(with, client.Name)
		if docker := client.Drivers["docker"]; docker != nil && docker.Detected {
			beside = append(beside, client.Name)
		}
	}
	switch {
	case len(clients) > 0 && len(with) == 0:
		c.problem(about, "install the plugin there; the agent's log says why it was not loaded", "no client has the driver %s", name)
	case len(ill) > 0:
		c.warn(about, "see the agent's log there", "the driver %s is not healthy on %s", name, strings.Join(ill, ", "))
	case len(with) > 0:
		c.ok(about, "%d of %d clients have the driver %s", len(with), len(clients), name)
	}
	if p.wraps == "docker" && name != "docker" {
		c.dangling(ctx, name, p, beside)
	}
}

const danglingOff = `in the agent's plugin "docker" { config { } }: gc { dangling_containers { enabled = false } }`

// dangling tells whether two docker drivers on one engine remove each other's containers.
func (c *checker) dangling(ctx context.Context, name string, p *published, beside []string) {
	if len(c.configs) == 0 {
		if len(beside) > 0 {
			c.warn("docker", "give -config, or look for "+danglingOff,
				"Nomad's own docker driver is on %s, too, and removes the containers of %s after five minutes unless it is told not to",
				strings.Join(beside, ", "), name)
		}
		return
	}
	if slices.Contains(strings.Split(c.agent.Client.Options["driver.denylist"], ","), "docker") {
		return
	}
	var builtIn map[string]any
	for _, block := range c.agent.Plugins {
		if block.Name == "docker" {
			builtIn = block.Config
		}
	}
	for _, d := range []struct {
		name  string
		block map[string]any
	}{{"docker", builtIn}, {name, p.block}} {
		if removes, err := plugin.RemovesForeign(ctx, d.name, d.block); err != nil {
			c.fault(fmt.Sprintf("plugin %q", d.name), err)
		} else if removes {
			c.problem("docker", strings.Replace(danglingOff, `"docker"`, fmt.Sprintf("%q", d.name), 1),
				"the driver %s removes the containers of the other docker driver on the same engine, five minutes after their start", d.name)
		}
	}
}

var reference = regexp.MustCompile(`\$\{\s*([A-Za-z_][\w.-]*)\s*\}`)

// environment is what a config block may refer to: what the job says, and of what only a client knows the reference itself.
func environment(job *nomad.Job, group *nomad.TaskGroup, task *nomad.Task, claims map[string]string) (map[string]string, map[string]cty.Value, error) {
	env := map[string]string{"NOMAD_JOB_ID": claims["nomad_job_id"], "NOMAD_NAMESPACE": claims["nomad_namespace"], "NOMAD_JOB_NAME": *job.Name,
		"NOMAD_GROUP_NAME": *group.Name, "NOMAD_TASK_NAME": task.Name,
		"NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets", "NOMAD_ALLOC_DIR": "/alloc"}
	for _, meta := range []map[string]string{job.Meta, group.Meta, task.Meta} {
		for key, value := range meta {
			env["NOMAD_META_"+key], env["NOMAD_META_"+strings.ToUpper(key)] = value, value
		}
	}
	maps.Copy(env, task.Env)
	text, err := json.Marshal(task.Config)
	if err != nil {
		return nil, nil, err
	}
	node := map[string]string{"node.unique.id": "${node.unique.id}"} // AllValues wants one
	for _, found := range reference.FindAllStringSubmatch(string(text), -1) {
		if name := found[1]; strings.Contains(name, ".") {
			node[name] = "${" + name + "}"
		} else if _, known := env[name]; !known {
			env[name] = "${" + name + "}"
		}
	}
	vars, _, err := taskenv.NewTaskEnv(env, env, nil, node, nil, "", "").AllValues()
	return env, vars, err
}

// oneLine is what Nomad says of a failed request.
func oneLine(err error) string {
	var answer nomad.UnexpectedResponseError
	if errors.As(err, &answer) {
		return strings.Join(strings.Fields(fmt.Sprintf("%s (%d)", answer.Body(), answer.StatusCode())), " ")
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// unknownAllow is for a cluster of which no client tells what its operator allows: everything.
func unknownAllow(a driver.Allow, cluster string) driver.Allow {
	if a == nil {
		a = driver.Allow{}
	}
	a[cluster] = map[string][]string{"*": {"*"}}
	return a
}
