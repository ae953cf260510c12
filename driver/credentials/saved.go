package credentials

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/vault/session"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// A session outlives the plugin process as bytes. It is brought back to life by a client of the Vault that has issued
// its token, and by no other. Where the operator's configuration has no such Vault, for one boot or for longer, the
// bytes are kept: by the task as long as it runs, and then with what is to be revoked.

// blockOf returns the vault block that a session is for.
func blockOf(one state.Session) config.Vault {
	l := one.Login
	return config.Vault{Name: one.Name, Cluster: l.Cluster, Role: l.Role, Namespace: l.Namespace, Identity: l.Identity,
		IdentityFile: l.IdentityFile, Policies: strings.FieldsFunc(l.Policies, func(r rune) bool { return r == ',' })}
}

// Save puts the sessions into a record.
func (s *Set) Save(r *state.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Sessions, r.Kept = map[string]state.Session{}, slices.Clone(s.kept)
	for name, live := range s.sessions {
		data, err := live.Save()
		if err != nil {
			s.env.Logger.Warn("a session is not saved", "task", s.key, "error", err)
			continue
		}
		r.Sessions[name] = state.Session{Login: loginOf(s.conf.Vault(name)), State: data}
	}
}

// Unpack returns the sessions of a record without bringing them back to life. One that cannot be decoded is lost.
func Unpack(env Env, cfg *drivers.TaskConfig, r state.Record) *Set {
	s := New(env, cfg, config.Task{}, nil, nil)
	var all []state.Session
	for _, name := range slices.Sorted(maps.Keys(r.Sessions)) {
		one := r.Sessions[name]
		one.Name = name
		all = append(all, one)
	}
	for _, one := range append(all, r.Kept...) {
		one.Seen = time.Now()
		if _, err := session.OriginOf(one.State, one.Seen); err != nil {
			env.Logger.Warn("a session is lost", "task", r.Key, "vault", one.Name, "error", err)
			continue
		}
		s.kept = append(s.kept, one)
	}
	return s
}

// Restore returns the sessions of a record, brought back to life for a run that adopts them or for their revocation.
// A session whose Vault is not configured now is kept as it is.
func Restore(env Env, cfg *drivers.TaskConfig, r state.Record) *Set {
	s := Unpack(env, cfg, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = slices.DeleteFunc(s.kept, func(one state.Session) bool {
		if s.sessions[one.Name] != nil {
			return false
		}
		block := blockOf(one)
		if client, err := env.Client(block.Cluster); err == nil {
			if live, err := client.Adopt(one.State, s.options(block)); err == nil {
				s.sessions[one.Name] = live
				s.conf.Vaults = append(s.conf.Vaults, block)
				return true
			}
		}
		env.Logger.Warn("a session is kept for later", "task", r.Key, "vault", one.Name, "error", env.whyKept(one))
		return false
	})
	return s
}

// revive returns the kept session of a vault block, nil where there is none of that cluster's.
func (s *Set) revive(client *session.Cluster, block config.Vault, options session.Options) *session.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, one := range s.kept {
		if one.Name != block.Name || one.Login != loginOf(block) || s.paused || s.env.ended() {
			continue
		}
		if live, err := client.Adopt(one.State, options); err == nil {
			s.sessions[block.Name] = live
			s.kept = slices.Delete(s.kept, i, i+1)
			return live
		}
	}
	return nil
}

// Reclaim makes sessions that can be revoked of those that were kept, as far as their cluster is configured, and
// forgets those whose tokens have ended. The error says what the operator can do for the others.
func (s *Set) Reclaim() (waiting error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = slices.DeleteFunc(s.kept, func(one state.Session) bool {
		origin, err := session.OriginOf(one.State, one.Seen)
		if err != nil || !origin.Ends.IsZero() && time.Now().After(origin.Ends) {
			return true
		}
		client := s.env.ClientOf(origin)
		if client == nil {
			waiting = errors.Join(waiting, fmt.Errorf("vault %q: %w", one.Name, s.env.whyKept(one)))
			return false
		}
		live, err := client.Reclaim(one.State)
		if err != nil {
			waiting = errors.Join(waiting, fmt.Errorf("vault %q: %w", one.Name, err))
			return false
		}
		name := one.Name
		for n := 2; s.sessions[name] != nil; n++ {
			name = fmt.Sprintf("%s (%d)", one.Name, n)
		}
		s.sessions[name] = live
		return true
	})
	return waiting
}

// whyKept returns why a session is not in use, and what the operator can do.
func (env Env) whyKept(one state.Session) error {
	origin, err := session.OriginOf(one.State, one.Seen)
	if err != nil {
		return err
	}
	_, unnamed := env.Client(one.Login.Cluster)
	switch plugin := env.Plugin; {
	case env.ClientOf(origin) == nil && origin.Address == "":
		return fmt.Errorf("its token is from vault %q, which plugin %q does not have: add that block again",
			origin.Cluster, plugin)
	case env.ClientOf(origin) == nil:
		return fmt.Errorf("its token is from %s, and no vault block of plugin %q has that address: "+
			"correct vault %q, or add a block with the address", origin.Address, plugin, origin.Cluster)
	case unnamed != nil:
		return fmt.Errorf("%w: correct the name of its vault block of plugin %q", unnamed, plugin)
	default:
		return fmt.Errorf("vault %q of plugin %q has another address, role or namespace now than its token is from: "+
			"correct it", one.Login.Cluster, plugin)
	}
}
