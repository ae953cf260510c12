package session

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/status"
)

// Status returns what the session has and what it does next, without secrets.
func (s *Session) Status() status.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	out := status.Session{Cluster: s.cluster.Config().Name, Role: s.role, Namespace: s.namespace,
		Accessor: s.token.Accessor, Policies: slices.Clone(s.token.Policies), External: s.token.External,
		Upkeep: s.upkeep.status(s.lease.Ends, s.tokenAction()),
		Down:   status.Time(s.downAt), Spent: len(s.spent) + len(s.retired), Secrets: []status.Secret{}}
	for it := range s.kept {
		out.Secrets = append(out.Secrets, it.status())
	}
	slices.SortFunc(out.Secrets, func(a, b status.Secret) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), a.Ends.Compare(b.Ends))
	})
	for u := range s.upkeeps {
		if !u.at.IsZero() && u.at.Before(now) {
			out.Queue++
			out.Late = max(out.Late, int(now.Sub(u.at)/time.Second))
		}
	}
	return out
}

// tokenAction returns what is done with the token when it is due. Call with mu held.
func (s *Session) tokenAction() string {
	switch {
	case s.token.External:
		return "compare"
	case s.unverified, s.lease.Renewable:
		return "renew"
	default:
		return "replace"
	}
}

func (it *item) status() status.Secret {
	action := "read"
	switch {
	case it.renew:
		action = "renew"
	case it.secret.Issued():
		action = "replace"
	}
	return status.Secret{Path: it.secret.Path, Kind: string(it.secret.Kind),
		Upkeep: it.upkeep.status(it.lease.Ends, action)}
}

// status returns the upkeep of what ends then.
func (u *upkeep) status(ends time.Time, action string) status.Upkeep {
	out := status.Upkeep{Ends: status.Time(ends), Next: status.Time(u.at), Asking: status.Time(u.since)}
	if !u.at.IsZero() {
		out.Action = action
	}
	if u.lastErr != nil {
		out.Trouble = u.lastErr.Error()
	}
	return out
}
