package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
)

func TestClassOf(t *testing.T) {
	for status, want := range map[int]error{
		400: ErrInvalid, 403: ErrDenied, 404: ErrNotFound, 405: ErrInvalid, 408: ErrUnavailable, 412: ErrUnavailable,
		429: ErrUnavailable, 472: ErrUnavailable, 473: ErrUnavailable, 500: ErrUnavailable, 501: ErrUnavailable,
		502: ErrUnavailable, 503: ErrUnavailable, 504: ErrUnavailable, 307: ErrInvalid,
	} {
		must.ErrorIs(t, classOf(status), want, must.Sprint(status))
	}
}

func testClient(t testing.TB, c Cluster) *Client {
	c.Name, c.AuthPath = "main", "jwt-nomad"
	client, err := NewClient(c, hclog.NewNullLogger())
	must.NoError(t, err)
	return client
}

func TestFail(t *testing.T) {
	addr := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8200}
	sent := func(err error) error {
		return &url.Error{Op: "Get", URL: "http://10.0.0.1/v1/secret?x=hunter2", Err: err}
	}
	dial := &net.OpError{Op: "dial", Net: "tcp", Addr: addr, Err: syscall.ECONNREFUSED}
	reset := &net.OpError{Op: "read", Net: "tcp", Addr: addr, Err: syscall.ECONNRESET}
	answer := func(status int, said ...string) error { return &api.ResponseError{StatusCode: status, Errors: said} }
	for name, test := range map[string]struct {
		err       error
		class     error
		transient bool
		lost      bool
		text      string
	}{
		"refused connection": {sent(dial), ErrUnavailable, true, false,
			`read x: Vault unavailable: dial 10.0.0.1:8200: connection refused; address in the plugin's vault "main" block is http://10.0.0.1:8200`},
		"broken connection": {sent(reset), ErrUnavailable, true, true,
			"read 10.0.0.1:8200: connection reset by peer; address in the plugin's vault \"main\" block is " +
				"http://10.0.0.1:8200: does the server speak https?"},
		"cut answer":        {errors.New("unexpected EOF"), ErrUnavailable, true, true, "unexpected EOF"},
		"silence":           {sent(context.DeadlineExceeded), ErrUnavailable, true, true, "no answer in time"},
		"unknown authority": {sent(x509.UnknownAuthorityError{}), ErrUnavailable, false, false, "set ca_file or ca_path"},
		"wrong name": {sent(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}), ErrUnavailable, false,
			false, "set tls_server_name"},
		"old certificate": {sent(x509.CertificateInvalidError{Reason: x509.Expired}), ErrUnavailable, false, false,
			"renew the certificate"},
		"https to http": {sent(tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}),
			ErrUnavailable, false, false, "the server speaks http"},
		"http to https": {answer(400, "Client sent an HTTP request to an HTTPS server."), ErrUnavailable, false, false,
			"says http, the server speaks https"},
		"sealed": {answer(503, "Vault is sealed"), ErrUnavailable, true, false,
			"read x: Vault unavailable: Vault is sealed (503)"},
		"gateway": {answer(502, "<html>\n<b>bad gateway</b>\n"), ErrUnavailable, true, true,
			"<html>; <b>bad gateway</b> (502)"},
		"denied": {answer(403, "1 error occurred:\n\t* permission denied\n\n"), ErrDenied, false, false,
			"read x: denied by Vault: permission denied (403)"},
		"invalid token": {answer(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"), ErrDenied,
			false, false, "permission denied; invalid token (403)"},
		"past its maximum": {answer(500, "past the max TTL, cannot renew"), ErrInvalid, false, false, "past the max TTL"},
		"nothing said":     {answer(400), ErrInvalid, false, false, "Bad Request (400)"},
		"a page that shows the request": {answer(500,
			"X-Vault-Token: hvs.CAESIJhunter2hunter2 Authorization: eyJhbGciOiJF.eyJzdWIiOiJodW50ZXIyIn0.hunter2 "+
				strings.Repeat("x", 1000)),
			ErrUnavailable, true, false, "X-Vault-Token: [redacted] Authorization: [redacted] xxx"},
	} {
		t.Run(name, func(t *testing.T) {
			err := testClient(t, Cluster{Address: "http://10.0.0.1:8200"}).fail("read x", test.err)
			must.ErrorIs(t, err, test.class)
			must.Eq(t, test.transient, Transient(err))
			must.Eq(t, test.lost, AnswerLost(err))
			must.StrContains(t, err.Error(), test.text)
			must.StrNotContains(t, err.Error(), "\n")
			must.StrNotContains(t, err.Error(), "hunter2")
			must.Less(t, 500, len(err.Error()))
		})
	}
}

