package operator

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
)

var quiet = hclog.NewNullLogger()

// patience is how long one cluster may take to answer.
const patience = 15 * time.Second

// login is how a task would log in for one of its vault blocks.
type login struct {
	render.Use
	about, task string
	local       bool // Use.Server is of this machine's configuration
	claims      map[string]string
	audience    []string
	subject     string // without the region in front

	client     *vault.Client // asks as the task does
	as         *api.Client   // the operator's, in the namespace of the login
	role, path string        // where they are known
	settings   settings      // of the role
	acl        acl
	can        func(path string, capabilities []string) bool // nil: not known
}

// use looks at one vault block: can the task log in, and may it do what its templates ask?
func (c *checker) use(ctx context.Context, l login) {
	if l.Server.Address == "" {
		l.Server.Address = c.vault.Address()
		c.warn(l.about, "give -config, or -path", "no client tells its vault %q block: VAULT_ADDR and auth/%s are taken for it", l.Cluster, l.Server.AuthPath)
	}
	l.role, l.path, l.Namespace = cmp.Or(l.Role, l.Server.Role), l.Server.AuthPath, cmp.Or(l.Namespace, l.Server.Namespace)
	l.client, l.as = c.direct.At(l.path), c.vault.WithNamespace(l.Namespace)
	if l.local || l.Cluster != c.cluster {
		var err error
		if l.client, err = vault.NewClient(l.Server, quiet); err != nil {
			c.fault(l.about, err)
			return
		}
	}
	if !c.reach(ctx, l) {
		return
	}
	works := c.probe(ctx, l)
	if l.Cluster != c.cluster {
		c.warn(l.about, fmt.Sprintf("run check again with -cluster=%s, VAULT_ADDR and VAULT_TOKEN of that cluster", l.Cluster),
			"role and policies are not looked at: VAULT_ADDR is that of cluster %q", c.cluster)
		return
	}
	found, err := l.read(ctx)
	switch {
	case err != nil:
		c.warn(l.about, "", "role and policies cannot be looked at: %v", err)
	case found:
		c.admits(l)
		l.can = l.acl.allows
	default:
		if works { // otherwise it is said why not
			c.warn(l.about, fmt.Sprintf("create it, or set VAULT_ADDR to that of cluster %q", l.Cluster), "%s has no role %q of auth/%s", c.vault.Address(), l.role, l.path)
		}
		return
	}
	c.questions(ctx, l)
}

// probe tells how Vault takes a login, and reports whether it would take the task's.
func (c *checker) probe(ctx context.Context, l login) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := probe(ctx, l.client, l.role, l.Namespace)
	switch {
	case err != nil:
		c.fault(l.about, err)
	case l.role == "":
		c.ok(l.about, "auth/%s has a default role, and Vault reads Nomad's keys", l.path)
	default:
		c.ok(l.about, "auth/%s has role %q, and Vault reads Nomad's keys", l.path, l.role)
	}
	return err == nil
}

