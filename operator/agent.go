package operator

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/hcl"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/plugin"
)

// Agent is the part of an agent's configuration that concerns drivers.
type Agent struct {
	Plugins []PluginBlock `hcl:"plugin"`
	DataDir string        `hcl:"data_dir"`
	Plugged string        `hcl:"plugin_dir"`
	Client  struct {
		Options  map[string]string `hcl:"options"`
		AllocDir string            `hcl:"alloc_dir"`
	} `hcl:"client"`
}

// A PluginBlock is a plugin block of an agent's configuration.
type PluginBlock struct {
	Name   string         `hcl:",key"` // of the file in plugin_dir
	Args   []string       `hcl:"args"`
	Config map[string]any `hcl:"config"`
}

// ReadAgent reads what an agent is started with: files in HCL or JSON, or folders of *.hcl and *.json files.
func ReadAgent(paths []string) (all Agent, err error) {
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			files, _ = filepath.Glob(filepath.Join(path, "*.hcl"))
			inJSON, _ := filepath.Glob(filepath.Join(path, "*.json"))
			files = append(files, inJSON...)
			slices.Sort(files) // as the agent reads them
		}
		for _, file := range files {
			text, err := os.ReadFile(filepath.Clean(file))
			if err == nil {
				err = hcl.Decode(&all, string(text)) // adds to what was read before
			}
			if err != nil {
				return all, fmt.Errorf("read %s: %w", file, err)
			}
		}
	}
	return all, nil
}

// TaskDirs returns the directory that has those of tasks in it, or one above it. It is empty if the agent names none.
func (a Agent) TaskDirs() string { return cmp.Or(a.Client.AllocDir, a.DataDir) }

// PluginDir returns the directory of the agent's plugins, empty if the agent names none.
func (a Agent) PluginDir() string {
	if a.Plugged == "" && a.DataDir != "" {
		return filepath.Join(a.DataDir, "plugins")
	}
	return a.Plugged
}

// PluginConfig returns the config of the plugin block with that name, nil if there is none.
func (a Agent) PluginConfig(name string) map[string]any {
	for _, block := range a.Plugins {
		if block.Name == name {
			return block.Config
		}
	}
	return nil
}

// A Publisher tells what a plugin block publishes by the file's name and its args: which driver it wraps, and the
// name that jobs use. An error means that it is not a block of ours.
type Publisher func(args []string) (wraps, name string, err error)

// A Driver is one of ours in an agent's configuration.
type Driver struct {
	Block PluginBlock
	Name  string          // that jobs use
	Wraps string          // the wrapped driver
	Conf  config.Operator // empty if there is an Err
	Err   error           // that the plugin refuses its configuration with
}

// Drivers returns the drivers of ours that an agent publishes, in the order of its plugin blocks.
func (a Agent) Drivers(ctx context.Context, publisher Publisher) (ours []Driver) {
	for _, block := range a.Plugins {
		wraps, name, err := publisher(append([]string{block.Name}, block.Args...))
		if err != nil {
			continue
		}
		conf, err := plugin.ReadConfig(ctx, wraps, name, block.Config)
		ours = append(ours, Driver{Block: block, Name: name, Wraps: wraps, Conf: conf, Err: err})
	}
	return ours
}
