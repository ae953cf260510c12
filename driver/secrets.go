package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/identity"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// secrets is where one task's templates get their answers: a session for each vault block, opened when it is first
// needed, and a watch on Nomad's services and variables. It outlives the run of a task by the linger, so that the next
// run of the same task finds the same token and the same leases.
type secrets struct {
	d       *Driver
	key     string // of the task in the driver's maps and state: allocation and task name
	conf    config.Task
	cfg     *drivers.TaskConfig
	changed chan struct{}
	notify  func(session.Notice)
	opened  func() // called after each login: what a crash must not lose

	mu       sync.Mutex                  // guards what follows; nobody holds it while Vault is asked
	sessions map[string]*session.Session // by the vault block's name
	kept     []state.Session             // as they were saved: the operator's configuration does not have their Vault now
	watch    *taskapi.Watch
	paused   bool // the run is over
}

// Format keeps the sessions out of logs, errors and panics.
func (s *secrets) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[secrets of %s]", s.key) }

func newSecrets(d *Driver, cfg *drivers.TaskConfig, conf config.Task) *secrets {
	return &secrets{d: d, key: taskKey(cfg), conf: conf, cfg: cfg, changed: make(chan struct{}, 1),
		sessions: map[string]*session.Session{}}
}

// session returns the session of a vault block, logging in when there is none yet. There is one pass at a time, and that
// asks for one at a time.
func (s *secrets) session(ctx context.Context, name string) (*session.Session, error) {
	s.mu.Lock()
	have := s.sessions[name]
	s.mu.Unlock()
	if have != nil {
		return have, nil
	}
	block := s.conf.Vault(name)
	client, err := s.d.client(block.Cluster)
	if err != nil {
		return nil, err
	}
	if err := s.d.configured().PermitVault(block, s.cfg.Namespace); err != nil { // a task may have no block at all
		return nil, fmt.Errorf("vault %q: %w", name, err)
	}
	options := s.options(block)
	if options.Login.NomadToken != nil && block.File {
		return nil, fmt.Errorf("vault %q: file = true: the task's token is the one that Nomad derived and writes to secrets/vault_token itself: "+
			"leave file out here, or name a role", name)
	}
	if live := s.revive(client, block, options); live != nil {
		return live, nil
	}
	live, err := client.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	late := s.paused || s.d.ctx.Err() != nil
	if !late {
		s.sessions[name] = live
	}
	s.mu.Unlock()
	if late { // whoever looks after what this run leaves, or after the plugin, knows nothing of it
		_ = live.Close(context.WithoutCancel(ctx)) // nobody is there to try again; it ends by itself
		return nil, session.ErrClosed
	}
	s.opened()
	reached(s.key, "logged-in")
	return live, nil
}

func (s *secrets) options(block config.Vault) session.Options {
	source := identitySource(block, s.cfg)
	jwt := func(ctx context.Context) (string, error) {
		token, err := source.Token(ctx)
		return token.JWT(), err
	}
	login := session.Login{Role: block.Role, Namespace: block.Namespace, JWT: jwt, NomadToken: given(block, s.cfg)}
	login.Token.Policies = block.Policies
	login.Token.DisplayName = s.cfg.AllocID + "-" + s.cfg.Name // this and the metadata as Nomad 1.9 has it (nomad/vault.go)
	login.Token.Metadata = map[string]string{"AllocationID": s.cfg.AllocID, "Namespace": s.cfg.Namespace, "JobID": s.cfg.JobID,
		"TaskGroup": s.cfg.TaskGroupName, "Task": s.cfg.Name, "NodeID": s.cfg.NodeID}
	return session.Options{Notify: s.notify, Changed: s.changed, Login: login}
}

func identitySource(block config.Vault, cfg *drivers.TaskConfig) identity.Source {
	return identity.Source{Name: block.Identity, Dir: cfg.TaskDir().Dir, File: block.IdentityFile,
		Env: cfg.Env["NOMAD_TOKEN_"+block.Identity]}
}

// adopt takes over the sessions of the run before, as far as they are still what the job asks for, and returns the others.
// The watch is always a new one.
func (s *secrets) adopt(old *secrets) (others *secrets) {
	others = newSecrets(old.d, old.cfg, old.conf)
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, live := range old.sessions {
		block := s.conf.Vault(name)
		if loginOf(block) != loginOf(old.conf.Vault(name)) {
			others.sessions[name] = live
			continue
		}
		live.Listen(s.options(block))
		s.sessions[name] = live
	}
	for _, one := range old.kept {
		if s.sessions[one.Name] == nil && loginOf(s.conf.Vault(one.Name)) == one.Login {
			s.kept = append(s.kept, one)
		} else {
			others.kept = append(others.kept, one)
		}
	}
	return others
}

// holds reports whether there is anything to revoke.
func (s *secrets) holds() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)+len(s.kept) > 0
}

// loginOf returns what the session of a vault block stands for.
func loginOf(v config.Vault) state.Login {
	return state.Login{Cluster: v.Cluster, Role: v.Role, Namespace: v.Namespace, Identity: v.Identity,
		IdentityFile: v.IdentityFile, Policies: strings.Join(v.Policies, ",")}
}

// describe says for each session which token it has, in the order of their names.
func (s *secrets) describe() (text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.sessions)) {
		live := s.sessions[name]
		_, accessor, _ := live.Token()
		whose := ""
		if live.External() {
			whose = "Nomad's "
		}
		text += fmt.Sprintf(", vault %q %stoken %s with policies %v", name, whose, accessor, live.Policies())
	}
	for _, one := range s.kept {
		text += fmt.Sprintf(", the session of vault %q has to wait: %v", one.Name, s.d.whyKept(one))
	}
	return text
}

