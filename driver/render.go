package driver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"nomad-driver-vault/driver/template"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"
)

// generation is one consistent set of what a task gets: rendered from one pass, never changed afterwards.
type generation struct {
	pass   *pass
	output map[string][]byte   // by template destination
	env    map[string]string   // to be set in the task
	files  []template.File     // to be written, with the paths below the allocation's directory
	sums   map[string]checksum // of each output and of each token that is shown
	auth   *imageAuth          // nil unless the wrapped driver is to have it
}

// Format keeps it out of logs, errors and panics.
func (g generation) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[generation of %d files]", len(g.files))
}

// checksum of something secret; a string, so that a record holds it as it is.
type checksum string

func sum(data []byte) checksum {
	s := sha256.Sum256(data)
	return checksum(hex.EncodeToString(s[:]))
}

// renderer makes generations of one task.
type renderer struct {
	cfg     *drivers.TaskConfig
	conf    *TaskConfig
	op      Config
	secrets *secrets

	ready     bool                 // what follows is set: see prepare
	templates []*template.Template // in the order of conf.Templates
	owner     owner                // of token files
}

// Format keeps the secrets out of logs, errors and panics.
func (r *renderer) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[renderer of %s]", r.cfg.ID) }

// newRenderer resolves the destinations. Two templates for one file are refused: which of them won would be chance.
func newRenderer(cfg *drivers.TaskConfig, conf *TaskConfig, op Config, s *secrets) (*renderer, error) {
	r := &renderer{cfg: cfg, conf: conf, op: op, secrets: s}
	taken := map[string]string{}
	for _, v := range conf.Vaults {
		if v.File {
			taken[r.below(v.tokenFile())] = fmt.Sprintf("vault %q puts its token there", v.Name)
		}
	}
	for i := range conf.Templates {
		t := &conf.Templates[i]
		if err := r.place(t); err != nil {
			return nil, err
		}
		if by := taken[t.destination]; by != "" {
			return nil, fmt.Errorf("template %q: destination: %s: choose another", t.Destination, by)
		}
		taken[t.destination] = "another template has the same"
	}
	return r, nil
}

// prepare reads and parses the templates and finds the owner of token files: what is wrong there is found before Vault is
// asked. After recovery it is a part of rendering, because a task that runs is not ended by a template that has gone.
func (r *renderer) prepare() error {
	if r.ready {
		return nil
	}
	var templates []*template.Template
	for i := range r.conf.Templates {
		t := &r.conf.Templates[i]
		data, err := r.text(t)
		if err != nil {
			return err
		}
		parsed, err := t.parse(data)
		if err != nil {
			return err
		}
		templates = append(templates, parsed)
	}
	owner, err := tokenOwner(r.cfg, r.conf, r.op.DefaultUser)
	r.templates, r.owner, r.ready = templates, owner, err == nil
	return err
}

// place maps a destination to the path below the allocation's directory.
func (r *renderer) place(t *TemplateConfig) error {
	in, err := template.TaskPath(t.Destination, r.cfg.Env)
	if err != nil {
		return fmt.Errorf("template %q: destination: %w", t.Destination, err)
	}
	if in == "private" || strings.HasPrefix(in, "private/") {
		return fmt.Errorf("template %q: destination: private/ is Nomad's own: use local/, secrets/ or alloc/", t.Destination)
	}
	t.destination = r.below(in)
	return nil
}

// below is the path below the allocation's directory of one that TaskPath returned.
func (r *renderer) below(in string) string {
	if in == "alloc" || strings.HasPrefix(in, "alloc/") {
		return in
	}
	return path.Join(r.cfg.Name, in)
}

