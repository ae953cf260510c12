package check

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/zclconf/go-cty/cty"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/plugin"
)

// checkTask looks at one task that has a driver of this plugin.
func (c *checker) checkTask(ctx context.Context, d *taskDriver, group *nomad.TaskGroup, task *nomad.Task) {
	about := fmt.Sprintf("task %q", task.Name)
	if !c.render {
		c.checkDriver(ctx, about, d)
	}
	of, conf, err := c.read(ctx, d, group, task)
	if err != nil {
		c.refused(about, err)
		return
	}
	asked, err := c.review(ctx, d, of, conf)
	switch {
	case err != nil:
		c.refused(about, err)
		return
	case c.render:
		c.renderTask(ctx, d, of, conf, asked)
		return
	}
	c.ok(about, "its vault and template blocks are right")
	c.checkDispatch(about, task)
	c.checkBeside(about, task, asked)
	c.checkDoors(ctx, doorsOf{d, group, task, of, conf, asked})
	for _, use := range asked.Vaults {
		about := fmt.Sprintf("task %q, vault %q", task.Name, use.Name)
		if len(use.Questions)+len(use.Doors) == 0 && !use.Env && !use.File {
			c.warn(about, "remove it", "nothing asks it, and the task is not shown its token: the driver does not log in")
			continue
		}
		if differ := d.differ[use.Cluster]; differ != "" {
			c.warn(about, "run check with -config on one client of each kind",
				"cluster %q is not the same on all clients, and not looked at: %s", use.Cluster, differ)
			continue
		}
		if use.Server.Issues() {
			c.ok(about, "it gets its token by token role %q; "+
				"the clients' attribute driver.%s.cluster.%s says whether that works",
				use.Server.Role, task.Driver, use.Cluster)
			continue
		}
		if identity := c.checkIdentity(about, task, use); identity != nil {
			c.checkVaultBlock(ctx, newLogin(about, d, use, identityOf(c.job, group, task, identity)))
		}
	}
}

// refused is a problem for which no start would ask Vault.
func (c *checker) refused(about string, err error) {
	fix := ""
	if strings.Contains(err.Error(), "Unknown variable") {
		fix = "set it in the task's env; write $(NAME) for what a block sets with env = true, $NAME for a shell in the task"
	}
	c.problem(about, fix, "%s", err)
}

// read decodes the task's config block as a start does, of what the agent would tell the driver.
func (c *checker) read(ctx context.Context, d *taskDriver, group *nomad.TaskGroup, task *nomad.Task) (
	of *drivers.TaskConfig, conf config.Task, err error) {
	env, vars, err := c.taskEnv(d, group, task)
	if err != nil {
		return nil, conf, err
	}
	options, conf, err := plugin.ReadTask(ctx, d.wraps, task.Config, vars)
	if err != nil {
		return nil, conf, err
	}
	of = &drivers.TaskConfig{Name: task.Name, Namespace: *c.job.Namespace, User: task.User, Env: env}
	return of, conf, of.EncodeConcreteDriverConfig(options)
}

// review judges a config block as a start does, and returns what it would ask of which Vault.
func (c *checker) review(ctx context.Context, d *taskDriver, of *drivers.TaskConfig, conf config.Task) (
	asked render.Asked, err error) {
	pids := c.permitProcesses(d, of)
	if d.local {
		asked, err = render.Review(d.conf, of, conf)
		return asked, cmp.Or(err, pids)
	}
	name, _, _ := strings.Cut(of.User, ":")
	if _, _, err := config.LookupUser(name); err != nil { // the client may know it
		of.User = ""
	}
	asked, err = render.Review(d.conf, of, conf)
	if errors.Is(err, config.ErrDoorUnknown) { // a client's operator may have it
		c.warnOfClients(of, err)
		return asked, nil
	}
	if err != nil {
		return asked, err
	}
	byDefault, err := plugin.ReadConfig(ctx, d.wraps, d.name, nil)
	byDefault.Clusters, byDefault.Allow = d.conf.Clusters, d.conf.Allow
	if err == nil {
		_, err = render.Review(byDefault, of, conf)
	}
	if err = cmp.Or(err, pids); err != nil {
		c.warnOfClients(of, err)
	}
	return asked, nil
}

// warnOfClients is for what only a client's configuration of the plugin could allow.
func (c *checker) warnOfClients(of *drivers.TaskConfig, err error) {
	c.warn(fmt.Sprintf("task %q", of.Name), "run check with -config on a client",
		"unless the clients' configuration of the plugin allows it: %s", err)
}

// permitProcesses judges pid_mode as the wrapped driver does.
func (c *checker) permitProcesses(d *taskDriver, of *drivers.TaskConfig) error {
	var options struct {
		PIDMode string `codec:"pid_mode"`
	}
	err := of.DecodeDriverConfig(&options)
	if err == nil && d.wraps == "exec" && options.PIDMode == "host" && d.block["default_pid_mode"] != "host" &&
		len(c.chroots(d)) == 0 {
		return plugin.ErrHostProcesses
	}
	return err
}

var (
	metaReference = regexp.MustCompile(`\$\{[^}]*\b(NOMAD_META_\w+)`)
	metaUpstream  = regexp.MustCompile(`"(url|postgres)":"[^"]*\$\{[^}]*\b(NOMAD_META_\w+)`)
)

