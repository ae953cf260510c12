package session

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"nomad-driver-vault/driver/vault"
)

// What goes wrong with a session, when that is told, and when it is over. The last notice is always true of what the
// session is at the moment.

// outageAfter is how long something must have failed because Vault could not be asked until that counts as an outage: a
// single answer that got lost is none.
const outageAfter = 5 * time.Second

// problem is what was told to be wrong although Vault answers.
type problem struct {
	class error
	text  string
}

// report tells what decide finds, if anything. decide runs with mu held; two reports never overlap, so that the later
// one is told later.
func (s *Session) report(decide func() (kind NoticeKind, text string)) {
	s.telling.Lock()
	defer s.telling.Unlock()
	var kind NoticeKind
	var text string
	var notify func(Notice)
	s.locked(func() {
		kind, text = decide()
		notify = s.notify
	})
	if text != "" && notify != nil {
		notify(Notice{kind, text})
	}
}

func (s *Session) tell(kind NoticeKind, text string) {
	s.report(func() (NoticeKind, string) { return kind, text })
}

// notifyWaiting reports that the task waits: why, or where there is no error yet, for what.
func (s *Session) notifyWaiting(why error, what string) {
	if why != nil {
		s.tell(Waiting, "waiting: "+why.Error())
	} else {
		s.tell(Waiting, "waiting for "+what)
	}
}

// reportOnce reports a failure once: an outage when it has lasted for outageAfter, and each other problem again only
// after what failed has succeeded.
func (s *Session) reportOnce(err error) {
	op, class := about(err)
	if class == vault.ErrUnavailable {
		s.report(s.outage)
		s.report(s.death)
		return
	}
	s.report(func() (NoticeKind, string) {
		if s.reported[op].class == class {
			return Problem, ""
		}
		if s.reported == nil {
			s.reported = map[string]problem{}
		}
		s.reported[op] = problem{class, err.Error()}
		return Problem, err.Error()
	})
}

// outage tells once that Vault cannot be asked. Call with mu held.
func (s *Session) outage() (NoticeKind, string) {
	if !s.downAt.IsZero() {
		return Outage, ""
	}
	for u := range s.upkeeps {
		if u.class == vault.ErrUnavailable && (time.Since(u.failing) >= outageAfter) {
			s.downAt = u.failing
			return Outage, "the last known good secrets stay in use: " + u.lastErr.Error()
		}
	}
	return Outage, ""
}

// death tells once of each lease, and of the token, that it ended while Vault could not be asked. Call with mu held.
func (s *Session) death() (NoticeKind, string) {
	now := time.Now()
	if u := &s.upkeep; u.class == vault.ErrUnavailable && !u.dead && s.lease.Expired(now) {
		u.dead = true
		return Dead, "the token " + endedAt(s.lease) + ", and with it every lease; a new one is asked for until Vault answers"
	}
	for it := range s.kept {
		if it.class == vault.ErrUnavailable && !it.dead && it.secret.Issued() && it.lease.Expired(now) {
			it.dead = true
			return Dead, fmt.Sprintf("what was read from %s %s and works no longer; it is read anew as soon as Vault answers",
				it.secret.Path, endedAt(it.lease))
		}
	}
	return Dead, ""
}

func endedAt(l vault.Lease) string { return "ended at " + l.Ends.UTC().Format(time.RFC3339) }

// recovery returns what works again, and what still does not. Call with mu held.
func (s *Session) recovery() (NoticeKind, string) {
	text := ""
	switch {
	case !s.downAt.IsZero() && s.reachable():
		text = fmt.Sprintf("Vault answers again after %s", time.Since(s.downAt).Round(time.Second))
		s.downAt = time.Time{}
	case s.downAt.IsZero() && s.lastCleared != "":
		text = s.lastCleared + ": works again"
	}
	s.lastCleared = ""
	if text == "" || len(s.reported) == 0 {
		return Recovered, text
	}
	first := slices.Min(slices.Collect(maps.Keys(s.reported)))
	return Problem, text + "; still wrong: " + s.reported[first].text
}

// reachable reports that nothing waits for a Vault that cannot answer. That some other request succeeded is not enough:
// a Vault whose database is down answers all but that. Call with mu held.
func (s *Session) reachable() bool {
	for u := range s.upkeeps {
		if u.class == vault.ErrUnavailable {
			return false
		}
	}
	return true
}

// clearReport forgets the problem that was reported of op, which has succeeded now.
func (s *Session) clearReport(op string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearReportLocked(op)
}

// clearReportLocked is clearReport with mu held.
func (s *Session) clearReportLocked(op string) {
	if _, told := s.reported[op]; told {
		delete(s.reported, op)
		s.lastCleared = op
	}
}

// upkeeps yields the upkeep of the token and of every item. Call with mu held.
func (s *Session) upkeeps(yield func(*upkeep) bool) {
	if !yield(&s.upkeep) {
		return
	}
	for it := range s.kept {
		if !yield(&it.upkeep) {
			return
		}
	}
}

// Trouble returns what is wrong with the session at this moment, one line for each, without secrets; nil: all is well.
func (s *Session) Trouble() (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		lines = append(lines, "internal error: the upkeep of the Vault session has ended")
	}
	if !s.downAt.IsZero() {
		lines = append(lines, s.down())
	}
	if s.upkeep.dead {
		lines = append(lines, "the token "+endedAt(s.lease))
	}
	for it := range s.kept {
		if it.dead {
			lines = append(lines, fmt.Sprintf("what was read from %s %s", it.secret.Path, endedAt(it.lease)))
		}
	}
	for _, op := range slices.Sorted(maps.Keys(s.reported)) {
		lines = append(lines, s.reported[op].text)
	}
	return lines
}

// down says for how long Vault cannot be asked, and why. Call with mu held.
func (s *Session) down() string {
	text := fmt.Sprintf("Vault unavailable for %s", time.Since(s.downAt).Round(time.Second))
	for u := range s.upkeeps {
		if u.class == vault.ErrUnavailable {
			return text + ": " + u.lastErr.Error()
		}
	}
	return text
}