// nomad returns the watch on Nomad's own data, which is opened when a template first asks.
func (s *secrets) nomad() *taskapi.Watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch == nil {
		s.watch = taskapi.Open(taskapi.Options{
			Dir:       s.cfg.TaskDir().Dir,
			Namespace: s.cfg.Namespace,
			Token:     s.nomadToken,
			Changed:   s.changed,
			Logger:    s.d.logger,
		})
	}
	if s.paused { // an attempt to render that was left to itself: it gets no answer
		s.watch.Close()
	}
	return s.watch
}

// nomadToken is the task's own Nomad identity, empty where it has none: the task API then says what to add.
func (s *secrets) nomadToken(context.Context) (string, error) {
	source := identity.Source{Name: "default", Dir: s.cfg.TaskDir().Dir, Env: s.cfg.Env["NOMAD_TOKEN"]}
	token, err := source.Peek()
	if errors.Is(err, identity.ErrAbsent) {
		return "", nil
	}
	return token.JWT(), err
}

// pause ends what belongs to one run only.
func (s *secrets) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
	if s.watch != nil {
		s.watch.Close()
	}
}

// close revokes everything, of all clusters side by side. It may be called again for waiting, the sessions whose Vault could not be asked;
// lost are those that nobody can revoke.
func (s *secrets) close(ctx context.Context) (waiting, lost error) {
	s.mu.Lock()
	sessions := maps.Clone(s.sessions)
	s.mu.Unlock()
	var all sync.WaitGroup
	var errs sync.Map // by name
	for name, live := range sessions {
		all.Go(func() {
			if err := live.Close(ctx); err != nil {
				errs.Store(name, fmt.Errorf("vault %q: %w", name, err))
			}
		})
	}
	all.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(sessions)) {
		failed, _ := errs.Load(name)
		err, _ := failed.(error)
		if err != nil && (errors.Is(err, vault.ErrUnavailable) || ctx.Err() != nil) {
			waiting = errors.Join(waiting, err)
			continue
		}
		lost = errors.Join(lost, err)
		delete(s.sessions, name)
	}
	return waiting, lost
}

// pass is one consistent look at all that a task's templates ask: a reading of each session and of the watch.
type pass struct {
	s     *secrets
	fresh bool

	opening  chan struct{} // holds one while a session is opened, which can take as long as a pass may
	readings map[string]*session.Reading
	refused  map[string]error // where a session could not be opened: the other templates do not ask Vault again

	mu    sync.Mutex
	nomad *taskapi.Reading
}

// Format keeps what was read out of logs, errors and panics.
func (p *pass) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[pass over %v]", p.s) }

// begin makes a pass of all that has been asked before: what no template asks this time is given up by its commit.
func (s *secrets) begin(fresh bool) *pass {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &pass{s: s, fresh: fresh, opening: make(chan struct{}, 1), readings: map[string]*session.Reading{},
		refused: map[string]error{}}
	for name, live := range s.sessions {
		p.readings[name] = live.Begin(fresh)
	}
	if s.watch != nil {
		p.nomad = s.watch.Begin()
	}
	return p
}

func (p *pass) reading(ctx context.Context, name string) (*session.Reading, error) {
	p.opening <- struct{}{}
	defer func() { <-p.opening }()
	if r, err := p.readings[name], p.refused[name]; r != nil || err != nil {
		return r, err
	}
	live, err := p.s.session(ctx, name)
	if err != nil {
		p.refused[name] = err
		return nil, err
	}
	p.readings[name] = live.Begin(p.fresh)
	return p.readings[name], nil
}

func (p *pass) nomadReading() *taskapi.Reading {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nomad == nil {
		p.nomad = p.s.nomad().Begin()
	}
	return p.nomad
}

// commit says that what was read is in use now, and nothing else. Leases that it replaces are revoked after grace, or left to
// end when grace is negative.
func (p *pass) commit(grace time.Duration) {
	for _, r := range p.readings {
		r.Commit(grace)
	}
	if p.nomad != nil {
		p.nomad.Commit()
	}
}

// source answers what asks one vault block; every is the poll interval.
func (p *pass) source(vaultName string, every time.Duration) *source {
	return &source{pass: p, vault: vaultName, every: every}
}

type source struct {
	*pass
	vault string
	every time.Duration
}

var _ template.Source = (*source)(nil)

func (s *source) ask(ctx context.Context, req vault.Request) (*vault.Secret, error) {
	reading, err := s.reading(ctx, s.vault)
	if err != nil {
		return nil, err
	}
	req.Every = s.every
	return reading.Read(ctx, req)
}

func (s *source) Read(ctx context.Context, path string, query url.Values) (*template.Secret, error) {
	return shown(s.ask(ctx, vault.Request{Op: vault.Read, Path: path, Query: query}))
}

func (s *source) Write(ctx context.Context, path string, data map[string]any) (*template.Secret, error) {
	return shown(s.ask(ctx, vault.Request{Op: vault.Write, Path: path, Data: data}))
}

func (s *source) List(ctx context.Context, path string) ([]string, error) {
	secret, err := s.ask(ctx, vault.Request{Op: vault.List, Path: path})
	if errors.Is(err, vault.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	keys, _ := secret.Data["keys"].([]any)
	for _, key := range keys {
		if name, ok := key.(string); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func shown(secret *vault.Secret, err error) (*template.Secret, error) {
	if err != nil {
		return nil, err
	}
	return &template.Secret{
		RequestID:     secret.RequestID,
		LeaseID:       secret.Lease.ID,
		LeaseDuration: int(secret.Lease.TTL / time.Second),
		Renewable:     secret.Lease.Renewable,
		Data:          secret.Data,
		Warnings:      secret.Warnings,
	}, nil
}
