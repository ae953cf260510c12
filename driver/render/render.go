// Package render makes generations of what a task gets: the files and the environment of all of its blocks, from one
// snapshot of its credentials. Diff says what a process must be told of a generation.
//
// A new kind of block implements the interface kind; newBlock says which outputs it has.
package render

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
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/internal/inode"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// Generation is one consistent set of what a task gets. It is rendered from one snapshot and never changed
// afterwards.
type Generation struct {
	conf     *config.Task
	blocks   []*block
	Snapshot *credentials.Snapshot
	Output   map[string][]byte // by the keys of parts; those that are not there are not in it
	env      map[string]string // to be set in the task
	Files    []template.File   // to be written, with the paths below the allocation's directory
	owned    map[string]whose  // by these paths, what of a file is the task's user's
	Absent   []string          // such paths where there must be no file
	Sums     map[string]string // of each output and of each token that is shown
	Auth     *imageAuth        // nil unless the wrapped driver is to have it
	Options  *Expansion        // for the wrapped driver
}

// Format keeps it out of logs, errors and panics.
func (g Generation) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[generation of %d files]", len(g.Files))
}

// sum is a checksum of something secret.
func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// Renderer makes the generations of one task. One goroutine at a time uses it.
type Renderer struct {
	cfg         *drivers.TaskConfig
	conf        *config.Task
	op          config.Operator
	credentials *credentials.Set
	guard       func(what string, f func() error) error // that turns a panic into an error
	blocks      []*block
	DoorSecrets map[string]string // that clients of doors show over TCP, by the doors' names

	ready  bool         // what follows is set: see prepare
	Funcs  []renderFunc // in the order of blocks; package driver's tests replace one that is to hang or to panic
	asked  []string     // the vault blocks that blocks always ask
	budget *template.Budget
	owner  owner // of token files and of what secret and pki blocks make

	told *owner // by the wrapped driver, nil before
}

// Format keeps the secrets out of logs, errors and panics.
func (r *Renderer) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[renderer of %s]", r.cfg.ID) }

