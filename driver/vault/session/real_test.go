package session_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/internal/need"
)

// real is a Vault that the tests share: what its messages are is what this package has to understand.
type real struct {
	address, dir string
	root         *api.Client
	key          *ecdsa.PrivateKey
	keys         map[string]func() *ecdsa.PrivateKey // of auth methods with other keys
}

// realVault starts the Vault of VAULT_BIN, or else of the repository's bin folder, with TLS when the folder is to have
// its certificates, and with more arguments. It ends with the test.
func realVault(t *testing.T, tls bool, more ...string) *real {
	t.Helper()
	binary := os.Getenv("VAULT_BIN")
	if binary == "" {
		binary, _ = filepath.Abs("../../../bin/vault")
	}
	if _, err := os.Stat(binary); err != nil {
		need.Skip(t, "a Vault: set VAULT_BIN, or build bin/vault")
	}
	v := &real{dir: t.TempDir()}
	port := freePort(t)
	v.address = "http://" + port
	args := []string{"server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root", "-dev-listen-address=" + port}
	args = append(args, more...)
	if tls {
		v.address = "https://" + port
		args = append(args, "-dev-tls", "-dev-tls-cert-dir="+v.dir)
	}
	var output bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Env = []string{"HOME=" + v.dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	v.connect(t, tls)
	return v
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// connect waits until the server answers.
func (v *real) connect(t *testing.T, tls bool) {
	deadline := time.Now().Add(30 * time.Second)
	conf := api.DefaultConfig()
	conf.Address = v.address
	if tls {
		for {
			if err := conf.ConfigureTLS(&api.TLSConfig{CACert: v.ca()}); err == nil {
				break
			}
			must.True(t, time.Now().Before(deadline), must.Sprint("Vault wrote no certificates"))
			<-time.After(20 * time.Millisecond)
		}
	}
	var err error
	v.root, err = api.NewClient(conf)
	must.NoError(t, err)
	v.root.SetToken("root")
	for {
		if health, err := v.root.Sys().Health(); err == nil && health.Initialized && !health.Sealed {
			return
		}
		must.True(t, time.Now().Before(deadline), must.Sprint("Vault does not answer"))
		<-time.After(20 * time.Millisecond)
	}
}

func (v *real) ca() string { return filepath.Join(v.dir, "vault-ca.pem") }

func (v *real) write(t *testing.T, path string, data map[string]any) {
	_, err := v.root.Logical().Write(path, data)
	must.NoError(t, err, must.Sprint(path))
}

// setUp enables the JWT auth method as an operator does for Nomad, and some engines.
func (v *real) setUp(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	v.key = key
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must.NoError(t, err)
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	must.NoError(t, v.root.Sys().EnableAuthWithOptions("jwt-nomad", &api.EnableAuthOptions{Type: "jwt"}))
	v.write(t, "auth/jwt-nomad/config", map[string]any{"jwt_validation_pubkeys": public, "bound_issuer": "nomad"})
	must.NoError(t, v.root.Sys().PutPolicy("app", `
		path "secret/data/app*"  { capabilities = ["read", "create", "update"] }
		path "secret/data/none"  { capabilities = ["read"] }
		path "secret/data/config/app" { capabilities = ["read"] }
		path "ssh/sign/app"      { capabilities = ["update"] }
		path "auth/approle/*"    { capabilities = ["update"] }
		path "auth/token/create" { capabilities = ["update"] }
		path "secret/metadata/*" { capabilities = ["list", "read"] }
		path "kv1/*"             { capabilities = ["read", "list"] }
		path "pki/issue/app"     { capabilities = ["update"] }
		path "+/issue/leased"    { capabilities = ["update"] }
		path "transit/*"         { capabilities = ["create", "update"] }
		path "nowhere/*"         { capabilities = ["read", "create", "update"] }
		path "sys/leases/revoke" { capabilities = ["update"] }`))
	must.NoError(t, v.root.Sys().Mount("kv1", &api.MountInput{Type: "kv", Options: map[string]string{"version": "1"}}))
	must.NoError(t, v.root.Sys().Mount("transit", &api.MountInput{Type: "transit"}))
	v.pki(t, "pki")
	v.role(t, "app", nil)
}

// pki mounts an engine that issues certificates: by its role "leased" with leases.
func (v *real) pki(t *testing.T, mount string) {
	must.NoError(t, v.root.Sys().Mount(mount, &api.MountInput{Type: "pki"}))
	v.write(t, mount+"/root/generate/internal", map[string]any{"common_name": "root", "key_type": "ec"})
	for _, role := range []string{"app", "leased"} {
		v.write(t, mount+"/roles/"+role, map[string]any{"allowed_domains": "example.com", "allow_subdomains": true,
			"max_ttl": "1h", "key_type": "ec", "generate_lease": role == "leased"})
	}
}

// role makes a role like the one of Nomad's documentation, with changes.
func (v *real) role(t *testing.T, name string, changes map[string]any) {
	role := map[string]any{"role_type": "jwt", "bound_audiences": "vault.io", "user_claim": "/nomad_job_id",
		"user_claim_json_pointer": true, "token_policies": "app", "token_ttl": "30m", "token_period": "30m"}
	for key, value := range changes {
		role[key] = value
	}
	v.write(t, "auth/jwt-nomad/role/"+name, role)
}

// jwt signs claims like Nomad's, with changes; a nil takes one away.
func (v *real) jwt(t *testing.T, changes map[string]any) string {
	return sign(t, v.key, claims(changes))
}

// jwtOf is signed with the key that an auth method knows at the moment.
func (v *real) jwtOf(t *testing.T, mount string) string {
	if key := v.keys[mount]; key != nil {
		return sign(t, key(), claims(nil))
	}
	return v.jwt(t, nil)
}

func claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	claims := map[string]any{"aud": "vault.io", "iss": "nomad", "sub": "global:default:job:group:task:vault",
		"nomad_job_id": "job", "nomad_namespace": "default", "iat": now, "nbf": now, "exp": now + 3600}
	for key, value := range changes {
		if claims[key] = value; value == nil {
			delete(claims, key)
		}
	}
	return claims
}

// sign makes a JWT of RFC 7519 with ES256 of RFC 7518 §3.4.
func sign(t *testing.T, key *ecdsa.PrivateKey, claims map[string]any) string {
	payload, err := json.Marshal(claims)
	must.NoError(t, err)
	text := b64.EncodeToString([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + b64.EncodeToString(payload)
	hash := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	must.NoError(t, err)
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + b64.EncodeToString(signature)
}

// client returns a client of the cluster, which change may change.
func (v *real) client(t *testing.T, change func(*vault.Cluster)) *session.Cluster {
	c := vault.Cluster{Name: "default", Address: v.address, AuthPath: "jwt-nomad"}
	if change != nil {
		change(&c)
	}
	client, err := session.NewCluster(c, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// open tries once only where a client would go on.
func (v *real) open(t *testing.T, c *session.Cluster, role, jwt string) (*session.Session, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tries := 0
	identity := func(context.Context) (string, error) {
		if tries++; tries > 1 {
			cancel()
		}
		return jwt, nil
	}
	s, err := c.Open(ctx, session.Options{Login: session.Login{Role: role, JWT: identity}})
	if err == nil {
		t.Cleanup(func() { must.NoError(t, s.Close(context.Background())) })
	}
	return s, err
}

// refusal is what an error has to be.
type refusal struct {
	class     error
	transient bool
	says      []string
}

func (r refusal) check(t *testing.T, err error, secrets ...string) {
	t.Helper()
	must.Error(t, err)
	t.Log(err)
	must.ErrorIs(t, err, r.class)
	must.Eq(t, r.transient, vault.Transient(err))
	for _, part := range r.says {
		must.StrContains(t, err.Error(), part)
	}
	must.StrNotContains(t, err.Error(), "\n")
	for _, secret := range append(secrets, "hvs.") {
		must.StrNotContains(t, err.Error(), secret)
	}
}

var b64 = base64.RawURLEncoding

func TestRealVaultAnswers(t *testing.T) {
	t.Parallel()
	v := realVault(t, false)
	v.setUp(t)
	hunter2 := map[string]any{"k": "hunter2"}
	for _, name := range []string{"app", "app-deleted", "app-destroyed"} {
		v.write(t, "secret/data/"+name, map[string]any{"data": hunter2})
	}
	_, err := v.root.Logical().Delete("secret/data/app-deleted")
	must.NoError(t, err)
	v.write(t, "secret/destroy/app-destroyed", map[string]any{"versions": []int{1}})
	v.write(t, "kv1/app", hunter2)
	s, err := v.open(t, v.client(t, nil), "app", v.jwt(t, nil))
	must.NoError(t, err)
	must.Eq(t, []string{"app", "default"}, s.Policies())

	missing := func(says ...string) refusal { return refusal{vault.ErrNotFound, false, says} }
	for name, test := range map[string]struct {
		req  vault.Request
		want refusal
	}{
		"policy missing": {vault.Request{Op: vault.Read, Path: "secret/other"},
			refusal{vault.ErrDenied, false, []string{`role "app" grants the policies [app default]`,
				`path "secret/data/other" { capabilities = ["read"] }`}}},
		"policy missing for a list": {vault.Request{Op: vault.List, Path: "transit/keys"},
			refusal{vault.ErrDenied, false, []string{`path "transit/keys" { capabilities = ["list"] }`}}},
		"policy missing for a write": {vault.Request{Op: vault.Write, Path: "pki/issue/other"},
			refusal{vault.ErrDenied, false, []string{`path "pki/issue/other" { capabilities = ["create", "update"] }`}}},
		"nothing there": {vault.Request{Op: vault.Read, Path: "secret/app-none"},
			missing("read secret/data/app-none: not found in Vault", "write it first")},
		"nothing there in KV v1": {vault.Request{Op: vault.Read, Path: "kv1/none"}, missing("write it first")},
		"nothing to list":        {vault.Request{Op: vault.List, Path: "kv1/none"}, missing("list kv1/none")},
		"no such version": {vault.Request{Op: vault.Read, Path: "secret/app",
			Query: url.Values{"version": {"9"}}}, missing("there is no version 9")},
		"deleted": {vault.Request{Op: vault.Read, Path: "secret/app-deleted"},
			missing("version 1 was deleted at 20", "undelete it")},
		"destroyed": {vault.Request{Op: vault.Read, Path: "secret/data/app-destroyed"},
			missing("version 1 is destroyed")},
		"nothing mounted there": {vault.Request{Op: vault.Read, Path: "nowhere/app"},
			missing("no secrets engine is mounted there")},
		"nothing mounted for a write": {vault.Request{Op: vault.Write, Path: "nowhere/app"},
			missing("no secrets engine answers at that path")},
		"what a role does not allow": {vault.Request{Op: vault.Write, Path: "pki/issue/app",
			Data: map[string]any{"common_name": "evil.org"}},
			refusal{vault.ErrInvalid, false, []string{"common name evil.org not allowed"}}},
		"no such key": {vault.Request{Op: vault.Write, Path: "transit/decrypt/none",
			Data: map[string]any{"ciphertext": "hunter2"}},
			refusal{vault.ErrInvalid, false, []string{"encryption key not found"}}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := s.Begin(false).Read(ctx, test.req)
			test.want.check(t, err, "hunter2")
		})
	}
	for path, query := range map[string]url.Values{"secret/app-none": nil, "kv1/none": nil, "secret/app-deleted": nil,
		"secret/data/app-destroyed": nil, "secret/app": {"version": {"9"}}} {
		secret, err := s.Begin(false).Read(t.Context(),
			vault.Request{Op: vault.Read, Path: path, Query: query, Optional: true})
		must.NoError(t, err, must.Sprint(path))
		must.True(t, secret.Absent(), must.Sprint(path))
	}
	for path, class := range map[string]error{"nowhere/app": vault.ErrNotFound, "secret/other": vault.ErrDenied} {
		_, err := s.Begin(false).Read(t.Context(), vault.Request{Op: vault.Read, Path: path, Optional: true})
		must.ErrorIs(t, err, class, must.Sprint(path))
	}
	for name, test := range map[string]struct {
		req  vault.Request
		kind vault.Kind
		path string
	}{
		"KV v2 by the API's path": {vault.Request{Op: vault.Read, Path: "/secret/data/app"}, vault.Polled,
			"secret/data/app"},
		"KV v2 by the command's path": {vault.Request{Op: vault.Read, Path: "secret/app"}, vault.Polled, "secret/data/app"},
		"KV v2 metadata": {vault.Request{Op: vault.Read, Path: "secret/metadata/app"}, vault.Polled,
			"secret/metadata/app"},
		"a list of KV v2": {vault.Request{Op: vault.List, Path: "secret"}, vault.Polled, "secret/metadata"},
		"KV v1":           {vault.Request{Op: vault.Read, Path: "kv1/app"}, vault.Polled, "kv1/app"},
		"a write to KV v2": {vault.Request{Op: vault.Write, Path: "secret/app-new", Data: hunter2}, vault.Fixed,
			"secret/data/app-new"},
		"a write without an answer": {vault.Request{Op: vault.Write, Path: "transit/keys/app"}, vault.Fixed,
			"transit/keys/app"},
		"a certificate": {vault.Request{Op: vault.Write, Path: "pki/issue/app",
			Data: map[string]any{"common_name": "a.example.com"}}, vault.Expiring, "pki/issue/app"},
		"a certificate with a lease": {vault.Request{Op: vault.Write, Path: "pki/issue/leased",
			Data: map[string]any{"common_name": "a.example.com"}}, vault.Leased, "pki/issue/leased"},
	} {
		t.Run(name, func(t *testing.T) {
			secret, err := s.Begin(false).Read(t.Context(), test.req)
			must.NoError(t, err)
			must.Eq(t, test.kind, secret.Kind)
			must.Eq(t, test.path, secret.Path)
		})
	}
}

func TestRealVaultOutOfReach(t *testing.T) {
	t.Parallel()
	plain, secure := realVault(t, false), realVault(t, true)
	secure.setUp(t)
	swap := func(address, scheme string) string { return scheme + address[strings.Index(address, ":"):] }
	for name, test := range map[string]struct {
		change func(*vault.Cluster)
		want   refusal
	}{
		"nobody listens": {func(c *vault.Cluster) { c.Address = "http://" + freePort(t) },
			refusal{vault.ErrUnavailable, true, []string{"connection refused",
				"address in the plugin's vault \"default\" block is http://127.0.0.1:"}}},
		"no such host": {func(c *vault.Cluster) { c.Address = "http://vault.invalid:8200" },
			refusal{vault.ErrUnavailable, true, []string{"vault.invalid", "block is http://vault.invalid:8200"}}},
		"authority not trusted": {func(c *vault.Cluster) { c.CAFile = "" },
			refusal{vault.ErrUnavailable, false, []string{"unknown authority", "set ca_file or ca_path"}}},
		"another name": {func(c *vault.Cluster) { c.TLSServerName = "vault.example" },
			refusal{vault.ErrUnavailable, false, []string{"not vault.example", "set tls_server_name"}}},
		"https to http": {func(c *vault.Cluster) { c.Address = swap(plain.address, "https") },
			refusal{vault.ErrUnavailable, false, []string{"says https, the server speaks http"}}},
	} {
		t.Run(name, func(t *testing.T) {
			client := secure.client(t, func(c *vault.Cluster) {
				c.CAFile = secure.ca()
				test.change(c)
			})
			_, err := secure.open(t, client, "app", secure.jwt(t, nil))
			test.want.check(t, err)
		})
	}
	t.Run("http to https", func(t *testing.T) {
		client := secure.client(t, func(c *vault.Cluster) { c.Address = swap(secure.address, "http") })
		// the server breaks the connection before its answer is read
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		identity := func(context.Context) (string, error) { return secure.jwt(t, nil), nil }
		_, err := client.Open(ctx, session.Options{Login: session.Login{Role: "app", JWT: identity}})
		must.StrContains(t, err.Error(), "https")
	})
	t.Run("in reach", func(t *testing.T) {
		_, err := secure.open(t, secure.client(t, func(c *vault.Cluster) { c.CAFile = secure.ca() }), "app",
			secure.jwt(t, nil))
		must.NoError(t, err)
	})
	t.Run("sealed", func(t *testing.T) {
		must.NoError(t, secure.root.Sys().Seal())
		_, err := secure.open(t, secure.client(t, func(c *vault.Cluster) { c.CAFile = secure.ca() }), "app",
			secure.jwt(t, nil))
		refusal{vault.ErrUnavailable, true, []string{"Vault is sealed"}}.check(t, err)
	})
}

// TestRealVaultThatWantsACertificate: mutual TLS, at an address that is not the name in Vault's certificate.
func TestRealVaultThatWantsACertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, others := newAuthority(t, dir, "ca"), newAuthority(t, dir, "other")
	ours.sign(t, "server", "vault.example")
	ours.sign(t, "client", "")
	others.sign(t, "stranger", "")
	file := func(name string) string { return filepath.Join(dir, name) }
	address := freePort(t)
	must.NoError(t, os.WriteFile(file("vault.hcl"), fmt.Appendf(nil, `listener "tcp" {
		address                            = %q
		tls_cert_file                      = %q
		tls_key_file                       = %q
		tls_client_ca_file                 = %q
		tls_require_and_verify_client_cert = true
	}`, address, file("server.pem"), file("server.key"), file("ca.pem")), 0o600))
	v := realVault(t, false, "-config="+file("vault.hcl"))
	v.setUp(t)
	authorities := t.TempDir()
	must.NoError(t, os.Symlink(file("ca.pem"), filepath.Join(authorities, "ca.pem")))

	untrusted := func(says ...string) *refusal { return &refusal{vault.ErrUnavailable, false, says} }
	for name, test := range map[string]struct {
		change func(*vault.Cluster)
		want   *refusal // nil: it is let in
	}{
		"as it should be":            {func(*vault.Cluster) {}, nil},
		"authorities in a directory": {func(c *vault.Cluster) { c.CAFile, c.CAPath = "", authorities }, nil},
		"any certificate of Vault": {func(c *vault.Cluster) { c.CAFile, c.TLSServerName, c.TLSSkipVerify = "", "", true },
			nil},
		"a certificate of a stranger": {func(c *vault.Cluster) {
			c.CertFile, c.KeyFile = file("stranger.pem"),
				file("stranger.key")
		}, untrusted("unknown certificate authority",
			`set cert_file and key_file in the plugin's vault "default" block to a certificate that https://`+address+" accepts")},
		"the name of the address": {func(c *vault.Cluster) { c.TLSServerName = "" }, untrusted("set tls_server_name")},
		"another authority": {func(c *vault.Cluster) { c.CAFile = file("other.pem") },
			untrusted("set ca_file or ca_path")},
		"the authorities of this host": {func(c *vault.Cluster) { c.CAFile = "" }, untrusted("set ca_file or ca_path")},
	} {
		t.Run(name, func(t *testing.T) {
			client := v.client(t, func(c *vault.Cluster) {
				c.Address, c.CAFile, c.TLSServerName = "https://"+address, file("ca.pem"), "vault.example"
				c.CertFile, c.KeyFile = file("client.pem"), file("client.key")
				test.change(c)
			})
			opened, err := v.open(t, client, "app", v.jwt(t, nil))
			if test.want != nil {
				test.want.check(t, err)
				return
			}
			must.NoError(t, err)
			reading := opened.Begin(false)
			_, err = reading.Read(t.Context(), vault.Request{Op: vault.Read, Path: "secret/data/none"})
			must.ErrorIs(t, err, vault.ErrNotFound, must.Sprint("the token is asked with, too"))
		})
	}
	t.Run("no certificate of ours", func(t *testing.T) {
		client := v.client(t, func(c *vault.Cluster) {
			c.Address, c.CAFile, c.TLSServerName = "https://"+address, file("ca.pem"), "vault.example"
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // the connection ends, and nobody hears why
		defer cancel()
		identity := func(context.Context) (string, error) { return v.jwt(t, nil), nil }
		_, err := client.Open(ctx, session.Options{Login: session.Login{Role: "app", JWT: identity}})
		must.ErrorIs(t, err, vault.ErrUnavailable)
		must.StrContains(t, err.Error(), "set cert_file and key_file")
	})
}

// authority signs certificates, which it writes as <name>.pem and <name>.key beside its own.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	a := &authority{dir: dir, cert: &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}}
	a.key = a.write(t, name, a.cert)
	return a
}

// sign makes a certificate of a server of that DNS name, or where it is empty of a client.
func (a *authority) sign(t *testing.T, name, host string) {
	cert := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if host != "" {
		cert.DNSNames, cert.ExtKeyUsage = []string{host}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	a.write(t, name, cert)
}

// write signs the certificate, by its own key where there is no other yet.
func (a *authority) write(t *testing.T, name string, cert *x509.Certificate) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), cmp.Or(a.key, key))
	must.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must.NoError(t, err)
	for file, block := range map[string]*pem.Block{"pem": {Type: "CERTIFICATE", Bytes: der},
		"key": {Type: "PRIVATE KEY", Bytes: private}} {
		must.NoError(t, os.WriteFile(filepath.Join(a.dir, name+"."+file), pem.EncodeToMemory(block), 0o600))
	}
	return key
}
