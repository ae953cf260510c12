package driver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/internal/inode"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// generation is one consistent set of what a task gets: rendered from one pass, never changed afterwards.
type generation struct {
	conf   *config.Task
	blocks []*block
	pass   *pass
	output map[string][]byte // by the keys of parts; those that are not there are not in it
	env    map[string]string // to be set in the task
	files  []template.File   // to be written, with the paths below the allocation's directory
	absent []string          // such paths where there must be no file
	sums   map[string]string // of each output and of each token that is shown
	auth   *imageAuth        // nil unless the wrapped driver is to have it
}

// Format keeps it out of logs, errors and panics.
func (g generation) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[generation of %d files]", len(g.files))
}

// sum is a checksum of something secret.
func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// renderer makes generations of one task.
type renderer struct {
	cfg     *drivers.TaskConfig
	conf    *config.Task
	op      config.Operator
	secrets *secrets
	blocks  []*block

	ready  bool         // what follows is set: see prepare
	makers []renderFunc // in the order of blocks
	budget *template.Budget
	owner  owner // of token files and of what secret and pki blocks make
}

// Format keeps the secrets out of logs, errors and panics.
func (r *renderer) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[renderer of %s]", r.cfg.ID) }

// newRenderer resolves the destinations. Two blocks for one file are refused: which of them won would be chance.
func newRenderer(cfg *drivers.TaskConfig, conf *config.Task, op config.Operator, s *secrets) (*renderer, error) {
	r := &renderer{cfg: cfg, conf: conf, op: op, secrets: s}
	taken := map[string]string{}
	for _, v := range conf.Vaults {
		if v.File {
			taken[r.below(tokenFile(v.Name))] = fmt.Sprintf("vault %q puts its token there", v.Name)
		}
	}
	for _, c := range conf.Blocks() {
		b := newBlock(c)
		r.blocks = append(r.blocks, b)
		if err := r.place(b, taken); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return r, nil
}

// prepare reads and parses the templates and finds the owner of files: what is wrong there is found before Vault is asked.
// After recovery it is a part of rendering, because a task that runs is not ended by a template that has gone.
func (r *renderer) prepare() error {
	if r.ready {
		return nil
	}
	var makers []renderFunc
	r.budget = template.NewBudget()
	for _, b := range r.blocks {
		m, err := b.kind.prepare(r)
		if err != nil {
			return err
		}
		makers = append(makers, m)
	}
	owner, err := taskOwner(r.cfg, r.conf, r.blocks, r.op.DefaultUser)
	r.makers, r.owner, r.ready = makers, owner, err == nil
	return err
}

// place maps the destinations of a block to paths below the allocation's directory, and notes who has taken which.
func (r *renderer) place(b *block, taken map[string]string) error {
	for i := range b.outputs {
		p := &b.outputs[i]
		if p.destination == "" {
			continue
		}
		in, err := template.TaskPath(p.destination, r.cfg.Env)
		if err != nil {
			return fmt.Errorf("%s: %w", p.option, err)
		}
		if in == "private" || strings.HasPrefix(in, "private/") {
			return fmt.Errorf("%s: private/ is Nomad's own: use local/, secrets/ or alloc/", p.option)
		}
		p.path = r.below(in)
		if by := taken[p.path]; by != "" {
			return fmt.Errorf("%s: %s: choose another", p.option, by)
		}
		taken[p.path] = b.name + " has the same"
	}
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
func (r *renderer) text(t *config.Template) (string, error) {
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
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("template %q: source %q: %w", t.Destination, t.Source, inode.Cause(err))
	}
	defer root.Close()
	data, err := template.ReadFile(root, in)
	if err != nil {
		return "", fmt.Errorf("template %q: source %q: %w", t.Destination, t.Source, err)
	}
	return string(data), nil
}

// render makes the next generation after last, which is nil for the first one. It asks for every secret once and waits
// for answers until ctx ends. With fresh set, secrets without a lease are read anew.
func (r *renderer) render(ctx context.Context, last *generation, fresh bool) (*generation, error) {
	if err := r.prepare(); err != nil {
		return nil, err
	}
	g := &generation{conf: r.conf, blocks: r.blocks, pass: r.secrets.begin(fresh), output: map[string][]byte{}, env: map[string]string{},
		sums: map[string]string{}}
	if err := r.execute(ctx, g, last); err != nil {
		return nil, err
	}
	if err := r.addAuth(ctx, g, last); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, b := range r.blocks {
		if err := r.add(g, b, names); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	for i := range r.conf.Vaults {
		if err := r.addToken(ctx, g, &r.conf.Vaults[i]); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// execute runs the blocks side by side: each question is asked once all the same, and a slow Vault is waited for once.
func (r *renderer) execute(ctx context.Context, g, last *generation) error {
	task, alloc, err := r.roots()
	if err != nil {
		return err
	}
	defer task.Close()
	defer alloc.Close()
	r.budget.Begin()
	in := template.Input{Env: r.cfg.Env, Root: task, Alloc: alloc, Budget: r.budget}
	var all sync.WaitGroup
	outputs := make([][][]byte, len(r.makers))
	errs := make([]error, len(r.makers))
	for i, b := range r.blocks {
		all.Go(func() {
			errs[i] = r.secrets.d.guard(r.secrets.key, b.name, func() (err error) {
				outputs[i], err = r.makers[i](ctx, g.pass.source(b.Vault, b.PollEvery), in)
				return err
			})
			if rendered, ok := last.once(b); ok { // it was executed all the same: what nobody asks for any more is revoked
				outputs[i], errs[i] = rendered, nil
			}
		})
	}
	all.Wait()
	for i, b := range r.blocks {
		for n, output := range outputs[i] {
			g.output[b.outputs[n].key] = output
		}
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
	for _, b := range r.blocks {
		for _, p := range b.outputs {
			if p.path != "" {
				paths = append(paths, p.path)
			}
		}
	}
	for _, v := range r.conf.Vaults {
		if v.File {
			paths = append(paths, r.below(tokenFile(v.Name)))
		}
	}
	return paths
}

// removeMoved removes at the end of a run what Nomad may move to the allocation that comes after this one, as soon as this one has ended:
// local/ and, of all tasks, alloc/data/ (client/allocdir/alloc_dir.go, Move). The next run of the same task makes its files anew before
// anything runs. Where it ended by itself, another task of the allocation may still read alloc/data/.
func (t *task) removeMoved() {
	moved := slices.DeleteFunc(t.make.paths(), func(p string) bool {
		return !strings.HasPrefix(p, t.cfg.Name+"/local/") && !(t.stopped && strings.HasPrefix(p, "alloc/data/"))
	})
	root, err := os.OpenRoot(t.cfg.AllocDir)
	if err != nil {
		return // the allocation is gone, and its files with it
	}
	defer root.Close()
	if err := template.Remove(root, t.cfg.Name, moved); err != nil {
		t.d.logger.Warn("rendered files are left behind", "task", t.record.Key, "error", err)
	}
}

// first returns the first error: when Vault is away, every block has the same one to tell.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// onceOutputs returns the bytes of all blocks that are rendered once, by the keys of their outputs.
func (g *generation) onceOutputs() map[string][]byte {
	all := map[string][]byte{}
	for _, b := range g.blocks {
		outputs, _ := g.once(b)
		for i, output := range outputs {
			all[b.outputs[i].key] = output
		}
	}
	return all
}

// once returns what a block has made that is rendered once, and whether it has been; g may be nil.
func (g *generation) once(b *block) (outputs [][]byte, done bool) {
	if g == nil || !b.Once {
		return nil, false
	}
	for _, p := range b.outputs {
		output, made := g.output[p.key]
		if !made {
			return nil, false
		}
		outputs = append(outputs, output)
	}
	return outputs, true
}

// add puts what a block has made where the task will find it. names are the blocks that have set a variable so far.
func (r *renderer) add(g *generation, b *block, names map[string]string) error {
	for _, p := range b.outputs {
		data, there := g.output[p.key]
		if !there && p.path != "" {
			g.absent = append(g.absent, p.path)
		}
		if !there {
			continue
		}
		g.sums[p.key] = sum(data)
		if p.path != "" {
			g.files = append(g.files, r.file(b, p, data))
		}
		if p.env == nil {
			continue
		}
		env, err := p.env(data)
		if err != nil {
			return fmt.Errorf("env = true: %w", err)
		}
		for _, name := range slices.Sorted(maps.Keys(env)) {
			if by := names[name]; by != "" && b.secret {
				return fmt.Errorf("env = true: %s sets %s too: rename one of them", by, name)
			}
			names[name], g.env[name] = b.name, env[name]
		}
	}
	return nil
}

func (r *renderer) file(b *block, o output, data []byte) template.File {
	f := template.File{Path: o.path, Name: o.destination, Data: data, Perm: b.Perm, UID: b.UID, GID: b.GID}
	if o.public {
		f.Perm = 0o644
	}
	if b.secret && f.UID < 0 {
		f.UID = r.owner.uid
	}
	if b.secret && f.GID < 0 {
		f.GID = r.owner.gid
	}
	return f
}

// describe says what of a task's blocks is there, for the log.
func (g *generation) describe() string {
	conf := g.conf
	text := fmt.Sprintf("templates rendered: %d", len(conf.Templates))
	if len(conf.Secrets) > 0 {
		text += fmt.Sprintf(", secrets: %d", len(conf.Secrets))
	}
	if len(conf.PKIs) > 0 {
		text += fmt.Sprintf(", certificates: %d", len(conf.PKIs))
	}
	for _, b := range g.blocks {
		if _, there := g.output[b.outputs[0].key]; !there {
			text += fmt.Sprintf(", %s is not there yet", b.name)
		}
	}
	return text
}

// addToken shows the task its token, where the job asks for that.
func (r *renderer) addToken(ctx context.Context, g *generation, v *config.Vault) error {
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
		g.files = append(g.files, template.File{Path: r.below(tokenFile(v.Name)), Data: []byte(token), Perm: 0o600,
			UID: r.owner.uid, GID: r.owner.gid})
	}
	if v.Env {
		cluster, err := r.op.Cluster(v.Cluster)
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
func tokenFile(name string) string {
	if name == "default" {
		return "secrets/vault_token"
	}
	return "secrets/vault_token_" + name
}

// tokenSum is a token's key among the sums, which no destination can have.
func tokenSum(name string) string { return "token\x00" + name }

// diff returns what a process must be told of g, to which the generation with the given checksums was delivered.
func (g *generation) diff(delivered map[string]string) change {
	var all change
	for _, b := range g.blocks {
		changed := func(o output) bool { return g.sums[o.key] != delivered[o.key] }
		if slices.ContainsFunc(b.outputs, changed) {
			all = all.join(b.change())
		}
	}
	for i := range g.conf.Vaults {
		if v := &g.conf.Vaults[i]; g.sums[tokenSum(v.Name)] != delivered[tokenSum(v.Name)] {
			all = all.join(tokenChange(v))
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

// taskOwner is the task's user, when a file of its own is asked for. An image's own users are not known here: where neither
// the job nor the wrapped driver names one, the file is root's.
func taskOwner(cfg *drivers.TaskConfig, conf *config.Task, blocks []*block, byDefault string) (owner, error) {
	whose, otherwise := "", ""
	for _, v := range conf.Vaults {
		if v.File {
			whose = fmt.Sprintf("vault %q: file = true", v.Name)
		}
	}
	for _, b := range blocks {
		file := func(o output) bool { return o.destination != "" }
		if b.secret && (b.UID < 0 || b.GID < 0) && slices.ContainsFunc(b.outputs, file) {
			whose, otherwise = b.name, ", or set uid and gid in this block"
		}
	}
	runsAs := cmp.Or(cfg.User, byDefault)
	if whose == "" || runsAs == "" {
		return owner{-1, -1}, nil
	}
	name, group, _ := strings.Cut(runsAs, ":")
	uid, gid, err := config.LookupUser(name)
	if err != nil {
		return owner{}, fmt.Errorf("%s: user %q: %w%s", whose, runsAs, err, otherwise)
	}
	if n, err := strconv.Atoi(group); err == nil {
		gid = n
	}
	return owner{uid, gid}, nil
}