// New resolves the destinations of all blocks. Two blocks for one file are an error: which of them won would be
// chance. guard calls a function and turns a panic into an error.
func New(cfg *drivers.TaskConfig, conf *config.Task, op config.Operator, s *credentials.Set,
	guard func(what string, f func() error) error) (*Renderer, error) {
	r := &Renderer{cfg: cfg, conf: conf, op: op, credentials: s, guard: guard}
	taken := map[string]string{}
	for _, v := range conf.Vaults {
		if v.File {
			taken[r.below(tokenFile(v.Name))] = fmt.Sprintf("vault %q puts its token there", v.Name)
		}
	}
	for name := range conf.Doors {
		taken[r.below(DoorSocket(name))] = fmt.Sprintf("door %q has its socket there", name)
	}
	for name, port := range conf.PostgresPorts() {
		taken[r.below(PostgresSocket(port))] = fmt.Sprintf("door %q has its socket there", name)
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

// Prepare reads and parses the templates and finds the owner of files, so that what is wrong there is found before
// Vault is asked. After recovery it is a part of Render, because a running task is not ended by a template that has
// gone.
func (r *Renderer) Prepare() error {
	if r.ready {
		return nil
	}
	var funcs []renderFunc
	var asked []string
	r.budget = template.NewBudget()
	for _, b := range r.blocks {
		render, asks, err := b.kind.prepare(r)
		if err != nil {
			return err
		}
		funcs = append(funcs, render)
		if asks {
			asked = append(asked, b.Vault)
		}
	}
	owner, err := taskOwner(r.cfg, r.conf, r.blocks, r.op)
	if r.told != nil {
		owner = *r.told
	}
	r.Funcs, r.asked, r.owner, r.ready = funcs, asked, owner, err == nil
	return err
}

// Sessions returns the names of the vault blocks of which every generation needs something, sorted. Templates may ask
// others under a condition. Call Prepare before.
func (r *Renderer) Sessions() []string {
	names := slices.Clone(r.asked)
	for _, v := range r.conf.Vaults {
		if v.Env || v.File {
			names = append(names, v.Name)
		}
	}
	if r.conf.Auth.FromVault() {
		names = append(names, r.conf.Auth.Vault)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// place maps the destinations of a block to paths below the allocation's directory, and notes who has taken which.
func (r *Renderer) place(b *block, taken map[string]string) error {
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
func (r *Renderer) below(in string) string {
	if in == "alloc" || strings.HasPrefix(in, "alloc/") {
		return in
	}
	return path.Join(r.cfg.Name, in)
}

// text is the template's source: inline, or a file in the task's directories, an artifact for example. The root is the
// directory that the path is in and not the allocation's: a link that the task made leads to no other task's secrets.
func (r *Renderer) text(t *config.Template) (string, error) {
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

// Render makes the next generation after last, which is nil for the first one. It asks for every secret once and
// waits for answers until ctx ends. With fresh set, secrets without a lease are read anew.
func (r *Renderer) Render(ctx context.Context, last *Generation, fresh bool) (*Generation, error) {
	if err := r.Prepare(); err != nil {
		return nil, err
	}
	g := &Generation{conf: r.conf, blocks: r.blocks, owned: map[string]whose{}, Snapshot: r.credentials.Snapshot(fresh),
		Output: map[string][]byte{}, Sums: map[string]string{}}
	var err error
	if g.env, err = r.tokenEnv(ctx, g.Snapshot); err != nil {
		return nil, err
	}
	r.doorEnv(g.env)
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
	g.Options, err = r.expand(g.env)
	return g, err
}

// execute runs the blocks side by side: each question is asked once all the same, and a slow Vault is waited for once.
func (r *Renderer) execute(ctx context.Context, g, last *Generation) error {
	task, alloc, err := r.roots()
	if err != nil {
		return err
	}
	defer task.Close()
	defer alloc.Close()
	r.budget.Begin()
	in := template.Input{Env: r.visible(g.env), Root: task, Alloc: alloc, Budget: r.budget}
	var all sync.WaitGroup
	outputs := make([][][]byte, len(r.Funcs))
	errs := make([]error, len(r.Funcs))
	for i, b := range r.blocks {
		all.Go(func() {
			errs[i] = r.guard(b.name, func() (err error) {
				outputs[i], err = r.Funcs[i](ctx, g.Snapshot.Source(b.Vault, b.PollEvery), in)
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
			g.Output[b.outputs[n].key] = output
		}
	}
	return first(errs)
}

func (r *Renderer) roots() (task, alloc *os.Root, err error) {
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

// Paths returns the files of every generation, below the directory of the allocation, for their removal.
func (r *Renderer) Paths() []string {
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

// first returns the first error: when Vault is away, every block has the same one to tell.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// OnceOutputs returns the bytes of all blocks that are rendered once, by the keys of their outputs.
func (g *Generation) OnceOutputs() map[string][]byte {
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
func (g *Generation) once(b *block) (outputs [][]byte, done bool) {
	if g == nil || !b.Once {
		return nil, false
	}
	for _, p := range b.outputs {
		output, made := g.Output[p.key]
		if !made {
			return nil, false
		}
		outputs = append(outputs, output)
	}
	return outputs, true
}

// add puts what a block has made where the task will find it. names are the blocks that have set a variable so far.
func (r *Renderer) add(g *Generation, b *block, names map[string]string) error {
	for _, p := range b.outputs {
		data, there := g.Output[p.key]
		if !there && p.path != "" {
			g.Absent = append(g.Absent, p.path)
		}
		if !there {
			continue
		}
		g.Sums[p.key] = sum(data)
		if p.path != "" {
			g.Files = append(g.Files, r.file(b, p, data))
			g.owned[p.path] = whose{b.secret && b.UID < 0, b.secret && b.GID < 0}
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

func (r *Renderer) file(b *block, o output, data []byte) template.File {
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

// Describe returns which of the task's blocks are there, for the log.
func (g *Generation) Describe() string {
	conf := g.conf
	text := fmt.Sprintf("templates rendered: %d", len(conf.Templates))
	if len(conf.Secrets) > 0 {
		text += fmt.Sprintf(", secrets: %d", len(conf.Secrets))
	}
	if len(conf.PKIs) > 0 {
		text += fmt.Sprintf(", certificates: %d", len(conf.PKIs))
	}
	for _, b := range g.blocks {
		if _, there := g.Output[b.outputs[0].key]; !there {
			text += fmt.Sprintf(", %s is not there yet", b.name)
		}
	}
	return text
}

// addToken shows the task its token, where the job asks for that.
func (r *Renderer) addToken(ctx context.Context, g *Generation, v *config.Vault) error {
	if !v.Env && !v.File {
		return nil
	}
	token, err := g.Snapshot.Token(ctx, v.Name)
	if err != nil {
		return err
	}
	g.Sums[tokenSum(v.Name)] = sum([]byte(token))
	if v.File {
		g.Files = append(g.Files, template.File{Path: r.below(tokenFile(v.Name)), Data: []byte(token), Perm: 0o600,
			UID: r.owner.uid, GID: r.owner.gid})
		g.owned[r.below(tokenFile(v.Name))] = whose{true, true}
	}
	return nil
}

// tokenEnv returns the variables of the vault block that shows its token as such, of which there is one at most. What
// the job's env block sets wins, as with the token that Nomad derives (client/taskenv/env.go).
func (r *Renderer) tokenEnv(ctx context.Context, from *credentials.Snapshot) (map[string]string, error) {
	env := map[string]string{}
	for _, v := range r.conf.Vaults {
		if !v.Env {
			continue
		}
		cluster, err := r.op.Cluster(v.Cluster)
		if err != nil {
			return nil, err
		}
		token, err := from.Token(ctx, v.Name)
		if err != nil {
			return nil, err
		}
		env["VAULT_TOKEN"], env["VAULT_ADDR"] = token, cluster.Address
		if namespace := cmp.Or(v.Namespace, cluster.Namespace); namespace != "" {
			env["VAULT_NAMESPACE"] = namespace
		}
		for name := range env {
			if r.isOfJob(name) {
				env[name] = r.cfg.Env[name]
			}
		}
	}
	return env, nil
}

// isOfJob reports whether the job sets a variable of the vault command, and not Nomad, which adds the token that it
// derives, or the agent, whose own variables raw_exec tasks have.
func (r *Renderer) isOfJob(name string) bool {
	value, set := r.cfg.Env[name]
	agents, inherited := os.LookupEnv(name)
	derived := name == "VAULT_TOKEN" && credentials.HasNomadToken(r.cfg)
	return set && !derived && !(inherited && agents == value)
}

// visible is what templates see as the environment: the task's, the variables of its token, and what is known of the
// node.
func (r *Renderer) visible(token map[string]string) map[string]string {
	env := merged(r.cfg.Env, token)
	for i, value := range []string{r.cfg.NodeID, r.cfg.NodeName, r.cfg.Env["NOMAD_DC"], r.cfg.Env["NOMAD_REGION"]} {
		if value != "" {
			env[template.NodeVariables[i]] = value
		}
	}
	return env
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

// Diff returns what a process must be told of g, given the checksums of what was delivered to it.
func (g *Generation) Diff(delivered map[string]string) Change {
	var all Change
	for _, b := range g.blocks {
		changed := func(o output) bool { return g.Sums[o.key] != delivered[o.key] }
		if slices.ContainsFunc(b.outputs, changed) {
			all = all.Join(b.change())
		}
	}
	for i := range g.conf.Vaults {
		if v := &g.conf.Vaults[i]; g.Sums[tokenSum(v.Name)] != delivered[tokenSum(v.Name)] {
			all = all.Join(tokenChange(v))
		}
	}
	return all
}

// DeliveredExcept returns the checksums of what the process has been told of: those in delivered, updated for every
// block and token of g whose action is not in undone.
func (g *Generation) DeliveredExcept(undone Change, delivered map[string]string) map[string]string {
	known := map[string]string{}
	maps.Copy(known, delivered)
	for _, b := range g.blocks {
		if c := b.change(); c.Acts() && !c.shares(undone) {
			for _, p := range b.outputs {
				known[p.key] = g.Sums[p.key]
			}
		}
	}
	for i := range g.conf.Vaults {
		v := &g.conf.Vaults[i]
		if c := tokenChange(v); c.Acts() && !c.shares(undone) {
			known[tokenSum(v.Name)] = g.Sums[tokenSum(v.Name)]
		}
	}
	return known
}

// TaskEnv is the environment of the task in this generation.
func (g *Generation) TaskEnv(cfg *drivers.TaskConfig) map[string]string {
	return merged(cfg.Env, g.env)
}

// merged is a new map with both, of which the second wins.
func merged(first, second map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, first)
	maps.Copy(all, second)
	return all
}

// owner of a file, -1 for the plugin's own.
type owner struct{ uid, gid int }

// whose says whether the user and the group of a file are the task's.
type whose struct{ uid, gid bool }

// Own returns g, which may be nil, with the files of the task's user belonging to that one, as those of all later
// generations do: where an image decides who that is, it is known when the first generation was written.
func (r *Renderer) Own(g *Generation, uid, gid int) *Generation {
	r.owner = owner{uid, gid}
	r.told = &r.owner
	if g == nil {
		return nil
	}
	owned := *g
	owned.Files = slices.Clone(g.Files)
	for i := range owned.Files {
		f := &owned.Files[i]
		if g.owned[f.Path].uid {
			f.UID = uid
		}
		if g.owned[f.Path].gid {
			f.GID = gid
		}
	}
	return &owned
}

// taskOwner returns the task's user where a block wants a file to belong to it, else -1. Where neither the job nor the
// wrapped driver names a user, the file is root's. An image can name one, and has numbers of its own: what this host
// has is a guess then, until Own is called.
func taskOwner(cfg *drivers.TaskConfig, conf *config.Task, blocks []*block, op config.Operator) (owner, error) {
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
	runsAs := cmp.Or(cfg.User, op.DefaultUser)
	if whose == "" || runsAs == "" {
		return owner{-1, -1}, nil
	}
	name, group, _ := strings.Cut(runsAs, ":")
	uid, gid, err := config.LookupUser(name)
	if err != nil && op.ImageUser {
		return owner{-1, -1}, nil
	}
	if err != nil {
		return owner{}, fmt.Errorf("%s: user %q: %w%s", whose, runsAs, err, otherwise)
	}
	if n, err := strconv.Atoi(group); err == nil {
		gid = n
	}
	return owner{uid, gid}, nil
}
