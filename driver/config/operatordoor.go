package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// OperatorDoor is a door of the operator's own, which jobs only name. Its credential is read with a token that the
// cluster's own token makes, so that neither a task nor the author of its job can read it.
type OperatorDoor struct {
	Door
	Namespaces []string `codec:"namespaces"` // of Nomad, whose tasks may use it; "*": all
	Policies   []string `codec:"policies"`   // of the token that reads its credential
}

// vaultOf is the name of the vault block of an operator's door. No job can have a block of that name.
func vaultOf(door string) string { return "door " + door }

// validateDoors checks the operator's doors as jobs' are checked. They name a cluster that makes tokens.
func (c Operator) validateDoors() error {
	for _, name := range slices.Sorted(maps.Keys(c.Doors.Own)) {
		d := c.Doors.Own[name]
		d.Label = name
		if err := c.validateDoor(d); err != nil {
			return fmt.Errorf("door %q: %w", name, err)
		}
	}
	return nil
}

func (c Operator) validateDoor(d *OperatorDoor) error {
	if d.Of == "" {
		d.Of = "default"
	}
	cluster, err := c.Cluster(d.Of)
	switch {
	case err != nil:
		return fmt.Errorf("vault: %w", err)
	case !cluster.Issues():
		return fmt.Errorf("vault %q has no token or token_file, with which the door's credential is read: set one there",
			d.Of)
	case len(d.Namespaces) == 0:
		return errors.New(`namespaces is required: name the Nomad namespaces whose tasks may use the door, or "*"`)
	case len(d.Policies) == 0:
		return errors.New("policies is required: name those that the door's credential is read with")
	case d.ClientCert != nil:
		return errors.New("client_cert is for doors of a job, whose pki block it names: leave it out")
	case d.Listen != 0:
		return errors.New("listen is for the job to say: leave it out")
	}
	if err := validatePolicies(d.Policies); err != nil {
		return err
	}
	if err := d.check(); err != nil {
		return err
	}
	return d.Common().validate(c.PollInterval)
}

// resolveDoors puts the operator's doors in the place of those that the job only names. What the job may set there is
// listen: the error says so. One that the operator does not have is taken out, and Permit refuses the task: a task that
// runs goes on without it.
func (c *Task) resolveDoors(op Operator) error {
	c.Doors = maps.Clone(c.Doors)
	for _, name := range slices.Sorted(maps.Keys(c.Doors)) {
		asked := c.Doors[name]
		if !asked.named() {
			continue
		}
		own := op.Doors.Own[name]
		if own == nil {
			delete(c.Doors, name)
			c.unknown = append(c.unknown, name)
			continue
		}
		if !reflect.DeepEqual(*asked, Door{Listen: asked.Listen}) {
			return fmt.Errorf("door %q: it is the operator's, and a job can set listen only: leave the rest out", name)
		}
		d := own.Door
		d.Label, d.Listen, d.Methods, d.Of = name, asked.Listen, slices.Clone(own.Methods), vaultOf(name)
		d.output, d.operators = Output{}, true
		c.Doors[name] = &d
		c.Vaults = append(c.Vaults, Vault{Name: d.Of, Cluster: own.Of, Identity: "vault", ChangeMode: "noop",
			Policies: own.Policies, operators: true})
	}
	return nil
}

// DoorsTakenAway returns the names of doors that the job only names and the operator does not have, sorted. Permit
// refuses them.
func (c *Task) DoorsTakenAway() []string { return c.unknown }

// named reports whether the job says of a door no more than its name, and where it is to be.
func (d *Door) named() bool {
	return d.URL == "" && d.Postgres == "" && d.Of == ""
}

// ErrDoorUnknown is for a door of which the job says no more than its name, which is not one of the operator's.
var ErrDoorUnknown = errors.New(
	`set url for an API, postgres for a database, or vault = "default" for Vault itself`)

// permitDoors refuses doors that the operator does not let tasks of a Nomad namespace use, and those whose credential
// the task could get without them.
func (c *Task) permitDoors(op Operator, namespace string) error {
	for _, name := range c.unknown {
		return fmt.Errorf("door %q: %w; or name a door of this node's operator, who has %q", name, ErrDoorUnknown,
			slices.Sorted(maps.Keys(op.Doors.Own)))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Doors)) {
		d := c.Doors[name]
		err := c.permitHidden(op, d)
		if own := op.Doors.Own[name]; d.operators && !slices.Contains(own.Namespaces, "*") &&
			!slices.Contains(own.Namespaces, namespace) {
			err = fmt.Errorf("this node's operator lets tasks of the Nomad namespaces %q use it, and this one is of %q",
				own.Namespaces, namespace)
		}
		if err != nil {
			return fmt.Errorf("door %q: %w", name, err)
		}
	}
	return nil
}
