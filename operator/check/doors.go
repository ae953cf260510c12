package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/render"
)

// doorsOf is a task that has doors.
type doorsOf struct {
	*taskDriver
	group *nomad.TaskGroup
	task  *nomad.Task
	of    *drivers.TaskConfig
	conf  config.Task
	asked render.Asked
}

// checkDoors says what a start would refuse of the task's doors, what would keep them from working, and where the task
// gets the credential after all.
func (c *checker) checkDoors(ctx context.Context, t doorsOf) {
	if len(t.conf.Doors) == 0 || t.conf.Validate(t.taskDriver.conf) != nil { // which was said
		return
	}
	if t.wraps == "raw_exec" {
		c.problem(fmt.Sprintf("task %q", t.task.Name), "", "%s", config.ErrDoorUnhidden)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(t.conf.Doors)) {
		d, before := t.conf.Doors[name], len(c.findings)
		about := fmt.Sprintf("task %q, door %q", t.task.Name, name)
		if t.taskDriver.conf.LogsIn(&t.conf, d) {
			c.checkHidden(about, t.task, t.conf.Vault(d.Common().Vault))
		}
		if err := c.checkListen(t, d); err != nil {
			c.problem(about, "", "%s", err)
		}
		c.checkGiven(about, t, d)
		spec, err := c.checkSpec(about, t, d)
		if err == nil {
			c.checkUpstream(ctx, about, t, spec)
		}
		if len(c.findings) == before {
			c.ok(about, "it is right, and the task has nothing of its credential")
		}
	}
}

// checkHidden finds identities that the task can read, and that Vault takes in the place of the hidden one.
func (c *checker) checkHidden(about string, task *nomad.Task, v config.Vault) {
	all := slices.Clone(task.Identities)
	if task.Identity != nil {
		all = append(all, task.Identity)
	}
	var hidden *nomad.WorkloadIdentity
	shown := map[string][]string{} // audiences by where the task reads them
	for _, i := range all {
		if i.Filepath == v.IdentityFile {
			hidden = i
		}
		if i.File && !strings.HasPrefix(path.Clean(i.Filepath), "private/") {
			shown[placeOf(i)] = i.Audience
		}
		if name := strings.TrimSuffix("NOMAD_TOKEN_"+i.Name, "_"); i.Env {
			shown["the variable "+strings.TrimSuffix(name, "_default")] = i.Audience
		}
	}
	if hidden == nil {
		return // which is said elsewhere
	}
	for _, where := range slices.Sorted(maps.Keys(shown)) {
		if err := credentials.CheckShown(where, shown[where], hidden.Audience); err != nil {
			c.problem(about, "", "%s", err)
			return
		}
	}
}

// checkListen judges the port of a door, as far as the job decides which network the task is in.
func (c *checker) checkListen(t doorsOf, d *config.Door) error {
	var theirs struct {
		NetworkMode string `codec:"network_mode"`
	}
	if err := t.of.DecodeDriverConfig(&theirs); err != nil {
		return err
	}
	mode := ""
	if len(t.group.Networks) > 0 {
		mode = t.group.Networks[0].Mode
	}
	return d.CheckListen(mode != "" && mode != "host", theirs.NetworkMode)
}

// checkGiven warns where the task gets what the door is to keep from it.
func (c *checker) checkGiven(about string, t doorsOf, d *config.Door) {
	const fix = "leave one of them out: who has the credential needs no door"
	secret := map[string]string{} // by cluster and path: where the door asks
	each := func(visit func(key string, q render.Question)) {
		for _, use := range t.asked.Vaults {
			for _, q := range use.Questions {
				plain := strings.Replace(q.Request.Path, "/data/", "/", 1) // as the vault command has it
				visit(strings.Join([]string{use.Cluster, use.Namespace, plain}, " "), q)
			}
		}
	}
	each(func(key string, q render.Question) {
		if q.Door == d.Label && q.Request.Path != "" {
			secret[key] = q.Block
		}
	})
	each(func(key string, q render.Question) {
		if by := secret[key]; by != "" && q.Door == "" && q.Block != "auth" {
			c.warn(about, fix, "the task gets the secret of %s too: %s asks for %s", by, q.Block, q.Request.Path)
		}
	})
	if d.ClientCert == nil {
		return
	}
	pki := t.conf.PKIs[d.ClientCert.PKI]
	for _, file := range pki.Files() {
		if file.Private {
			c.warn(about, fix, "the task gets the key of client_cert too: %s has %s", pki, file.Option)
		}
	}
}

// checkSpec judges the door as what serves it does. Without the client's configuration, what that decides is a warning.
func (c *checker) checkSpec(about string, t doorsOf, d *config.Door) (door.Spec, error) {
	spec, err := t.taskDriver.conf.DoorSpec(&t.conf, d, t.task.Name)
	switch {
	case errors.Is(err, door.ErrNotAllowed) && !t.local:
		c.warn(about, "run check with -config on a client", "unless the clients' configuration of the plugin allows it: %s",
			err)
		return spec, err
	case err == nil:
		_, err = process.Kinds(spec, nil)
	}
	if err != nil {
		c.problem(about, "", "%s", err)
	}
	return spec, err
}

// checkUpstream says whether the upstream may be and is reached from this client, or with -login from here. That a
// cluster answers is said with its vault block.
func (c *checker) checkUpstream(ctx context.Context, about string, t doorsOf, spec door.Spec) {
	if spec.Vault != nil || !t.local && !c.login {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, upstream := t.conf.Doors[spec.Name].Upstream("")
	switch err := process.Reach(ctx, spec); {
	case err == nil:
		c.ok(about, "%s answers", upstream)
	case t.local:
		c.problem(about, "", "%s", err)
	default:
		c.warn(about, "run check with -config on a client", "%s cannot be reached from here: %s", upstream, err)
	}
}
