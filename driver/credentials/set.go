// Package credentials is what one task reads of Vault and Nomad, and with which tokens. A Set holds the sessions of a
// task, one for each vault block. A Snapshot is one consistent reading of all of them.
package credentials

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/identity"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// Set is the credentials of one task: a session for each vault block, opened by Login or by the first question, and a
// watch on Nomad's services and variables. It outlives the run of its task by the linger, so that the next run finds
// the same token and the same leases. Its methods may be called by several goroutines.
type Set struct {
	env     Env
	key     string // of the task
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
func (s *Set) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[credentials of %s]", s.key) }

// New returns the set of a task, without a session yet. notify is called with what a session meets, and opened after
// each login; neither may wait. They are nil for a set that only revokes.
func New(env Env, cfg *drivers.TaskConfig, conf config.Task, notify func(session.Notice), opened func()) *Set {
	return &Set{env: env, key: state.Key(cfg.AllocID, cfg.Name), conf: conf, cfg: cfg, changed: make(chan struct{}, 1),
		notify: notify, opened: opened, sessions: map[string]*session.Session{}}
}

// Login opens the sessions of those vault blocks, one after the other, as far as there are none. It waits for
// identity and Vault until ctx ends.
func (s *Set) Login(ctx context.Context, names []string) error {
	for _, name := range names {
		if _, err := s.open(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// open returns the session of a vault block, and logs in when there is none yet. It is called for one block at a
// time.
func (s *Set) open(ctx context.Context, name string) (*session.Session, error) {
	s.mu.Lock()
	have := s.sessions[name]
	s.mu.Unlock()
	if have != nil {
		return have, nil
	}
	block := s.conf.Vault(name)
	client, err := s.env.Client(block.Cluster)
	if err != nil {
		return nil, err
	}
	if err := s.env.Permit(block, s.cfg.Namespace); err != nil { // a task may have no block at all
		return nil, fmt.Errorf("vault %q: %w", name, err)
	}
	options := s.options(block)
	if options.Login.NomadToken != nil && block.File {
		return nil, fmt.Errorf("vault %q: file = true: the task's token is the one that Nomad derived and "+
			"writes to secrets/vault_token itself: leave file out here, or name a role", name)
	}
	if live := s.revive(client, block, options); live != nil {
		return live, nil
	}
	live, err := client.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	late := s.paused || s.env.ended()
	if !late {
		s.sessions[name] = live
	}
	s.mu.Unlock()
	if late { // whoever looks after what this run leaves, or after the plugin, knows nothing of it
		_ = live.Close(context.WithoutCancel(ctx)) // nobody is there to try again; it ends by itself
		return nil, session.ErrClosed
	}
	s.opened()
	return live, nil
}

func (s *Set) options(block config.Vault) session.Options {
	source := IdentitySource(block, s.cfg)
	jwt := func(ctx context.Context) (string, error) {
		token, err := source.Token(ctx)
		return token.JWT(), err
	}
	login := session.Login{Role: block.Role, Namespace: block.Namespace, JWT: jwt, NomadToken: nomadToken(block, s.cfg)}
	login.Token.Policies = block.Policies
	// The name and the metadata are as Nomad 1.9 has them (nomad/vault.go).
	login.Token.DisplayName = s.cfg.AllocID + "-" + s.cfg.Name
	login.Token.Metadata = map[string]string{"AllocationID": s.cfg.AllocID, "Namespace": s.cfg.Namespace,
		"JobID": s.cfg.JobID, "TaskGroup": s.cfg.TaskGroupName, "Task": s.cfg.Name, "NodeID": s.cfg.NodeID}
	return session.Options{Notify: s.notify, Changed: s.changed, Login: login}
}

// IdentitySource returns where the task's workload identity for a vault block is found.
func IdentitySource(block config.Vault, cfg *drivers.TaskConfig) identity.Source {
	return identity.Source{Name: block.Identity, Dir: cfg.TaskDir().Dir, File: block.IdentityFile,
		Env: cfg.Env["NOMAD_TOKEN_"+block.Identity]}
}

// Adopt takes over the sessions of the run before that the job still asks for, and returns a set of the others. The
// watch is always a new one.
func (s *Set) Adopt(old *Set) (others *Set) {
	others = New(old.env, old.cfg, old.conf, nil, nil)
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

// Any reports whether there is anything to revoke.
func (s *Set) Any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)+len(s.kept) > 0
}

// loginOf returns what the session of a vault block stands for.
func loginOf(v config.Vault) state.Login {
	return state.Login{Cluster: v.Cluster, Role: v.Role, Namespace: v.Namespace, Identity: v.Identity,
		IdentityFile: v.IdentityFile, Policies: strings.Join(v.Policies, ",")}
}

// Changed returns what gets a value when something that the task has asked for may have changed.
func (s *Set) Changed() <-chan struct{} { return s.changed }

// Session returns the session of a vault block, nil where there is none.
func (s *Set) Session(name string) *session.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[name]
}

// Describe returns which token each session has, in the order of their names.
func (s *Set) Describe() (text string) {
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
		text += fmt.Sprintf(", the session of vault %q has to wait: %v", one.Name, s.env.whyKept(one))
	}
	return text
}

// nomad returns the watch on Nomad's own data, which is opened when a template first asks.
func (s *Set) nomad() *taskapi.Watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch == nil {
		s.watch = taskapi.Open(taskapi.Options{
			Dir:       s.cfg.TaskDir().Dir,
			Namespace: s.cfg.Namespace,
			Token:     s.nomadToken,
			Changed:   s.changed,
			Logger:    s.env.Logger,
		})
	}
	if s.paused { // an attempt to render that was left to itself: it gets no answer
		s.watch.Close()
	}
	return s.watch
}

// nomadToken is the task's own Nomad identity, empty where it has none: the task API then says what to add.
func (s *Set) nomadToken(context.Context) (string, error) {
	source := identity.Source{Name: "default", Dir: s.cfg.TaskDir().Dir, Env: s.cfg.Env["NOMAD_TOKEN"]}
	token, err := source.Peek()
	if errors.Is(err, identity.ErrAbsent) {
		return "", nil
	}
	return token.JWT(), err
}

// Pause ends what belongs to one run only. No session is opened any more.
func (s *Set) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
	if s.watch != nil {
		s.watch.Close()
	}
}

// Revoke revokes everything, of all clusters side by side. waiting is about sessions whose Vault could not be asked,
// for which it may be called again; lost is about those that nobody can revoke.
func (s *Set) Revoke(ctx context.Context) (waiting, lost error) {
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

// Problems returns what is wrong with the sessions at this moment, one line for each.
func (s *Set) Problems() (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.sessions)) {
		for _, line := range s.sessions[name].Trouble() {
			lines = append(lines, fmt.Sprintf("vault %q: %s", name, line))
		}
	}
	return lines
}
