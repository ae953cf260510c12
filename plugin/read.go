package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin/wrapped"
)

// What follows reads configuration outside of an agent, as the agent and a plugin do it.

// ReadConfig reads the config block of a plugin that wraps a driver and is published as name. It is the configuration
// of an agent on this machine: the files that it names must exist here.
func ReadConfig(ctx context.Context, wraps, name string, block map[string]any) (config.Operator, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := New(ctx, hclog.NewNullLogger(), wraps, name)
	raw, err := encode(p.ConfigSchema, block, nil)
	if err != nil {
		return config.Operator{}, err
	}
	own, err := decode(raw)
	if err != nil {
		return config.Operator{}, err
	}
	conf, err := own.forDriver(wraps, name)
	if err == nil {
		err = p.Configure(conf)
	}
	return conf, err
}

// ReadFingerprint reads the attributes of a node that has a driver published as name. It returns which driver that one
// wraps, empty where it is none of ours, and its clusters as far as another machine may know them. A cluster that makes
// tokens by a token role has a TokenFile, which cannot be read.
func ReadFingerprint(name string, attributes map[string]string) (wraps string, clusters map[string]vault.Cluster) {
	fact := func(of string) string { return attributes["driver."+name+"."+of] }
	clusters = map[string]vault.Cluster{}
	for _, cluster := range strings.FieldsFunc(fact("clusters"), func(r rune) bool { return r == ',' }) {
		c := vault.Cluster{Name: cluster}
		for field, value := range clusterAttributes(&c) {
			*value = fact("vault." + cluster + "." + field)
		}
		if fact("cluster."+cluster) != "" { // its status, which no other cluster has
			c.TokenFile = "on the client"
		}
		clusters[cluster] = c
	}
	return fact("wraps"), clusters
}

// ReadTask reads the config block of a task whose driver wraps that one: all of its options, and our part of them. vars
// are the variables that the block may refer to.
func ReadTask(ctx context.Context, wraps string, block map[string]any, vars map[string]cty.Value) (
	options map[string]any, conf config.Task, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	raw, err := encode(New(ctx, hclog.NewNullLogger(), wraps, wraps).TaskConfigSchema, block, vars)
	if err == nil {
		err = errors.Join(base.MsgPackDecode(raw, &options), base.MsgPackDecode(raw, &conf))
	}
	return options, conf, err
}

// ErrHostProcesses is what an exec task with pid_mode = "host" is refused with, unless the plugin's config block has
// default_pid_mode = "host" or filesystem = "chroot".
var ErrHostProcesses = wrapped.ErrHostProcesses

// RemovesForeign reports whether a docker driver with that config block, published as name, removes the containers of
// other docker drivers on its engine; see package wrapped.
func RemovesForeign(ctx context.Context, name string, block map[string]any) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	raw, err := encode(New(ctx, hclog.NewNullLogger(), "docker", name).ConfigSchema, block, nil)
	if err != nil {
		return false, err
	}
	var conf struct {
		GC struct {
			Dangling struct {
				Enabled bool `codec:"enabled"`
			} `codec:"dangling_containers"`
		} `codec:"gc"`
	}
	err = base.MsgPackDecode(raw, &conf)
	return conf.GC.Dangling.Enabled, err
}

// encode takes a block to the bytes that a plugin gets. The error is on one line.
func encode(schema func() (*hclspec.Spec, error), block map[string]any, vars map[string]cty.Value) ([]byte, error) {
	attrs, err := schema()
	if err != nil {
		return nil, err
	}
	spec, diagnostics := hclspecutils.Convert(attrs)
	if diagnostics.HasErrors() {
		return nil, errors.New(oneLine(diagnostics))
	}
	if block == nil {
		block = map[string]any{}
	}
	value, diagnostics, _ := hclutils.ParseHclInterface(block, spec, vars)
	if diagnostics.HasErrors() {
		return nil, fmt.Errorf("config block: %s", oneLine(diagnostics))
	}
	return msgpack.Marshal(value, value.Type())
}

// oneLine leaves out where in the text it is: the text is JSON that nobody wrote.
func oneLine(diagnostics hcl.Diagnostics) string {
	var said []string
	for _, d := range diagnostics {
		said = append(said, strings.TrimSuffix(d.Summary, ".")+": "+strings.TrimSuffix(d.Detail, "."))
	}
	return strings.Join(strings.Fields(strings.Join(said, "; ")), " ")
}
