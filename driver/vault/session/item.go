package session

import (
	"slices"
	"time"

	"nomad-driver-vault/driver/vault"
)

// item is one question and its newest answer. The session's mu guards it.
type item struct {
	upkeep
	asking ctxLock // taken while Vault is asked, so that a reading and a step do not both issue a lease

	req    vault.Request
	secret *vault.Secret // newest
	lease  vault.Lease   // of secret, as renewed since
	gone   bool          // the lease has ended before its time, or is about to with its token
	renew  bool          // what to do when it is due: renew, or else read anew
	used   *vault.Secret // what the committed reading shows; nil when that did not ask
	// older answers that are in use or pinned by a reading; their leases are renewed, they are never read anew
	held   []*item
	reader int         // number of the latest reading that asked
	minted []time.Time // when leases were issued for this question, the latest mintsPerLife
}

func newItem(req vault.Request, secret *vault.Secret) *item {
	it := &item{req: req, secret: secret, upkeep: newUpkeep(), asking: newCtxLock()}
	if secret != nil {
		it.lease, it.backoff.Jitter = secret.Lease, secret.Lease.Jitter
	}
	return it
}

// op is what errors say was tried.
func (it *item) op() string { return string(it.req.Op) + " " + it.secret.Path }

// plan sets when the item next wants attention.
func (it *item) plan(now time.Time) {
	it.at, it.renew = it.secret.Kind.Due(it.lease, it.req.Every)
	if it.req.Before > 0 && it.secret.Issued() && !it.renew && !it.at.IsZero() {
		it.at = it.lease.ReplaceBefore(it.req.Before)
	}
	switch {
	case it.gone && it.req.Every > 0:
		it.at, it.renew = now, false
	case it.gone: // read once, and over
		it.at, it.renew, it.class, it.lastErr = time.Time{}, false, nil, nil
	}
}

// hold keeps an older answer's lease, as renewed since, whatever becomes of the item: the process may use it until a
// newer one is committed. Those that have ended it forgets, but for the one in use, which Vault may know better.
func (it *item) hold(secret *vault.Secret, l vault.Lease, now time.Time) {
	it.held = slices.DeleteFunc(it.held, func(old *item) bool {
		return old.lease.Expired(now) && old.secret.Handle() != it.used.Handle()
	})
	handle := secret.Handle()
	if handle == "" || slices.ContainsFunc(it.held, func(old *item) bool { return old.secret.Handle() == handle }) {
		return
	}
	old := newItem(vault.Request{Revoke: it.req.Revoke}, secret)
	old.upkeep = it.upkeep // what failed so far was about this lease
	old.since, old.gather = time.Time{}, false
	if old.lease = l; secret.Kind == vault.Leased { // whose data is not needed any more
		old.secret = &vault.Secret{Path: secret.Path, Kind: vault.Leased, Lease: secret.Lease, Auth: secret.Auth}
	}
	old.plan(now)
	it.held = append(it.held, old)
}

// install makes secret the newest answer and plans what comes next. An answer that says the same as the one before
// keeps that one's identity, so that nothing is rendered for it. It reports whether this one says something new.
func (it *item) install(secret *vault.Secret, now time.Time) (changed bool) {
	if secret.Issued() {
		it.mint(now)
	}
	if changed = it.secret == nil || !it.secret.SameContent(secret); changed {
		it.hold(it.secret, it.lease, now)
		it.secret = secret
	}
	it.lease, it.gone = secret.Lease, false
	it.succeeded(time.Time{})
	it.plan(now)
	return changed
}

// mint counts that a lease was issued, or may have been.
func (it *item) mint(now time.Time) {
	it.minted = append(it.minted, now)
	it.minted = it.minted[max(0, len(it.minted)-mintsPerLife):]
}

// budget is how long to wait before one more lease may be issued.
func (it *item) budget(now time.Time) time.Duration {
	if !it.secret.Issued() || len(it.minted) < mintsPerLife {
		return 0
	}
	return it.minted[0].Add(it.lease.TTL).Sub(now)
}

// usable reports that the newest answer may still be what Vault would say. A static role's password is, even past the
// time of its rotation: a Vault that is down does not rotate.
func (it *item) usable(now time.Time) bool {
	return !it.gone && (it.secret.Kind == vault.Rotating || !it.lease.Expired(now))
}

// good reports that the newest answer can be shown to a reading as it is: nothing says that it has ended, and it is no
// copy of something to look at afresh.
func (it *item) good(fresh bool, now time.Time) bool {
	if it.gone || it.lease.Expired(now) {
		return it.budget(now) > 0 // the last known good, until another may be issued
	}
	return !fresh || (it.secret.Kind != vault.Polled && it.secret.Kind != vault.Rotating)
}

// revocation is what it takes to revoke what was issued; there is none for what merely ends.
func (it *item) revocation() (spent, bool) {
	handle := it.secret.Handle()
	switch {
	case handle == "" || it.secret.Kind == vault.Expiring && it.req.Revoke == "":
		return spent{}, false
	case it.secret.Auth != nil:
		return spent{ID: handle, Token: &token{Auth: *it.secret.Auth}}, true
	case it.secret.Kind == vault.Leased:
		return spent{ID: handle, Child: it.secret.ChildNamespace()}, true
	}
	c := &certificate{Path: it.req.Revoke}
	c.PEM, _ = it.secret.Data["certificate"].(string)
	c.Key, _ = it.secret.Data["private_key"].(string)
	return spent{ID: handle, Certificate: c}, true
}
