package credentials

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"nomad-driver-vault/driver/taskapi"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
)

// Snapshot is one consistent reading of all that a task asks: of each session and of Nomad's own data. Each question
// is asked once.
type Snapshot struct {
	set   *Set
	fresh bool

	opening  chan struct{} // holds one while a session is opened, which can take as long as a snapshot may
	readings map[string]*session.Reading
	refused  map[string]error // where a session could not be opened: the other templates do not ask Vault again

	mu    sync.Mutex
	nomad *taskapi.Reading
}

// Format keeps what was read out of logs, errors and panics.
func (p *Snapshot) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[snapshot of %v]", p.set) }

// Snapshot begins a reading. What it does not ask of what was asked before is given up by its Commit. With fresh set,
// secrets without a lease are read anew.
func (s *Set) Snapshot(fresh bool) *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &Snapshot{set: s, fresh: fresh, opening: make(chan struct{}, 1), readings: map[string]*session.Reading{},
		refused: map[string]error{}}
	for name, session := range s.sessions {
		p.readings[name] = session.Begin(fresh)
	}
	if s.watch != nil {
		p.nomad = s.watch.Begin()
	}
	return p
}

func (p *Snapshot) reading(ctx context.Context, name string) (*session.Reading, error) {
	p.opening <- struct{}{}
	defer func() { <-p.opening }()
	if r, err := p.readings[name], p.refused[name]; r != nil || err != nil {
		return r, err
	}
	session, err := p.set.open(ctx, name)
	if err != nil {
		p.refused[name] = err
		return nil, err
	}
	p.readings[name] = session.Begin(p.fresh)
	return p.readings[name], nil
}

// Token returns the token of a vault block's session.
func (p *Snapshot) Token(ctx context.Context, name string) (string, error) {
	reading, err := p.reading(ctx, name)
	if err != nil {
		return "", err
	}
	return reading.Token(), nil
}

// Accessor returns that of the token of a vault block's session; empty: nothing was asked there. No question may be
// under way.
func (p *Snapshot) Accessor(name string) string {
	if r := p.readings[name]; r != nil {
		return r.Accessor()
	}
	return ""
}

// Secrets returns what Vault has answered. No question may be under way.
func (p *Snapshot) Secrets() (all []*vault.Secret) {
	for _, r := range p.readings {
		all = append(all, r.Secrets()...)
	}
	return all
}

func (p *Snapshot) nomadData() *taskapi.Reading {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nomad == nil {
		p.nomad = p.set.nomad().Begin()
	}
	return p.nomad
}

// Commit says that what was read is in use now, and nothing else. The leases that it replaces are revoked after
// grace, or left to end by their TTL when grace is negative.
func (p *Snapshot) Commit(grace time.Duration) {
	for _, r := range p.readings {
		r.Commit(grace)
	}
	if p.nomad != nil {
		p.nomad.Commit()
	}
}

// Source returns what answers the questions to one vault block; every is the poll interval.
func (p *Snapshot) Source(vaultName string, every time.Duration) *Source {
	return &Source{snapshot: p, vault: vaultName, every: every}
}

// Source answers the questions of one block.
type Source struct {
	snapshot *Snapshot
	vault    string
	every    time.Duration

	mu     sync.Mutex
	leases []string
}

// Leases returns the IDs of the leases that the answers so far had, sorted.
func (s *Source) Leases() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.leases)
	s.leases = slices.Compact(s.leases)
	return slices.Clone(s.leases)
}

// Of returns what answers the questions to another vault block, from the same snapshot.
func (s *Source) Of(vaultName string) *Source {
	return &Source{snapshot: s.snapshot, vault: vaultName, every: s.every}
}

// Token returns the token that the questions are asked with.
func (s *Source) Token(ctx context.Context) (string, error) { return s.snapshot.Token(ctx, s.vault) }

// Ask asks Vault, once for equal requests of a snapshot.
func (s *Source) Ask(ctx context.Context, req vault.Request) (*vault.Secret, error) {
	reading, err := s.snapshot.reading(ctx, s.vault)
	if err != nil {
		return nil, err
	}
	req.Every = s.every
	secret, err := reading.Read(ctx, req)
	if err == nil && secret.Lease.ID != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leases = append(s.leases, secret.Lease.ID)
	}
	return secret, err
}

// Read implements template.Source.
func (s *Source) Read(ctx context.Context, path string, query url.Values) (*template.Secret, error) {
	return toTemplate(s.Ask(ctx, vault.Request{Op: vault.Read, Path: path, Query: query}))
}

// Exists implements template.Source.
func (s *Source) Exists(ctx context.Context, path string, query url.Values) (bool, error) {
	secret, err := s.Ask(ctx, vault.Request{Op: vault.Read, Path: path, Query: query, Optional: true})
	return err == nil && !secret.Absent(), err
}

// Write implements template.Source.
func (s *Source) Write(ctx context.Context, path string, data map[string]any) (*template.Secret, error) {
	return toTemplate(s.Ask(ctx, vault.Request{Op: vault.Write, Path: path, Data: data}))
}

// List implements template.Source.
func (s *Source) List(ctx context.Context, path string) ([]string, error) {
	secret, err := s.Ask(ctx, vault.Request{Op: vault.List, Path: path})
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

func toTemplate(secret *vault.Secret, err error) (*template.Secret, error) {
	if err != nil {
		return nil, err
	}
	out := &template.Secret{
		RequestID:     secret.RequestID,
		LeaseID:       secret.Lease.ID,
		LeaseDuration: int(secret.Lease.TTL / time.Second),
		Renewable:     secret.Lease.Renewable,
		Data:          secret.Data,
		Warnings:      secret.Warnings,
	}
	if auth := secret.Auth; auth != nil {
		out.Auth = &template.SecretAuth{ClientToken: auth.Value, Accessor: auth.Accessor, Policies: auth.Policies,
			Metadata: secret.Metadata, LeaseDuration: int(auth.Lease.TTL / time.Second), Renewable: auth.Lease.Renewable}
	}
	return out, nil
}

var _ template.Source = (*Source)(nil)
