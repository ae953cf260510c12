package check

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
)

// A rendered is a file or a variable as a start would make it.
type rendered struct {
	Task     string `json:"task"`
	File     string `json:"file,omitempty"` // below the allocation's directory
	Mode     string `json:"mode,omitempty"`
	Variable string `json:"variable,omitempty"`
	Text     string `json:"text"`
}

// A dryRun renders one task in a directory of its own, with the driver's own code.
type dryRun struct {
	*checker
	driver *taskDriver
	of     *drivers.TaskConfig
	conf   config.Task
	mask   *template.Mask
}

// renderTask adds what a start of the task would make to what is rendered.
func (c *checker) renderTask(ctx context.Context, d *taskDriver, of *drivers.TaskConfig, conf config.Task,
	asked render.Asked) {
	about := fmt.Sprintf("task %q", of.Name)
	conf.Vaults, conf.Doors = nil, nil // what a door adds is not the task's
	for _, use := range asked.Vaults { // the default one has no block
		conf.Vaults = append(conf.Vaults, c.readWith(use))
	}
	dir, err := os.MkdirTemp("", "render-") // nobody else enters it
	if err != nil {
		c.problem(about, "", "%s", err)
		return
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			c.problem(about, "remove it", "what was rendered is left behind: %s", err)
		}
	}()
	of.AllocDir, of.User = dir, "" // the files are nobody's here
	ctx, cancel := context.WithTimeout(ctx, 2*answerTimeout)
	defer cancel()
	run := &dryRun{checker: c, driver: d, of: of, conf: conf, mask: template.NewMask(slices.Collect(maps.Values(of.Env)))}
	if err := run.prepare(ctx); err != nil {
		c.driverError(about, err)
		return
	}
	if err := run.render(ctx, about); err != nil {
		c.driverError(about, err)
	}
}

// readWith is a vault block for -login, or with the caller's own token, which has no role, and is not shown.
func (c *checker) readWith(use render.Use) config.Vault {
	v := use.Vault
	v.Namespace = cmp.Or(v.Namespace, use.Server.Namespace)
	if c.login {
		v.Role = cmp.Or(v.Role, use.Server.Role)
		return v
	}
	return config.Vault{Name: v.Name, Cluster: v.Cluster, Namespace: v.Namespace, Identity: "vault", ChangeMode: "noop"}
}