func TestFailPassesOn(t *testing.T) {
	c := testClient(t, Cluster{Address: "http://10.0.0.1:8200"})
	must.NoError(t, c.fail("x", nil))
	known := &Error{Class: ErrDenied, Op: "first"}
	must.Eq(t, error(known), c.fail("second", known))
	canceled := c.fail("x", fmt.Errorf("get: %w", context.Canceled))
	must.ErrorIs(t, canceled, context.Canceled)
	must.False(t, Transient(canceled))
}

func TestExplainLogin(t *testing.T) {
	for said, want := range map[string]struct {
		class error
		hint  string
	}{
		`role "api" could not be found`: {ErrNotFound, `correct role in the task's vault block, or create role "api" of auth/jwt-nomad`},
		"missing role":                  {ErrNotFound, `create_from_role in the plugin's vault "main" block`},
		`error validating claims: claim "nomad_job_id" does not match any associated bound claim values`:            {ErrDenied, "see its bound_claims"},
		"error validating token: invalid audience (aud) claim: audience claim does not match any expected audience": {ErrDenied, `bound_audiences of role "api"`},
		"error validating token: invalid expiration time (exp) claim: token is expired": {
			ErrUnavailable, "waiting for Nomad to renew"},
		"error validating token: invalid not before (nbf) claim: token not yet valid": {
			ErrUnavailable, "compare the clocks"},
		`error verifying token signature: fetching keys oidc: get keys failed Get "http://10.0.0.1": dial tcp: connect: permission denied`: {ErrUnavailable, "check jwks_url in auth/jwt-nomad/config"},
		"permission denied": {ErrDenied, "there is no JWT auth method at auth/jwt-nomad"},
		"something new":     {ErrInvalid, ""},
	} {
		t.Run(said, func(t *testing.T) {
			c := testClient(t, Cluster{Address: "http://10.0.0.1:8200"})
			err := c.explainLogin(c.fail("log in", &api.ResponseError{StatusCode: 400, Errors: []string{said}}), "api")
			must.ErrorIs(t, err, want.class)
			must.StrContains(t, err.Error(), want.hint)
		})
	}
}

// That nobody answered is told as such, whatever words the network used.
func TestExplainLoginLeavesSilenceAlone(t *testing.T) {
	c := testClient(t, Cluster{Address: "http://10.0.0.1:8200"})
	err := c.explainLogin(c.fail("log in", &net.OpError{Op: "dial", Addr: &net.TCPAddr{},
		Err: errors.New("permission denied")}), "")
	must.StrContains(t, err.Error(), "address in the plugin's vault")
}

func TestNewClientNamesTheField(t *testing.T) {
	for name, test := range map[string]struct {
		cluster Cluster
		says    string
	}{
		"no address":   {Cluster{}, `address "" is not a URL`},
		"a bare host":  {Cluster{Address: "vault:8200"}, "is not a URL"},
		"no socket":    {Cluster{Address: "unix://run/vault.sock"}, "or unix:///run/vault.sock"},
		"a password":   {Cluster{Address: "https://me:hunter2@vault"}, "address holds a user name or password"},
		"no such file": {Cluster{Address: "https://vault", CAFile: "/none"}, "ca_file, ca_path, cert_file or key_file"},
		"no number": {Cluster{Address: "https://vault", RateLimit: "many"},
			`rate_limit "many" is not a number of requests a second`},
		"no requests":     {Cluster{Address: "https://vault", RateLimit: "0"}, `rate_limit "0"`},
		"no burst":        {Cluster{Address: "https://vault", RateLimit: "5:0"}, `rate_limit "5:0"`},
		"half a burst":    {Cluster{Address: "https://vault", RateLimit: "5:1.5"}, `rate_limit "5:1.5"`},
		"no sense":        {Cluster{Address: "https://vault", RateLimit: "NaN"}, `rate_limit "NaN"`},
		"half a key pair": {Cluster{Address: "https://vault", CertFile: "/none"}, "cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewClient(test.cluster, hclog.NewNullLogger())
			must.ErrorContains(t, err, test.says)
			must.StrNotContains(t, err.Error(), "hunter2")
		})
	}
}
