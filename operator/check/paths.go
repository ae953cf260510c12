package check

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
)

// A located question is one whose path is known.
type located struct {
	render.Question
	vault.Place
	about   string
	aclPath string // that policies are asked about: that of a list ends with a slash
}

// checkPaths looks at each path that the task's blocks name: what is mounted there, whether the task may use it, and
// whether there is a secret.
func (c *checker) checkPaths(ctx context.Context, l *login) {
	found := c.locate(ctx, l)
	hidden := strings.HasPrefix(l.IdentityFile, "private/")
	if c.login && hidden {
		c.warn(l.about, "", "-login: the task hides its identity in %s: the policies of the role are looked at in its place",
			l.IdentityFile)
	}
	if c.login && !hidden {
		allows, err := c.askAsTask(ctx, l, found)
		if err != nil {
			c.driverError(l.about, err)
			return
		}
		l.allows = allows
	}
	for _, q := range found {
		if l.allows == nil {
			c.warn(q.about, "", "%s %s: not known whether the policies allow it", q.Request.Op, q.Path)
			continue
		}
		c.checkAllowed(l, q)
		c.checkLookups(q)
		if q.Request.Op == vault.Read && q.Engine == "kv" && !q.Request.Optional {
			c.checkExists(ctx, l, q)
		}
	}
}

// locate finds where the paths lead.
func (c *checker) locate(ctx context.Context, l *login) (found []located) {
	caller := c.direct.As(vault.Auth{Value: l.as.Token()}, "", l.as.Namespace())
	for _, q := range l.Questions {
		if q.Request.Path == "" || strings.Contains(q.Request.Path, "${") {
			c.warn(l.about, "see to it that a policy of the role allows what it asks for",
				"%s: %s: only the task knows the path", q.Block, q.Text)
			continue
		}
		about := fmt.Sprintf("%s, %s", l.about, q.Block)
		place, err := caller.Locate(ctx, q.Request)
		switch {
		case err != nil:
			c.driverError(about, err)
		case place.Engine == "" && l.isUnmounted(ctx, q.Request.Path):
			c.problem(about, "no secrets engine is mounted there: enable one, or correct the path or the namespace",
				"%s %s: denied by Vault", q.Request.Op, q.Request.Path)
		case q.Request.Op == vault.List:
			found = merge(found, located{q, place, about, place.Path + "/"})
		default:
			found = merge(found, located{q, place, about, place.Path})
		}
	}
	return found
}

// merge adds a question to those before it. The same one of several blocks is one.
func merge(all []located, q located) []located {
	i := slices.IndexFunc(all, func(other located) bool {
		return other.Request.Op == q.Request.Op && other.aclPath == q.aclPath
	})
	if i < 0 {
		return append(all, q)
	}
	same := &all[i]
	if !strings.Contains(same.about+",", " "+q.Block+",") {
		same.about += ", " + q.Block
	}
	same.Request.Optional = same.Request.Optional && q.Request.Optional
	same.Lookups = append(same.Lookups, q.Lookups...)
	return all
}

// checkLookups finds fields that are named as the other version of KV has them.
func (c *checker) checkLookups(q located) {
	if q.Engine != "kv" || q.V2 && !strings.HasPrefix(q.Path, q.Mount+"data/") {
		return
	}
	for _, l := range q.Lookups {
		fields := append([]string{"", "Data", "data"}, l.Fields...)
		if !q.V2 {
			fields = append([]string{"", "Data"}, l.Fields[1:]...)
		}
		if wrong := l.Wrong(q.V2); wrong != "" {
			c.problem(q.about, "write "+strings.Join(fields, "."), "line %d: %s", l.Line, wrong)
		}
	}
}

// isUnmounted reports that nothing is mounted at a path. It is false if the operator's token may not know.
func (l *login) isUnmounted(ctx context.Context, at string) bool {
	mounts, err := l.as.Sys().ListMountsWithContext(ctx)
	for mount := range mounts {
		if strings.HasPrefix(at+"/", mount) {
			return false
		}
	}
	return err == nil
}