// reach reports whether a cluster answers, and tells it once.
func (c *checker) reach(ctx context.Context, l login) bool {
	at := l.Cluster + " " + l.Server.Address
	answers, known := c.reached[at]
	if known {
		return answers
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	about, here := fmt.Sprintf("cluster %q", l.Cluster), l.Cluster == c.cluster
	if here && strings.TrimSuffix(c.vault.Address(), "/") != strings.TrimSuffix(l.Server.Address, "/") {
		c.warn(about, "set VAULT_ADDR to the latter if it is another Vault", "VAULT_ADDR is %s, and address in the plugin's configuration %s", c.vault.Address(), l.Server.Address)
	}
	err := l.client.Answers(ctx)
	text, hint := parts(err)
	switch {
	case err == nil:
		c.ok(about, "%s answers", l.client.Cluster().Address)
	case l.local:
		c.problem(about, hint, "%s", text)
	case here:
		c.problem(about, "correct VAULT_ADDR, VAULT_CACERT or another of the vault command's variables", "%s: %s", c.vault.Address(), text)
	default:
		c.warn(about, "run check with -config on a client", "%s cannot be asked from here, without the clients' network, ca_file, cert_file and so on: %s", l.Server.Address, text)
	}
	c.reached[at] = err == nil
	return err == nil
}

// read reads what the role grants, and reports whether there is such a role.
func (l *login) read(ctx context.Context) (found bool, err error) {
	methods, err := l.as.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return false, failed("list auth methods", l.as, err)
	}
	if l.role == "" {
		config, err := read(ctx, l.as, "auth/"+l.path+"/config")
		if err != nil {
			return false, err
		}
		l.role, _ = config["default_role"].(string)
	}
	l.settings, err = read(ctx, l.as, "auth/"+l.path+"/role/"+l.role)
	method := methods[l.path+"/"]
	if err != nil || l.settings == nil || method == nil {
		return false, err
	}
	known := identityOf(method.Accessor, l.settings, l.claims)
	for _, name := range l.policies() {
		text, err := policy(ctx, l.as, name)
		if err == nil {
			err = l.acl.add(name, text, known)
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

func (l login) policies() []string {
	names := texts(l.settings["token_policies"])
	if l.settings["token_no_default_policy"] != true {
		names = append([]string{"default"}, names...)
	}
	return names
}

// texts reads a list of strings, or one string.
func texts(v any) (all []string) {
	if list, ok := v.([]any); ok {
		for _, one := range list {
			all = append(all, fmt.Sprint(one))
		}
	} else if v != nil {
		all = []string{fmt.Sprint(v)}
	}
	return all
}

// admits compares what the role binds with the claims that the task's identity will have.
func (c *checker) admits(l login) {
	role, before := fmt.Sprintf("role %q of auth/%s", l.role, l.path), len(c.findings)
	bound := texts(l.settings["bound_audiences"])
	if len(bound)+len(l.audience) > 0 && !slices.ContainsFunc(l.audience, func(aud string) bool { return slices.Contains(bound, aud) }) {
		c.problem(l.about, fmt.Sprintf("make aud of the task's identity block one of bound_audiences of role %q, or add it there", l.role),
			"aud is %q, and %s wants one of %q", l.audience, role, bound)
	}
	user := strings.TrimPrefix(fmt.Sprint(l.settings["user_claim"]), "/")
	pointer := l.settings["user_claim_json_pointer"] == true
	if known := append(slices.Sorted(maps.Keys(l.claims)), "nomad_allocation_id", "sub"); !slices.Contains(known, user) || user != l.settings["user_claim"] && !pointer {
		c.problem(l.about, `set user_claim = "/nomad_job_id" and user_claim_json_pointer = true, as nomad-driver-vault setup does`,
			"user_claim of %s is %q, which Nomad's identities do not have", role, l.settings["user_claim"])
	}
	if subject, _ := l.settings["bound_subject"].(string); subject != "" && !strings.HasSuffix(subject, ":"+l.subject) {
		c.problem(l.about, "correct or remove bound_subject", "%s is for the subject %q, and the task's is <region>:%s", role, subject, l.subject)
	}
	claims, _ := l.settings["bound_claims"].(map[string]any)
	for _, claim := range slices.Sorted(maps.Keys(claims)) {
		value, known := l.claims[strings.TrimPrefix(claim, "/")]
		switch wanted := texts(claims[claim]); {
		case !known:
			c.warn(l.about, "", "bound_claims of %s has %q, which is not known before the task runs", role, claim)
		case !slices.ContainsFunc(wanted, func(w string) bool {
			return w == value || l.settings["bound_claims_type"] == "glob" && like(w, value)
		}):
			c.problem(l.about, "add it to bound_claims, or name another role in the task's vault block",
				"%s does not admit this job: %s is %q, and bound_claims wants one of %q", role, claim, value, wanted)
		}
	}
	if len(c.findings) == before {
		c.ok(l.about, "%s admits the task", role)
	}
}

// like matches the globs of bound_claims, in which * stands for anything.
func like(glob, value string) bool {
	ok, _ := regexp.MatchString("^"+strings.ReplaceAll(regexp.QuoteMeta(glob), `\*`, ".*")+"$", value)
	return ok
}

// A located question is one whose path is known.
type located struct {
	render.Question
	vault.Place
	about string
	asked string // the path that policies are asked about: that of a list ends with a slash
}

// questions looks at each path of each template: what is mounted there, whether the task may, and whether there is a secret.
func (c *checker) questions(ctx context.Context, l login) {
	found := c.locate(ctx, l)
	if c.login {
		can, err := c.asTask(ctx, l, found)
		if err != nil {
			c.fault(l.about, err)
			return
		}
		l.can = can
	}
	for _, q := range found {
		if l.can == nil {
			c.warn(q.about, "", "%s %s: not known whether the policies allow it", q.Request.Op, q.Path)
			continue
		}
		c.allowed(l, q)
		if q.Request.Op == vault.Read && q.Engine == "kv" && !q.Request.Optional {
			c.present(ctx, l, q)
		}
	}
}

// locate finds where the paths lead.
func (c *checker) locate(ctx context.Context, l login) (found []located) {
	for _, q := range l.Questions {
		if q.Request.Path == "" || strings.Contains(q.Request.Path, "${") {
			c.warn(l.about, "see to it that a policy of the role allows what it asks for",
				"%s: %s: only the task knows the path", q.Block, q.Text)
			continue
		}
		about := fmt.Sprintf("%s, %s", l.about, q.Block)
		place, err := c.direct.As(vault.Auth{Value: l.as.Token()}, "", l.as.Namespace()).Locate(ctx, q.Request)
		switch {
		case err != nil:
			c.fault(about, err)
		case place.Engine == "" && c.unmounted(ctx, l.as, q.Request.Path):
			c.problem(about, "enable one, or correct the path or the namespace", "no secrets engine is mounted at %s", q.Request.Path)
		case q.Request.Op == vault.List:
			found = append(found, located{q, place, about, place.Path + "/"})
		default:
			found = append(found, located{q, place, about, place.Path})
		}
	}
	return found
}

// asTask logs in with the identity that the running task has, and returns what Vault lets it do.
func (c *checker) asTask(ctx context.Context, l login, asked []located) (func(string, []string) bool, error) {
	if l.IdentityFile != "" {
		return nil, fmt.Errorf("-login: the task hides its identity in %s", l.IdentityFile)
	}
	var jwt, said bytes.Buffer
	command := []string{"/bin/sh", "-c", `cat "$NOMAD_SECRETS_DIR/$0"`, "nomad_" + l.Identity + ".jwt"}
	code, err := c.nomad.Allocations().Exec(ctx, c.running, l.task, false, command, strings.NewReader(""), &jwt, &said, nil, nil)
	if err == nil && (code != 0 || jwt.Len() == 0) {
		err = fmt.Errorf("exit code %d: %s", code, said.String())
	}
	if err != nil {
		return nil, fmt.Errorf("-login: read the identity of the running task: %w", err)
	}
	var paths []string
	for _, q := range asked {
		paths = append(paths, q.asked)
	}
	can, err := capable(ctx, l.client, l.role, l.Namespace, strings.TrimSpace(jwt.String()), paths)
	return func(path string, capabilities []string) bool {
		return slices.ContainsFunc(can[path], func(have string) bool { return slices.Contains(capabilities, have) })
	}, err
}

// allowed tells whether the role's policies allow a request.
func (c *checker) allowed(l login, q located) {
	capabilities := q.Request.Op.Capabilities()
	if l.can(q.asked, capabilities) {
		c.ok(q.about, "%s %s is allowed", q.Request.Op, q.Path)
		return
	}
	fix := vault.Grant(l.role, l.policies(), q.Path, q.Request.Op)
	without := strings.Replace(q.asked, q.Mount+"data/", q.Mount, 1)
	switch {
	case q.V2 && without != q.asked && l.can(without, capabilities):
		fix = fmt.Sprintf("write data/ after %s in the paths of the policies %q: the mount is KV version 2", q.Mount, l.policies())
	case len(l.acl.left) > 0:
		fix += fmt.Sprintf("; or, where the policies speak of %s, which a login at auth/%s does not have: run nomad-driver-vault setup",
			strings.Join(slices.Compact(slices.Sorted(slices.Values(l.acl.left))), ", "), l.path)
	}
	c.problem(q.about, fix, "%s %s is denied", q.Request.Op, q.Path)
}

// unmounted reports that nothing is mounted at a path, as far as the operator may know.
func (c *checker) unmounted(ctx context.Context, as *api.Client, at string) bool {
	mounts, err := as.Sys().ListMountsWithContext(ctx)
	for mount := range mounts {
		if strings.HasPrefix(at+"/", mount) {
			return false
		}
	}
	return err == nil
}

// present tells whether a KV engine has a secret, without reading it. Where the operator may not know, nothing is told.
func (c *checker) present(ctx context.Context, l login, q located) {
	fix := "write it first, or correct the path"
	if q.V2 {
		meta, err := read(ctx, l.as, strings.Replace(q.Path, q.Mount+"data/", q.Mount+"metadata/", 1))
		if err != nil || meta != nil {
			return
		}
	} else {
		names, err := list(ctx, l.as, path.Dir(q.Path))
		if err != nil || slices.Contains(names, path.Base(q.Path)) {
			return
		}
		if strings.HasPrefix(q.Path, q.Mount+"data/") {
			fix = "leave data/ out: the mount is KV version 1"
		}
	}
	c.problem(q.about, fix, "there is no secret at %s", q.Path)
}
