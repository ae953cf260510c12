// Package config is what operators and job authors write: the HCL specification, decoding, defaults, and what is
// permitted. It lists the blocks of a task as values, and does not know what becomes of them.
package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"nomad-driver-vault/driver/vault"
)

// Operator is what the operator set, decoded by package plugin.
type Operator struct {
	Name         string          // the published driver name, e.g. "vault-exec"
	Clusters     []vault.Cluster // the vault "name" {} blocks
	StateDir     string
	StartTimeout time.Duration // how long a start may wait for identity, Vault and templates together
	Linger       time.Duration // how long the session of a task that ended by itself waits for its next start

	PollInterval    time.Duration // for secrets without a lease, where a template sets none
	MinPollInterval time.Duration // what a template may ask for at the least
	DeniedUsers     []string      // users that no task may run as
	AuthRegistries  []string      // to which credentials of auth.vault_path may go, any where empty
	Allow           Allow         // policies that tasks may ask for
	DefaultUser     string        // who a task runs as that names no user, empty when the wrapped driver does not say
	ImageUser       bool          // images name users, and know those that tasks name
	Doors           Doors         // what the doors of all tasks may do
}

// Validate returns an error that names the field for the first value that cannot be meant.
func (c Operator) Validate() error {
	switch {
	case c.StartTimeout < time.Second:
		return fmt.Errorf("start_timeout %s is too short: set 1s or more, for example \"60s\"", c.StartTimeout)
	case c.Linger < 0:
		return fmt.Errorf("linger %s is negative: set 0s to revoke at once, or for example \"60s\"", c.Linger)
	case c.MinPollInterval < time.Second:
		return fmt.Errorf("min_poll_interval %s is too short: set 1s or more", c.MinPollInterval)
	case c.PollInterval < c.MinPollInterval:
		return fmt.Errorf("poll_interval %s is below min_poll_interval %s", c.PollInterval, c.MinPollInterval)
	case c.StateDir == "":
		return fmt.Errorf("state_dir is empty: leave it out for the default")
	}
	if err := c.validateAllow(); err != nil {
		return err
	}
	return c.validateDoors()
}

// Cluster returns the cluster of that name.
func (c Operator) Cluster(name string) (vault.Cluster, error) {
	var names []string
	for _, known := range c.Clusters {
		if known.Name == name {
			return known, nil
		}
		names = append(names, strconv.Quote(known.Name))
	}
	if len(names) == 0 {
		return vault.Cluster{}, fmt.Errorf("cluster %q: the operator has configured no Vault: "+
			"add vault %q { address = ... } to plugin %q { config { } } of the agent", name, name, c.Name)
	}
	return vault.Cluster{}, fmt.Errorf("cluster %q is unknown: the operator has configured %s",
		name, strings.Join(names, ", "))
}
