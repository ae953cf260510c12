// Package plugin is what the Nomad agent is told: who we are, what can be configured, what the node can do. The life
// of a task is in package driver, which Plugin embeds for the task RPCs. The wrapped driver is one of Nomad's own, as
// package wrapped changes it.
package plugin

import (
	"context"
	"fmt"
	"maps"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/hashicorp/nomad/plugins/shared/structs"

	"nomad-driver-vault/driver"
	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin/wrapped"
)

// Version is this program's version: of the next release, unless the linker puts that of a tag here. The agent parses
// it, and prefers its built-in driver to one of the same name and a version below 0.1.0
// (helper/pluginutils/loader/init.go).
var Version = "0.1.0"

// Plugin is a driver plugin as the agent sees it: drivers.DriverPlugin with raw exec streaming and network management.
type Plugin struct {
	*driver.Driver
	name  string               // as published
	wraps string               // as Nomad names it
	inner drivers.DriverPlugin // the wrapped driver

	// facts are the fingerprint attributes that are ours, without the "driver.<name>." prefix. SetConfig replaces them;
	// the agent asks for the fingerprint afterwards only (client/pluginmanager/drivermanager/instance.go).
	facts      map[string]string
	configured *base.Config // what SetConfig has last accepted

	since   time.Time // when it was made
	showing sync.Once // of its status
}

// Drivers returns the names of the drivers that can be wrapped, sorted.
func Drivers() []string { return wrapped.Names() }

// New wraps one of Drivers and publishes it under name, which may be the wrapped driver's own. It starts nothing that
// outlives ctx. The environment is read once: what should not reach a task must be gone from it.
func New(ctx context.Context, logger hclog.Logger, wraps, name string) *Plugin {
	inner := wrapped.Find(wraps).New(ctx, logger)
	return &Plugin{Driver: driver.New(ctx, logger, name, inner), name: name, wraps: wraps, inner: inner,
		since: status.Time(time.Now())}
}

// PluginInfo returns the published name and Version.
func (p *Plugin) PluginInfo() (*base.PluginInfoResponse, error) {
	return &base.PluginInfoResponse{
		Type:              base.PluginTypeDriver,
		PluginApiVersions: []string{drivers.ApiVersion010},
		PluginVersion:     Version,
		Name:              p.name,
	}, nil
}

// ConfigSchema returns the wrapped driver's options and those of ConfigSpec. It does not depend on SetConfig: the agent
// asks a process for it that it never configures.
func (p *Plugin) ConfigSchema() (*hclspec.Spec, error) {
	attrs, err := attributes(p.inner.ConfigSchema())
	if err != nil {
		return nil, fmt.Errorf("read config schema of %s: %w", p.wraps, err)
	}
	if change := wrapped.Find(p.wraps).ChangeDefaults; change != nil && p.name != p.wraps {
		change(attrs)
	}
	maps.Copy(attrs, ConfigSpec(p.wraps, p.name))
	return hclspec.NewObject(attrs), nil
}

// TaskConfigSchema returns the wrapped driver's options of a task with TaskConfigSpec added.
func (p *Plugin) TaskConfigSchema() (*hclspec.Spec, error) {
	attrs, err := attributes(p.inner.TaskConfigSchema())
	if err != nil {
		return nil, fmt.Errorf("read task config schema of %s: %w", p.wraps, err)
	}
	for name, spec := range TaskConfigSpec(p.wraps) {
		attrs[name] = merge(attrs[name], spec)
	}
	return hclspec.NewObject(attrs), nil
}

// attributes returns a copy: the specification is a variable of the wrapped driver's package.
func attributes(spec *hclspec.Spec, err error) (map[string]*hclspec.Spec, error) {
	return maps.Clone(spec.GetObject().GetAttributes()), err
}

