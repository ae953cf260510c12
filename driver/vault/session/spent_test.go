package session_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// A token that was replaced takes its leases with it. While no other may be issued, one of them is the last known good
// that a generation shows, and the commit of that must not end it.
func TestCommitOfTheLastKnownGoodDoesNotRevokeIt(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true}) // replaced after seven hours
		b.Creds["app"] = vaulttest.Creds{TTL: 20 * time.Minute}
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		reqs := []vault.Request{creds, read("secret/a")}
		first := user(b.generation(s, 0, reqs...)[0])
		time.Sleep(6*time.Hour + 30*time.Minute)
		mend := b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		for b.Minted() < 5 { // that is all the budget
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		must.Eq(b, 2, b.Logins())
		b.Put("secret/a", map[string]any{"k": "2"})
		time.Sleep(every + every/5)
		must.True(b, changed(s))
		must.Eq(b, first, user(b.generation(s, 0, reqs...)[0]))
		mend()
		for !changed(s) {
			must.SliceContains(b, b.Users(), first)
			time.Sleep(10 * time.Second)
		}
		next := user(b.generation(s, 0, reqs...)[0])
		must.NotEq(b, first, next)
		time.Sleep(time.Second)
		must.SliceNotContains(b, b.Users(), first)
		must.Len(b, 1, b.Tokens())
		b.end(s)
	})
}

// The same, of a lease that no generation has shown yet when the plugin dies: the next process may have to show it.
func TestAdoptionDoesNotRevokeTheLastKnownGood(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("app", vaulttest.Role{TTL: 8 * time.Hour, Fixed: true, Revoke: true})
		b.Creds["app"] = vaulttest.Creds{TTL: 20 * time.Minute}
		s := b.open()
		first := user(b.generation(s, 0, creds)[0])
		time.Sleep(6 * time.Hour)
		b.RevokeLease(first)
		time.Sleep(30 * time.Minute)
		must.Eq(b, 2, b.Minted())
		second := user(b.answer(s.Begin(false), creds))
		b.Break(vaulttest.Fault{Match: "GET database/creds/", Lose: true})
		for b.Minted() < 6 {
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		state := b.save(s)
		b.crash()
		s = b.adopt(state)
		time.Sleep(4 * time.Second)
		must.Eq(b, second, user(b.answer(s.Begin(false), creds)))
		must.SliceContains(b, b.Users(), second)
		must.NoError(b, s.Close(b.Context()))
	})
}

// Certificates without a lease outlive their token unless somebody revokes them.
func TestCertificatesAreRevokedWhereThatIsAskedFor(t *testing.T) {
	revoking := vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "1h"}, Every: every,
		Revoke: "pki/revoke-with-key"}
	plain := revoking
	plain.Revoke = ""
	for name, test := range map[string]struct {
		reqs  []vault.Request
		grace time.Duration
		then  func(*bench, *session.Session) *session.Session // after the certificate was replaced and shown
		in    time.Duration                                   // after that
		live  int                                             // then
		left  int                                             // at the end
	}{
		"at once":                  {reqs: []vault.Request{revoking}, in: time.Second, live: 1},
		"after a grace":            {reqs: []vault.Request{revoking}, grace: time.Minute, in: 50 * time.Second, live: 2},
		"not before it":            {reqs: []vault.Request{revoking}, grace: time.Minute, in: 61 * time.Second, live: 1},
		"by the second who asks":   {reqs: []vault.Request{plain, revoking}, in: time.Second, live: 1},
		"nobody asks for it":       {reqs: []vault.Request{plain}, in: time.Second, live: 2, left: 2},
		"what is given up is left": {reqs: []vault.Request{revoking}, grace: -1, in: time.Second, live: 2, left: 1},
		"Vault is away for a while": {reqs: []vault.Request{revoking}, grace: time.Second,
			then: (*bench).vaultIsDownForAMinute, in: 3 * time.Minute, live: 1},
		"the token is lost meanwhile": {reqs: []vault.Request{revoking}, grace: time.Second, then: (*bench).tokenIsRevoked,
			in: 2 * time.Minute, live: 1},
		"the plugin dies meanwhile": {reqs: []vault.Request{revoking}, grace: time.Minute, then: (*bench).crashAndAdopt,
			in: 61 * time.Second, live: 1},
		"and is revoked in the end": {reqs: []vault.Request{revoking}, grace: time.Hour, then: (*bench).crashAndAdopt,
			in: 2 * time.Second, live: 2},
		"nobody wants one any more": {reqs: []vault.Request{revoking}, then: (*bench).dropEveryPath, in: time.Second,
			live: 0},
		"the policies do not grant it": {reqs: []vault.Request{revoking}, then: (*bench).revocationIsDenied,
			in: 2 * time.Minute, live: 2, left: 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				if test.left == 2 && test.then != nil {
					b.SetRole("app", vaulttest.Role{TTL: time.Hour, Deny: []string{"pki/revoke"}})
				}
				s := b.open()
				b.generation(s, 0, test.reqs...)
				time.Sleep(54 * time.Minute)
				must.True(b, changed(s))
				b.generation(s, test.grace, test.reqs...)
				if test.then != nil {
					s = test.then(b, s)
				}
				time.Sleep(test.in)
				must.Eq(b, test.live, b.Certificates())
				if err := s.Close(b.Context()); len(b.noticesSoFar()) == 1 && test.left > 0 {
					must.ErrorIs(b, err, vault.ErrDenied)
				} else {
					must.NoError(b, err)
				}
				must.Len(b, 0, b.Tokens())
				must.Eq(b, test.left, b.Certificates())
			})
		})
	}
}

