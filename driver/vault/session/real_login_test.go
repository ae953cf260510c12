package session_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
)

func TestRealVaultRefusesLogins(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	v.role(t, "claims", map[string]any{"bound_claims": map[string]any{"nomad_job_id": "other"}})
	v.role(t, "claim-missing", map[string]any{"bound_claims": map[string]any{"nomad_task": "other"}})
	v.role(t, "user", map[string]any{"user_claim": "/nomad_task"})
	v.role(t, "subject", map[string]any{"bound_subject": "other"})
	v.role(t, "cidrs", map[string]any{"token_bound_cidrs": "10.1.1.1/32"})
	v.role(t, "no-audiences", map[string]any{"bound_audiences": "",
		"bound_subject": "global:default:job:group:task:vault"})
	v.role(t, "counted", map[string]any{"token_num_uses": 5})
	must.NoError(t, v.root.Sys().EnableAuthWithOptions("empty", &api.EnableAuthOptions{Type: "jwt"}))
	must.NoError(t, v.root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	v.unreachableKeys(t, "keyless")
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	now := time.Now().Unix()
	denied := func(says ...string) refusal { return refusal{vault.ErrDenied, false, says} }
	notYet := func(says ...string) refusal { return refusal{vault.ErrUnavailable, true, says} }
	for name, test := range map[string]struct {
		role, mount string
		claims      map[string]any
		key         *ecdsa.PrivateKey
		want        refusal
	}{
		"unknown role": {role: "none", want: refusal{vault.ErrNotFound, false, []string{`role "none" could not be found`,
			"correct role in the task's vault block"}}},
		"no role": {role: "", want: refusal{vault.ErrNotFound, false, []string{"missing role",
			"create_from_role"}}},
		"another job": {role: "claims", want: denied(`claim "nomad_job_id" does not match`,
			`role "claims" of auth/jwt-nomad does not admit this job: see its bound_claims`)},
		"a claim the job has not": {role: "claim-missing", want: denied(`claim "nomad_task" is missing`,
			"see its bound_claims")},
		"no user claim":   {role: "user", want: denied("correct user_claim")},
		"another subject": {role: "subject", want: denied("see its bound_subject")},
		"another node":    {role: "cidrs", want: denied("token_bound_cidrs")},
		"wrong audience": {role: "app", claims: map[string]any{"aud": "other"},
			want: denied("make aud of the task's identity block one of bound_audiences of role \"app\"")},
		"no audience": {role: "app", claims: map[string]any{"aud": nil},
			want: denied("make aud of the task's identity block")},
		"a role without audiences": {role: "no-audiences", want: denied("bound_audiences of role \"no-audiences\"")},
		"another issuer": {role: "app", claims: map[string]any{"iss": "other"},
			want: denied("bound_issuer in auth/jwt-nomad/config")},
		"expired": {role: "app", claims: map[string]any{"iat": now - 7200, "nbf": now - 7200,
			"exp": now - 3600}, want: notYet("waiting for Nomad to renew")},
		"a clock that is late": {role: "app", claims: map[string]any{"nbf": now + 3600, "exp": now + 7200},
			want: notYet("compare the clocks")},
		"a clock that is late, iat": {role: "app", claims: map[string]any{"iat": now + 3600, "nbf": nil,
			"exp": now + 7200}, want: notYet("compare the clocks")},
		"another cluster's key": {role: "app", key: stranger,
			want: notYet("not signed with a key that Vault knows", "jwks_url in auth/jwt-nomad/config")},
		"keys that Vault cannot get": {role: "app", mount: "keyless",
			want: notYet("Vault must reach Nomad's keys", "jwks_url in auth/keyless/config")},
		"a token for some uses": {role: "counted", want: refusal{vault.ErrInvalid, false, []string{"can be used 5 times",
			"set token_num_uses of the role in auth/jwt-nomad to 0"}}},
		"nothing mounted": {role: "app", mount: "none",
			want: denied("there is no JWT auth method at auth/none", "jwt_auth_backend_path")},
		"another auth method": {role: "app", mount: "approle",
			want: refusal{vault.ErrInvalid, false, []string{"is auth/approle a JWT auth method?"}}},
		"an auth method without config": {role: "app", mount: "empty",
			want: refusal{vault.ErrInvalid, false, []string{"vault write auth/empty/config"}}},
	} {
		t.Run(name, func(t *testing.T) {
			jwt := v.jwt(t, test.claims)
			if test.key != nil {
				jwt = sign(t, test.key, map[string]any{"aud": "vault.io", "iss": "nomad", "nomad_job_id": "job", "exp": now + 300})
			}
			client := v.client(t, func(c *vault.Cluster) {
				if test.mount != "" {
					c.AuthPath = test.mount
				}
			})
			_, err := v.open(t, client, test.role, jwt)
			test.want.check(t, err, jwt)
		})
	}
	v.key = stranger
	_, err = v.open(t, v.client(t, nil), "app", "no.jwt.at.all")
	refusal{vault.ErrInvalid, false, []string{"refused by Vault"}}.check(t, err, "no.jwt.at.all")
}

// rotatingKeys mounts an auth method that gets its keys over HTTP, as from Nomad's /.well-known/jwks.json (RFC 7517).
// Until rotate is called they are those that the tests sign with.
func (v *real) rotatingKeys(t *testing.T, mount string) (rotate func()) {
	var keys atomic.Pointer[ecdsa.PrivateKey]
	keys.Store(v.key)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		point, _ := keys.Load().PublicKey.Bytes() // 4, x, y
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256",
			"alg": "ES256", "use": "sig",
			"x": b64.EncodeToString(point[1:33]), "y": b64.EncodeToString(point[33:])}}})
	}))
	t.Cleanup(server.Close)
	must.NoError(t, v.root.Sys().EnableAuthWithOptions(mount, &api.EnableAuthOptions{Type: "jwt"}))
	v.write(t, "auth/"+mount+"/config", map[string]any{"jwks_url": server.URL})
	v.write(t, "auth/"+mount+"/role/app", map[string]any{"role_type": "jwt", "bound_audiences": "vault.io",
		"user_claim":     "nomad_job_id",
		"token_policies": "app", "token_period": "30m"})
	next, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	v.keys = map[string]func() *ecdsa.PrivateKey{mount: keys.Load}
	return func() { keys.Store(next) }
}