// SetConfig configures the wrapped driver and the embedded one from the same bytes. It needs no network and can be
// called any number of times: the agent validates with it in processes of their own, without AgentConfig.Driver, and
// refuses to start when it fails. An error names the field. The same configuration again changes nothing: Nomad's
// docker would start another set of goroutines.
func (p *Plugin) SetConfig(c *base.Config) error {
	if reflect.DeepEqual(c, p.configured) {
		return nil
	}
	p.configured = nil
	own, err := decode(c.PluginConfig)
	if err != nil {
		return err
	}
	conf, err := own.forDriver(p.wraps, p.name)
	if err != nil {
		return err
	}
	if err := p.inner.SetConfig(c); err != nil {
		return fmt.Errorf("configure %s: %w", p.wraps, err)
	}
	if err := p.Configure(conf); err != nil {
		return fmt.Errorf("plugin config: %w", err)
	}
	p.facts = map[string]string{
		"plugin_version": Version,
		"wraps":          p.wraps,
		"clusters":       strings.Join(own.names(), ","),
	}
	if own.Filesystem != "" {
		p.facts["filesystem"] = own.Filesystem
	}
	for i := range conf.Clusters {
		for field, value := range clusterAttributes(&conf.Clusters[i]) {
			if *value != "" {
				p.facts["vault."+conf.Clusters[i].Name+"."+field] = *value
			}
		}
	}
	p.configured = c
	return nil
}

// Capabilities returns the wrapped driver's. The agent asks after SetConfig: a driver is configured when it is
// dispensed (helper/pluginutils/loader/loader.go), before a task runner reads them.
func (p *Plugin) Capabilities() (*drivers.Capabilities, error) { return p.inner.Capabilities() }

// clusterAttributes are the settings of a cluster that clients publish as attributes of their nodes, by the names
// that they have in its vault block. They are not below "cluster.<name>", which is the status of a cluster that makes
// tokens: in a task's config block, an attribute with others below it has no value of its own (addNestedKey in
// Nomad's client/taskenv/util.go).
func clusterAttributes(c *vault.Cluster) map[string]*string {
	return map[string]*string{
		"address":               &c.Address,
		"jwt_auth_backend_path": &c.AuthPath,
		"create_from_role":      &c.Role,
		"namespace":             &c.Namespace,
	}
}

// Fingerprint passes on what the wrapped driver reports, under our name, with our facts and with the status of
// clusters that make tokens. Health is the wrapped driver's alone: with Vault away, running tasks keep what they have
// and a start says what it waits for, while an unhealthy driver would only move the same start to another node.
//
// The agent starts several processes. A call of Fingerprint tells this one that it serves the agent's tasks: from now
// on it looks after what a crashed process has left, even if no task is ever started.
func (p *Plugin) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	p.Serve() // first: it can mount a tmpfs on state_dir, which the wrapped exec uses
	p.showing.Do(func() {
		go p.ServeStatus(status.Plugin{Name: p.name, Wraps: p.wraps, Version: Version, PID: os.Getpid(), Since: p.since})
	})
	reports, err := p.inner.Fingerprint(ctx)
	if err != nil {
		return nil, fmt.Errorf("fingerprint %s: %w", p.wraps, err)
	}
	renamed := make(chan *drivers.Fingerprint)
	go p.relay(ctx, reports, renamed)
	return renamed, nil
}

// relay passes on each report, and the last one again when the status of a cluster has changed.
func (p *Plugin) relay(ctx context.Context, reports <-chan *drivers.Fingerprint, renamed chan<- *drivers.Fingerprint) {
	defer close(renamed)
	var last *drivers.Fingerprint
	for {
		status, changed := p.Clusters()
		if last != nil {
			select {
			case renamed <- p.rename(last, status):
			case <-ctx.Done():
			}
		}
		select {
		case report, more := <-reports: // to its end even when ctx is done: Nomad's drivers block on a report nobody takes
			if !more {
				return
			}
			last = report
		case <-changed:
		}
	}
}

// rename moves the attributes of the wrapped driver to our name, so that they do not collide with those of the
// built-in driver on the same node. The plain "driver.<name>" is left to the agent, which sets it for every driver it
// detects. The engine's "version" keeps its name for docker; ours is "plugin_version".
func (p *Plugin) rename(in *drivers.Fingerprint, clusters map[string]string) *drivers.Fingerprint {
	out := *in
	out.Attributes = make(map[string]*structs.Attribute, len(in.Attributes)+len(p.facts)+len(clusters))
	for name, status := range clusters {
		out.Attributes["driver."+p.name+".cluster."+name] = structs.NewStringAttribute(status)
	}
	for fact, value := range p.facts {
		out.Attributes["driver."+p.name+"."+fact] = structs.NewStringAttribute(value)
	}
	for key, value := range in.Attributes {
		if fact, ok := strings.CutPrefix(key, "driver."+p.wraps+"."); ok {
			out.Attributes["driver."+p.name+"."+fact] = value
		}
	}
	return &out
}