// text is the template's source: inline, or a file in the task's directories, an artifact for example. The root is the
// directory that the path is in and not the allocation's: a link that the task made leads to no other task's secrets.
func (r *renderer) text(t *TemplateConfig) (string, error) {
	if t.Source == "" {
		return t.Data, nil
	}
	in, err := template.TaskPath(t.Source, r.cfg.Env)
	if err != nil {
		return "", fmt.Errorf("template %q: source: %w", t.Destination, err)
	}
	dir := r.cfg.TaskDir().Dir
	if rest, shared := strings.CutPrefix(in, "alloc/"); shared {
		dir, in = r.cfg.TaskDir().SharedAllocDir, rest
	}
	data, err := readRegular(dir, in)
	if err != nil {
		return "", fmt.Errorf("template %q: source %q: %w", t.Destination, t.Source, err)
	}
	return string(data), nil
}

// readRegular reads a file that the task can have replaced by anything: a pipe would be waited for without end.
func readRegular(dir, name string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, cause(err)
	}
	defer root.Close()
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, cause(err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(file, template.MaxOutput+1))
	if err == nil && len(data) > template.MaxOutput {
		err = fmt.Errorf("it has more than the %d bytes allowed", template.MaxOutput)
	}
	return data, cause(err)
}

// cause strips the path of this host, which the task's author does not know, from an error of the file system.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// render makes the next generation after last, which is nil for the first one. It asks for every secret once and waits
// for answers until ctx ends. With fresh set, secrets without a lease are read anew.
func (r *renderer) render(ctx context.Context, last *generation, fresh bool) (*generation, error) {
	if err := r.prepare(); err != nil {
		return nil, err
	}
	g := &generation{pass: r.secrets.begin(fresh), output: map[string][]byte{}, env: map[string]string{},
		sums: map[string]checksum{}}
	if err := r.execute(ctx, g, last); err != nil {
		return nil, err
	}
	if err := r.addAuth(ctx, g, last); err != nil {
		return nil, err
	}
	for i := range r.conf.Templates {
		if err := g.add(&r.conf.Templates[i]); err != nil {
			return nil, err
		}
	}
	for i := range r.conf.Vaults {
		if err := r.addToken(ctx, g, &r.conf.Vaults[i]); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// execute runs the templates side by side: each question is asked once all the same, and a slow Vault is waited for once.
func (r *renderer) execute(ctx context.Context, g, last *generation) error {
	task, alloc, err := r.roots()
	if err != nil {
		return err
	}
	defer task.Close()
	defer alloc.Close()
	var all sync.WaitGroup
	outputs := make([][]byte, len(r.templates))
	errs := make([]error, len(r.templates))
	for i, parsed := range r.templates {
		t := &r.conf.Templates[i]
		all.Go(func() {
			outputs[i], errs[i] = parsed.Execute(ctx, template.Input{Source: g.pass.source(t.Vault, t.every),
				Env: r.cfg.Env, Root: task, Alloc: alloc})
			if rendered, ok := last.once(t); ok { // it was executed all the same: what nobody asks for any more is revoked
				outputs[i], errs[i] = rendered, nil
			}
		})
	}
	all.Wait()
	for i, t := range r.conf.Templates {
		g.output[t.Destination] = outputs[i]
	}
	return first(errs)
}

func (r *renderer) roots() (task, alloc *os.Root, err error) {
	dir := r.cfg.TaskDir()
	if task, err = os.OpenRoot(dir.Dir); err != nil {
		return nil, nil, fmt.Errorf("open task directory: %w", err)
	}
	if alloc, err = os.OpenRoot(dir.SharedAllocDir); err != nil {
		task.Close()
		return nil, nil, fmt.Errorf("open allocation directory: %w", err)
	}
	return task, alloc, nil
}

// paths are the files of every generation, for their removal.
func (r *renderer) paths() []string {
	var paths []string
	for _, t := range r.conf.Templates {
		paths = append(paths, t.destination)
	}
	for _, v := range r.conf.Vaults {
		if v.File {
			paths = append(paths, r.below(v.tokenFile()))
		}
	}
	return paths
}

// first returns the first error: when Vault is away, every template has the same one to tell.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// once returns what a template was rendered to that is rendered once, and whether it has been; g may be nil.
func (g *generation) once(t *TemplateConfig) (output []byte, done bool) {
	if g == nil || !t.Once {
		return nil, false
	}
	output, done = g.output[t.Destination]
	return output, done
}

// add puts a template's output where the task will find it.
func (g *generation) add(t *TemplateConfig) error {
	data := g.output[t.Destination]
	g.sums[t.Destination] = sum(data)
	g.files = append(g.files, template.File{Path: t.destination, Name: t.Destination, Data: data, Perm: t.perm, UID: t.UID, GID: t.GID})
	if !t.Env {
		return nil
	}
	env, err := template.ParseEnv(data)
	if err != nil {
		return fmt.Errorf("template %q: env = true: %w", t.Destination, err)
	}
	maps.Copy(g.env, env)
	return nil
}

// addToken shows the task its token, where the job asks for that.
func (r *renderer) addToken(ctx context.Context, g *generation, v *VaultConfig) error {
	if !v.Env && !v.File {
		return nil
	}
	reading, err := g.pass.reading(ctx, v.Name)
	if err != nil {
		return err
	}
	token := reading.Token()
	g.sums[tokenSum(v.Name)] = sum([]byte(token))
	if v.File {
		g.files = append(g.files, template.File{Path: r.below(v.tokenFile()), Data: []byte(token), Perm: 0o600,
			UID: r.owner.uid, GID: r.owner.gid})
	}
	if v.Env {
		cluster, err := r.op.cluster(v.Cluster)
		if err != nil {
			return err
		}
		g.env["VAULT_TOKEN"], g.env["VAULT_ADDR"] = token, cluster.Address
		if namespace := cmp.Or(v.Namespace, cluster.Namespace); namespace != "" {
			g.env["VAULT_NAMESPACE"] = namespace
		}
	}
	return nil
}

// tokenFile is where the block's token is put: as Nomad does it, secrets/vault_token.
func (v *VaultConfig) tokenFile() string {
	if v.Name == "default" {
		return "secrets/vault_token"
	}
	return "secrets/vault_token_" + v.Name
}

// tokenSum is a token's key among the sums, which no destination can have.
func tokenSum(name string) string { return "token\x00" + name }

// against returns what a task must be told of g that knows the generation with these sums.
func (g *generation) against(told map[string]checksum, conf *TaskConfig) change {
	var all change
	for i := range conf.Templates {
		if t := &conf.Templates[i]; g.sums[t.Destination] != told[t.Destination] {
			all = all.join(t.change())
		}
	}
	for i := range conf.Vaults {
		if v := &conf.Vaults[i]; g.sums[tokenSum(v.Name)] != told[tokenSum(v.Name)] {
			all = all.join(v.change())
		}
	}
	return all
}

// taskEnv is the environment of the task in this generation.
func (g *generation) taskEnv(cfg *drivers.TaskConfig) map[string]string {
	env := maps.Clone(cfg.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, g.env)
	return env
}

// owner of a file, -1 for the plugin's own.
type owner struct{ uid, gid int }

// tokenOwner is the task's user, when a token file is asked for. An image's own users are not known here: where neither
// the job nor the wrapped driver names one, the file is root's.
func tokenOwner(cfg *drivers.TaskConfig, conf *TaskConfig, byDefault string) (owner, error) {
	wanted := false
	for _, v := range conf.Vaults {
		wanted = wanted || v.File
	}
	runsAs := cmp.Or(cfg.User, byDefault)
	if !wanted || runsAs == "" {
		return owner{-1, -1}, nil
	}
	name, group, _ := strings.Cut(runsAs, ":")
	uid, gid, err := lookUser(name)
	if err != nil {
		return owner{}, fmt.Errorf("vault: file = true: user %q: %w", runsAs, err)
	}
	if n, err := strconv.Atoi(group); err == nil {
		gid = n
	}
	return owner{uid, gid}, nil
}
