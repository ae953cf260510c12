package session_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestSpentLeases(t *testing.T) {
	for name, test := range map[string]struct {
		revoke bool
		grace  time.Duration
		calls  int
		users  int
	}{
		"are revoked after the grace":                {revoke: true, grace: time.Minute, calls: 1, users: 1},
		"are left to end when the grace is negative": {revoke: true, grace: -1, calls: 0, users: 2},
		"are left alone when the policy denies it":   {revoke: false, grace: time.Minute, calls: 1, users: 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: test.revoke}
				b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
				s := b.open()
				b.generation(s, 0, creds)
				time.Sleep(54 * time.Minute)
				b.generation(s, test.grace, creds)
				time.Sleep(2 * time.Minute)
				must.Eq(b, test.calls, b.Calls("PUT sys/leases/revoke"))
				must.Len(b, test.users, b.Users())
				time.Sleep(52 * time.Minute)
				b.generation(s, test.grace, creds)
				time.Sleep(2 * time.Minute)
				if !test.revoke {
					must.Eq(b, test.calls, b.Calls("PUT sys/leases/revoke"), must.Sprint("it asks although it was denied"))
				}
				must.Len(b, 0, b.noticesSoFar())
				b.end(s)
			})
		})
	}
}

func TestForgottenQuestionIsRevokedAfterTheGrace(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		s := b.open()
		b.generation(s, 0, creds)
		b.generation(s, time.Minute)
		time.Sleep(59 * time.Second)
		must.Len(b, 1, b.Users())
		time.Sleep(2 * time.Second)
		must.Len(b, 0, b.Users())
		b.end(s)
	})
}

func TestForgottenQuestionIsLeftToEndWhenTheGraceIsNegative(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		s := b.open()
		b.generation(s, 0, creds)
		b.generation(s, -1)
		time.Sleep(time.Minute)
		must.Len(b, 1, b.Users())
		b.end(s)
	})
}

func TestCommitOfTheSameAgainRevokesNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		s := b.open()
		for range 3 {
			b.generation(s, 0, creds)
			time.Sleep(time.Minute)
		}
		must.Len(b, 1, b.Users())
		must.Eq(b, 0, b.Calls("PUT sys/leases/revoke"))
		b.end(s)
	})
}

func TestCommitTakesOverAShorterInterval(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		slow := vault.Request{Op: vault.Read, Path: "secret/a", Every: time.Hour}
		b.generation(s, 0, slow)
		b.generation(s, 0, slow, read("secret/a"))
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(time.Minute)
		must.True(b, changed(s))
		b.end(s)
	})
}

// The last reading no longer asks while its answer is on the way: nobody wants it.
func TestAnswerToAForgottenQuestionIsRevoked(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
		b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
		s := b.open()
		b.generation(s, 0, creds)
		mend := b.Break(vaulttest.Fault{Match: "GET database/", Slow: 20 * time.Second})
		for b.Minted() < 2 {
			time.Sleep(time.Second)
		}
		mend()
		b.generation(s, 0)
		time.Sleep(time.Minute)
		must.Len(b, 0, b.Users())
		b.end(s)
	})
}

// What was issued between two commits was never in use, and must not live on.
func TestLeaseThatWasNeverInUseIsRevoked(t *testing.T) {
	for when, test := range map[string]struct{ grace, lives time.Duration }{
		"at once":                               {0, 0},
		"after the grace":                       {time.Minute, time.Minute}, // it was in the task's files all the same
		"though what was in use is left to end": {-1, 0},
	} {
		t.Run(when, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.Roles["app"] = vaulttest.Role{TTL: 24 * time.Hour, Revoke: true}
				b.Creds["app"] = vaulttest.Creds{TTL: time.Hour, Fixed: true}
				s := b.open()
				b.generation(s, 0, creds)
				time.Sleep(106 * time.Minute) // two replacements without a commit
				must.Eq(b, 3, b.Minted())
				must.Len(b, 2, b.Users())
				third := b.generation(s, test.grace, creds)[0]
				if test.lives > 0 {
					time.Sleep(test.lives - time.Second)
					must.Len(b, 2, b.Users())
					time.Sleep(time.Second)
				}
				time.Sleep(time.Second)
				must.Eq(b, []string{user(third)}, b.Users())
				b.end(s)
			})
		})
	}
}

// The commit of an older reading leaves alone what a reading under way shows.
func TestCommitOfAnOlderReading(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Roles["app"] = vaulttest.Role{TTL: time.Hour, Revoke: true}
		b.Creds["other"] = b.Creds["app"]
		s := b.open()
		older := s.Begin(false)
		b.answer(older, creds)
		newer := s.Begin(false)
		b.answer(newer, creds)
		only := b.answer(newer, read("database/creds/other"))
		older.Commit(0)
		time.Sleep(time.Minute)
		must.SliceContains(b, b.Users(), user(only))
		newer.Commit(0)
		time.Sleep(24 * time.Hour)
		must.Len(b, 2, b.Users(), must.Sprint("it is not renewed"))
		b.end(s)
	})
}

func TestChangeBetweenBeginAndCommitIsNotLost(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		r := s.Begin(false)
		b.answer(r, read("secret/a"))
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(time.Minute)
		must.False(b, changed(s), must.Sprint("nothing is in use yet"))
		r.Commit(0)
		must.True(b, changed(s))
		r = s.Begin(false)
		must.Eq(b, "2", value(b.answer(r, read("secret/a"))))
		b.end(s)
	})
}
