package credentials

import (
	"maps"
	"slices"

	"nomad-driver-vault/driver/status"
)

// Status returns what each session has and does next, in the order of their names.
func (s *Set) Status() []status.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []status.Session{}
	for _, name := range slices.Sorted(maps.Keys(s.sessions)) {
		one := s.sessions[name].Status()
		one.Name = name
		all = append(all, one)
	}
	for _, one := range s.kept {
		all = append(all, status.Session{Name: one.Name, Cluster: one.Login.Cluster, Role: one.Login.Role,
			Namespace: one.Login.Namespace, Secrets: []status.Secret{},
			Upkeep: status.Upkeep{Trouble: "it has to wait: " + s.env.whyKept(one).Error()}})
	}
	return all
}