// unreachableKeys mounts an auth method whose JWKS server has gone since.
func (v *real) unreachableKeys(t *testing.T, mount string) {
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_,
			_ = w.Write([]byte(`{"keys":[]}`))
	}))
	must.NoError(t, v.root.Sys().EnableAuthWithOptions(mount, &api.EnableAuthOptions{Type: "jwt"}))
	v.write(t, "auth/"+mount+"/config", map[string]any{"jwks_url": keys.URL})
	v.write(t, "auth/"+mount+"/role/app", map[string]any{"role_type": "jwt", "bound_audiences": "vault.io",
		"user_claim": "nomad_job_id"})
	keys.Close()
}

// A Vault Agent or Proxy listens on a socket of the node; the tasks of another cluster go on as they did.
func TestRealVaultBehindASocket(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	v.write(t, "secret/data/app", map[string]any{"data": map[string]any{"k": "v"}})
	socket := filepath.Join(t.TempDir(), "vault.sock")
	listener, err := net.Listen("unix", socket)
	must.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	address, err := url.Parse(v.root.Address())
	must.NoError(t, err)
	var through atomic.Int32
	proxy := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		through.Add(1)
		r.SetURL(address)
	}}}
	t.Cleanup(func() { _ = proxy.Close() })
	go func() { _ = proxy.Serve(listener) }()

	for _, test := range []struct {
		address string
		passes  bool
	}{{"unix://" + socket, true}, {v.root.Address(), false}} {
		before := through.Load()
		s, err := v.open(t, v.client(t, func(c *vault.Cluster) { c.Address = test.address }), "app", v.jwt(t, nil))
		must.NoError(t, err)
		secret, err := s.Begin(false).Read(t.Context(), vault.Request{Op: vault.Read, Path: "secret/app"})
		must.NoError(t, err)
		must.Eq(t, "v", value(secret))
		must.NoError(t, s.Close(t.Context()))
		must.Eq(t, test.passes, through.Load() > before)
	}
}