// prepare makes the task's directory, with all that the agent would put there and that is known.
func (r *dryRun) prepare(ctx context.Context) error {
	task := r.of.TaskDir()
	for _, dir := range []string{task.SharedAllocDir, task.LocalDir, task.SecretsDir, filepath.Join(task.Dir, "private")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := r.fetchSources(ctx); err != nil {
		return err
	}
	if err := r.serveNomad(ctx, filepath.Join(task.SecretsDir, "api.sock")); err != nil {
		return err
	}
	if !r.login { // where Nomad puts the token that it derives: that is neither renewed nor revoked
		return os.WriteFile(filepath.Join(task.Dir, "private", "vault_token"), []byte(r.vault.Token()), 0o600)
	}
	for _, v := range r.conf.Vaults {
		jwt, err := r.readIdentity(ctx, r.of.Name, v)
		if err == nil {
			err = os.WriteFile(filepath.Join(task.SecretsDir, "nomad_"+v.Identity+".jwt"), []byte(jwt), 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fetchSources reads the templates' files of a running task.
func (r *dryRun) fetchSources(ctx context.Context) error {
	for _, t := range r.conf.Templates {
		if t.Source == "" || r.running == nil {
			continue
		}
		in, err := template.TaskPath(t.Source, r.of.Env)
		if err != nil {
			return fmt.Errorf("%s: source: %w", &t, err)
		}
		if !strings.HasPrefix(in, "alloc/") {
			in = path.Join(r.of.Name, in)
		}
		file, err := r.nomad.AllocFS().Cat(r.running, in, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return fmt.Errorf("%s: source: %s", &t, nomadSays(err))
		}
		text, err := io.ReadAll(file)
		err = errors.Join(err, file.Close())
		at := filepath.Join(r.of.AllocDir, filepath.FromSlash(in))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(at), 0o700)
		}
		if err == nil {
			err = os.WriteFile(at, text, 0o600)
		}
		if err != nil {
			return fmt.Errorf("%s: source: %w", &t, err)
		}
	}
	return nil
}

// serveNomad serves the Nomad of NOMAD_ADDR where a task has its task API, until ctx ends. It hides the items of
// variables.
func (r *dryRun) serveNomad(ctx context.Context, socket string) error {
	conf := nomad.DefaultConfig()
	to, err := url.Parse(conf.Address)
	if err != nil {
		return fmt.Errorf("read NOMAD_ADDR: %w", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if err := nomad.ConfigureTLS(&http.Client{Transport: transport}, conf.TLSConfig); err != nil {
		return fmt.Errorf("read the NOMAD_ variables: %w", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	var one sync.Mutex
	hide := func(answer *http.Response) error {
		body, err := io.ReadAll(answer.Body)
		answer.Body = io.NopCloser(bytes.NewReader(body))
		var variable struct{ Items map[string]any }
		if json.Unmarshal(body, &variable) == nil { // other answers have none
			one.Lock()
			defer one.Unlock()
			r.mask.Add(variable.Items)
		}
		return err
	}
	server := &http.Server{ReadHeaderTimeout: answerTimeout, Handler: &httputil.ReverseProxy{Transport: transport,
		ModifyResponse: hide, Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(to)
			request.Out.Header.Del("X-Nomad-Token")
			if conf.SecretID != "" {
				request.Out.Header.Set("X-Nomad-Token", conf.SecretID)
			}
		}}}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }() // until it is closed
	return nil
}

// cluster returns what a session of the task is opened with. The caller's token goes to VAULT_ADDR alone.
func (r *dryRun) cluster(name string) (*session.Cluster, error) {
	server, err := r.driver.conf.Cluster(name)
	switch {
	case err != nil:
		return nil, err
	case name == r.checker.cluster && !(r.driver.local && r.login):
		return session.NewClusterOf(r.direct.At(cmp.Or(server.AuthPath, r.path)), noLogger), nil
	case !r.login:
		return nil, fmt.Errorf("VAULT_ADDR is that of cluster %q: run check again with -cluster=%s, and VAULT_ADDR and "+
			"VAULT_TOKEN of that cluster, or with -login", r.checker.cluster, name)
	case server.Issues():
		return nil, fmt.Errorf("-login: cluster %q makes tokens by its token role: leave -login out", name)
	}
	client, err := vault.NewClient(server, noLogger)
	if err != nil {
		return nil, err
	}
	return session.NewClusterOf(client, noLogger), nil
}

// render renders once, and revokes what was read for it.
func (r *dryRun) render(ctx context.Context, about string) error {
	env := credentials.Env{Client: r.cluster, Permit: func(config.Vault, string) error { return nil },
		Plugin: r.driver.name, Logger: noLogger}
	set := credentials.New(env, r.of, r.conf, func(session.Notice) {}, func() {})
	defer func() {
		set.Pause()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
		defer cancel()
		if err := errors.Join(set.Revoke(ctx)); err != nil {
			r.warn(about, "it ends by its TTL", "what was read is not revoked: %s", err)
		}
	}()
	if err := r.conf.Validate(r.driver.conf); err != nil {
		return err
	}
	unguarded := func(_ string, f func() error) error { return f() }
	renderer, err := render.New(r.of, &r.conf, r.driver.conf, set, unguarded)
	if err != nil {
		return err
	}
	generation, err := renderer.Render(ctx, nil, true)
	if err != nil {
		return err
	}
	for _, secret := range generation.Snapshot.Secrets() {
		r.mask.Add(secret.Data)
		r.mask.Add(secret.Lease.ID)
		if secret.Auth != nil {
			r.mask.Add([]any{secret.Auth.Value, secret.Auth.Accessor})
		}
	}
	for _, v := range r.conf.Vaults {
		if v.Env || v.File {
			token, err := generation.Snapshot.Token(ctx, v.Name)
			if err != nil {
				return err
			}
			r.mask.Add(token)
		}
	}
	r.collect(generation)
	return nil
}

// collect notes what a generation has, masked unless the caller wants to see it.
func (r *dryRun) collect(g *render.Generation) {
	shown := func(text string) string {
		if r.showSecrets {
			return text
		}
		return r.mask.Text(text)
	}
	for _, f := range g.Files {
		r.rendered = append(r.rendered, rendered{Task: r.of.Name, File: f.Path, Mode: fmt.Sprintf("%04o", f.Perm),
			Text: shown(string(f.Data))})
	}
	env := g.TaskEnv(&drivers.TaskConfig{})
	for _, name := range slices.Sorted(maps.Keys(env)) {
		r.rendered = append(r.rendered, rendered{Task: r.of.Name, Variable: name, Text: shown(env[name])})
	}
}

// printRendered prints the files, each below its name, and the variables.
func printRendered(w io.Writer, all []rendered) {
	for _, r := range all {
		what := fmt.Sprintf("file %s, mode %s", r.File, r.Mode)
		if r.Variable != "" {
			what = "variable " + r.Variable
		}
		fmt.Fprintf(w, "==> task %q, %s\n%s\n", r.Task, what, strings.TrimSuffix(r.Text, "\n"))
	}
}