// checkDispatch warns of what whoever dispatches the job could write into a template.
func (c *checker) checkDispatch(about string, task *nomad.Task) {
	var conf struct {
		Template []struct{ Data, Source string }
	}
	text, err := json.Marshal(task.Config)
	if err != nil || c.job.ParameterizedJob == nil || json.Unmarshal(text, &conf) != nil {
		return
	}
	if found := metaUpstream.FindSubmatch(text); found != nil {
		c.warn(about, "write it as it is, or have the operator set allow_hosts", "door: %s has ${%s}, which whoever "+
			"dispatches the job chooses: the credential goes there", found[1], found[2])
	}
	for _, t := range conf.Template {
		if name := metaReference.FindStringSubmatch(t.Data); name != nil {
			c.warn(about, fmt.Sprintf("write {{ env %q }}", name[1]), "template: data has ${%s}, which whoever dispatches the "+
				"job chooses: a value that would become template code is refused", name[1])
		}
		payload := task.DispatchPayload
		if payload != nil && payload.File != "" && path.Base(t.Source) == path.Base(payload.File) {
			c.warn(about, fmt.Sprintf("write the template into data, with {{ file %q }}", "local/"+payload.File),
				"template: source %q is the payload of a dispatch: whoever dispatches the job writes the template", t.Source)
		}
	}
}

// checkIdentity returns the identity block that a vault block logs in with, nil if there is none to look at.
func (c *checker) checkIdentity(about string, task *nomad.Task, use render.Use) *nomad.WorkloadIdentity {
	i := slices.IndexFunc(task.Identities, func(i *nomad.WorkloadIdentity) bool {
		return i.Name == use.Identity || use.IdentityFile != "" && i.Filepath == use.IdentityFile
	})
	if i < 0 && task.Vault != nil && use.Role == "" && use.IdentityFile == "" && use.Identity == "vault" {
		c.ok(about, "the task is served with the token that Nomad derives for its own vault block, "+
			"which is not looked at here")
		return nil
	}
	if i < 0 {
		c.add(finding{Status: statusProblem, About: about, Fix: "add to the task:", Paste: identityBlock(use.Vault),
			Message: fmt.Sprintf("identity %q: no file %s", use.Identity, identityFile(use.Vault))})
		return nil
	}
	if task.Vault != nil && len(task.Templates) == 0 {
		c.warn(fmt.Sprintf("task %q", task.Name), "remove it: the vault block of config is enough",
			"for its vault block outside of config Nomad makes another token, which nothing uses")
	}
	identity := task.Identities[i]
	elsewhere := identity.File && placeOf(identity) != identityFile(use.Vault)
	switch {
	case elsewhere:
		c.problem(about, fmt.Sprintf("write filepath = %q into the identity block, or correct identity_file",
			use.IdentityFile), "identity %q: no file %s", identity.Name, identityFile(use.Vault))
	case !identity.File && !identity.Env:
		c.problem(about, "add to the identity block: file = true", "identity %q: no file %s", identity.Name,
			identityFile(use.Vault))
	case !identity.File:
		c.warn(about, "add to the identity block: file = true",
			"identity %q is in the environment only, where Nomad does not renew it", identity.Name)
	case identity.TTL == 0:
		c.warn(about, `add to the identity block: ttl = "1h"`, "identity %q has no end, "+
			"and Vault takes such a JWT for a few minutes after it was made only", identity.Name)
	default:
		c.ok(about, "the task has its identity %q", identity.Name)
	}
	return identity
}

// placeOf is where Nomad puts an identity with file = true.
func placeOf(i *nomad.WorkloadIdentity) string {
	return identityFile(config.Vault{Identity: cmp.Or(i.Name, "default"), IdentityFile: i.Filepath})
}

// identityFile is where Nomad puts the JWT that a vault block logs in with.
func identityFile(v config.Vault) string {
	if v.Identity == "default" {
		return cmp.Or(v.IdentityFile, "secrets/nomad_token")
	}
	return cmp.Or(v.IdentityFile, "secrets/nomad_"+v.Identity+".jwt")
}

// identityBlock returns the identity block that a vault block wants, for a jobspec.
func identityBlock(v config.Vault) string {
	file := hclwrite.NewEmptyFile()
	body := file.Body().AppendNewBlock("identity", nil).Body()
	body.SetAttributeValue("name", cty.StringVal(v.Identity))
	body.SetAttributeValue("aud", cty.TupleVal([]cty.Value{cty.StringVal("vault.io")}))
	body.SetAttributeValue("file", cty.True)
	if v.IdentityFile != "" {
		body.SetAttributeValue("filepath", cty.StringVal(v.IdentityFile))
	}
	body.SetAttributeValue("ttl", cty.StringVal("1h"))
	return string(file.Bytes())
}

// identityOf returns the claims that the task's identity will have, as far as the job decides them
// (https://developer.hashicorp.com/nomad/docs/concepts/workload-identity). A dispatched job has its parent's.
func identityOf(job *nomad.Job, group *nomad.TaskGroup, task *nomad.Task, block *nomad.WorkloadIdentity) identity {
	id := cmp.Or(*job.ParentID, *job.ID)
	claims := map[string]string{"nomad_job_id": id, "nomad_namespace": *job.Namespace, "nomad_task": task.Name}
	if v := task.Vault; v != nil && v.Role != "" && strings.HasPrefix(block.Name, vaultPrefix) {
		claims["vault_role"] = v.Role
	}
	return identity{
		task:     task.Name,
		name:     block.Name,
		claims:   claims,
		audience: block.Audience,
		subject:  strings.Join([]string{*job.Namespace, id, *group.Name, task.Name, block.Name}, ":"),
	}
}