func (b *bench) vaultIsDownForAMinute(s *session.Session) *session.Session {
	b.Down(true)
	time.Sleep(time.Minute)
	must.Eq(b, 2, b.Certificates())
	b.Down(false)
	return s
}

func (b *bench) tokenIsRevoked(s *session.Session) *session.Session {
	b.RevokeTokens()
	return s
}

func (b *bench) crashAndAdopt(s *session.Session) *session.Session {
	state := b.save(s)
	b.crash()
	return b.adopt(state)
}

func (b *bench) dropEveryPath(s *session.Session) *session.Session {
	b.generation(s, 0)
	return s
}

func (b *bench) revocationIsDenied(s *session.Session) *session.Session {
	time.Sleep(time.Minute)
	must.Len(b, 1, b.noticesSoFar())
	must.Eq(b, session.Problem, b.noticesSoFar()[0].Kind)
	must.StrContains(b, b.noticesSoFar()[0].Text, `revoke certificate with pki/revoke-with-key: denied by Vault`)
	must.StrContains(b, b.noticesSoFar()[0].Text, `path "pki/revoke-with-key" { capabilities = ["update"] }`)
	return s
}

// A plugin that dies before a certificate was ever shown leaves it to the next one.
func TestCertificateOfAGenerationThatNeverCameIsRevoked(t *testing.T) {
	bubble(t, func(b *bench) {
		cert := vault.Request{Op: vault.Write, Path: "pki/issue/app", Data: map[string]any{"ttl": "1h"}, Every: every,
			Revoke: "pki/revoke-with-key"}
		s := b.open()
		b.generation(s, 0, cert)
		for range 2 { // the second is held for a reading that never commits
			time.Sleep(54 * time.Minute)
			b.answer(s.Begin(false), cert)
		}
		must.Eq(b, 3, b.Certificates())
		s = b.crashAndAdopt(s)
		time.Sleep(time.Second)
		must.Eq(b, 2, b.Certificates(), must.Sprint("the first is what the task uses"))
		b.end(s)
		must.Zero(b, b.Certificates())
	})
}

// A PKI engine that is out of order neither loses a certificate at once nor keeps everything else alive.
func TestCloseWaitsForAnEngineButNotForLong(t *testing.T) {
	for name, test := range map[string]struct {
		down        time.Duration
		left, other int // certificates, and users while the engine is still out of order
	}{
		"a moment": {30 * time.Second, 0, 1},
		"longer":   {2 * time.Minute, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				s := b.open()
				b.generation(s, 0, creds, vault.Request{Op: vault.Write, Path: "pki/issue/app", Revoke: "pki/revoke-with-key"})
				mend := b.Break(vaulttest.Fault{Match: "PUT pki/revoke", Status: 500})
				must.ErrorIs(b, s.Close(b.Context()), vault.ErrUnavailable)
				time.Sleep(test.down)
				must.ErrorIs(b, s.Close(b.Context()), vault.ErrUnavailable)
				must.Len(b, test.other, b.Users())
				mend()
				if err := s.Close(b.Context()); test.left > 0 {
					must.ErrorIs(b, err, vault.ErrDenied)
				} else {
					must.NoError(b, err)
				}
				must.Len(b, 0, b.Users())
				must.Eq(b, test.left, b.Certificates())
				must.NoError(b, s.Close(b.Context()))
			})
		})
	}
}

// What Vault wants to see of a certificate is Vault's own: whether it keeps those that it issues or not, and whose the
// key is.
func TestRealVaultRevokesCertificates(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	v.write(t, "pki/roles/forgets", map[string]any{"allow_any_name": true, "max_ttl": "1h", "key_type": "ec",
		"no_store": true})
	must.NoError(t, v.root.Sys().PutPolicy("certificates", `
		path "pki/issue/*"         { capabilities = ["update"] }
		path "pki/sign/*"          { capabilities = ["update"] }
		path "pki/revoke"          { capabilities = ["update"] }
		path "pki/revoke-with-key" { capabilities = ["update"] }`))
	v.role(t, "certificates", map[string]any{"token_policies": "certificates"})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.example.com"}}, key)
	must.NoError(t, err)
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	for name, test := range map[string]struct{ path, revoke string }{
		"one that Vault keeps":        {"pki/issue/app", "pki/revoke-with-key"},
		"one that Vault does not":     {"pki/issue/forgets", "pki/revoke-with-key"},
		"one whose key is the task's": {"pki/sign/app", "pki/revoke"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := v.open(t, v.client(t, nil), "certificates", v.jwt(t, nil))
			must.NoError(t, err)
			req := vault.Request{Op: vault.Write, Path: test.path, Revoke: test.revoke,
				Data: map[string]any{"common_name": "a.example.com", "ttl": "10m", "csr": csr}}
			secret, err := s.Begin(false).Read(t.Context(), req)
			must.NoError(t, err)
			serial := secret.Data["serial_number"].(string)
			must.SliceNotContains(t, v.revoked(t), serial)
			must.NoError(t, s.Close(t.Context()))
			must.SliceContains(t, v.revoked(t), serial)
			_, err = v.root.Logical().Write(test.revoke, map[string]any{"certificate": secret.Data["certificate"],
				"private_key": secret.Data["private_key"]})
			must.NoError(t, err, must.Sprint("an answer that got lost can be asked for again"))
		})
	}
}

// revoked are the serial numbers of the certificates that Vault has revoked.
func (v *real) revoked(t *testing.T) (serials []string) {
	answer, err := v.root.Logical().List("pki/certs/revoked")
	must.NoError(t, err)
	if answer == nil {
		return nil
	}
	for _, serial := range answer.Data["keys"].([]any) {
		serials = append(serials, serial.(string))
	}
	return serials
}