// readIdentity returns the JWT of the running task that a vault block names.
func (c *checker) readIdentity(ctx context.Context, task string, v config.Vault) (string, error) {
	if v.IdentityFile != "" {
		return "", fmt.Errorf("-login: the task hides its identity in %s", v.IdentityFile)
	}
	var jwt, stderr bytes.Buffer
	command := []string{"/bin/sh", "-c", `cat "$NOMAD_SECRETS_DIR/$0"`, "nomad_" + v.Identity + ".jwt"}
	code, err := c.nomad.Allocations().Exec(ctx, c.running, task, false, command, strings.NewReader(""), &jwt, &stderr,
		nil, nil)
	if err == nil && (code != 0 || jwt.Len() == 0) {
		err = fmt.Errorf("exit code %d: %s", code, stderr.String())
	}
	if err != nil {
		return "", fmt.Errorf("-login: read the identity of the running task: %w", err)
	}
	return strings.TrimSpace(jwt.String()), nil
}

// askAsTask logs in with the identity of the running task, and returns what Vault says of that token.
func (c *checker) askAsTask(ctx context.Context, l *login, found []located) (func(string, []string) bool, error) {
	jwt, err := c.readIdentity(ctx, l.task, l.Vault)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, q := range found {
		paths = append(paths, q.aclPath)
	}
	auth, granted, err := capabilities(ctx, l.client, l.role, l.Namespace, jwt, paths)
	if err == nil {
		c.ok(l.about, "-login: auth/%s took the identity %q of task %q in allocation %s for role %q; the token had the "+
			"policies %v", l.path, l.Identity, l.task, c.running.ID, l.role, auth.Policies)
	}
	return func(path string, wanted []string) bool {
		return slices.ContainsFunc(granted[path], func(have string) bool { return slices.Contains(wanted, have) })
	}, err
}

// checkAllowed says whether the role's policies allow a request.
func (c *checker) checkAllowed(l *login, q located) {
	wanted := q.Request.Op.Capabilities()
	if l.allows(q.aclPath, wanted) {
		c.ok(q.about, "%s %s is allowed", q.Request.Op, q.Path)
		return
	}
	fix := vault.Grant(l.role, l.policies(), q.Path, q.Request.Op)
	withoutData := strings.Replace(q.aclPath, q.Mount+"data/", q.Mount, 1)
	switch {
	case q.V2 && withoutData != q.aclPath && l.allows(withoutData, wanted):
		fix = fmt.Sprintf("write data/ after %s in the paths of the policies %q: the mount is KV version 2",
			q.Mount, l.policies())
	case len(l.acl.unresolved) > 0:
		placeholders := slices.Compact(slices.Sorted(slices.Values(l.acl.unresolved)))
		fix += fmt.Sprintf("; or, where the policies speak of %s, which a login at auth/%s does not have: "+
			"run nomad-driver-vault setup", strings.Join(placeholders, ", "), l.path)
	}
	c.problem(q.about, fix, "%s %s: denied by Vault", q.Request.Op, q.Path)
}

// checkExists says if a KV engine has no secret at a path. It does not read the secret, and says nothing if the
// operator's token may not know.
func (c *checker) checkExists(ctx context.Context, l *login, q located) {
	fix := "write it first, or correct the path"
	if q.V2 {
		meta, err := l.as.Read(ctx, strings.Replace(q.Path, q.Mount+"data/", q.Mount+"metadata/", 1))
		if err != nil || meta != nil {
			return
		}
	} else {
		names, err := l.as.List(ctx, path.Dir(q.Path))
		if err != nil || slices.Contains(names, path.Base(q.Path)) {
			return
		}
		if strings.HasPrefix(q.Path, q.Mount+"data/") {
			fix = "leave data/ out: the mount is KV version 1"
		}
	}
	c.problem(q.about, fix, "%s %s: not found in Vault", q.Request.Op, q.Path)
}
