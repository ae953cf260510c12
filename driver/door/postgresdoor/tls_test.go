package postgresdoor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shoenig/test/must"
)

// certificate makes a certificate of its own for the name localhost, in PEM, and its key.
func certificate(t testing.TB) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	must.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// serveTLS has the server take TLS, and nothing else.
func (s *server) serveTLS(t testing.TB) (authority []byte) {
	t.Helper()
	cert, key := certificate(t)
	for name, content := range map[string][]byte{"server.crt": cert, "server.key": key,
		"pg_hba.conf": []byte("hostssl all all all scram-sha-256\nhost all postgres all scram-sha-256\n")} {
		path := s.path("data/" + name)
		must.NoError(t, os.WriteFile(path, content, 0o600))
		credential := s.cmd.SysProcAttr.Credential
		must.NoError(t, os.Chown(path, int(credential.Uid), int(credential.Gid)))
	}
	s.exec(t, "ALTER SYSTEM SET ssl = on")
	s.exec(t, "SELECT pg_reload_conf()")
	eventually(t, func() error {
		if s.count(t, "SELECT count(*) FROM pg_settings WHERE name = 'ssl' AND setting = 'on'") != 1 {
			return fmt.Errorf("it has no TLS yet")
		}
		return nil
	})
	return cert
}

func TestTLS(t *testing.T) {
	s := startServer(t)
	credential := s.user(t, 1)
	authority := s.serveTLS(t)
	another, _ := certificate(t)
	ctx := context.Background()
	for name, c := range map[string]struct {
		mode, host string
		cas        []byte
		want       string // "": a session
	}{
		"verify-full":                   {mode: "verify-full", cas: authority},
		"the default":                   {cas: authority},
		"verify-full, another name":     {mode: "verify-full", host: "127.0.0.1", cas: authority, want: "certificate"},
		"verify-full, wrong authority":  {mode: "verify-full", cas: another, want: "certificate"},
		"verify-full, the host's own":   {mode: "verify-full", want: "certificate"},
		"verify-ca, another name":       {mode: "verify-ca", host: "127.0.0.1", cas: authority},
		"verify-ca, wrong authority":    {mode: "verify-ca", cas: another, want: "certificate"},
		"require":                       {mode: "require"},
		"require, wrong authority":      {mode: "require", cas: another, want: "certificate"},
		"disable, and the server wants": {mode: "disable", want: "refused the user"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := s.spec()
			spec.Postgres.URL = strings.Replace(spec.Postgres.URL, "?sslmode=disable", "", 1)
			if c.mode != "" {
				spec.Postgres.URL += "?sslmode=" + c.mode
			}
			if c.host != "" {
				spec.Postgres.URL = strings.Replace(spec.Postgres.URL, "localhost", c.host, 1)
			}
			spec.Postgres.CAs = c.cas
			reached := Reach(ctx, spec)
			must.Eq(t, c.want == "certificate", reached != nil, must.Sprint(reached))
			o := openDoor(t, spec, credential)
			conn, err := pgx.Connect(ctx, o.unixDSN())
			if c.want != "" {
				must.ErrorContains(t, err, c.want)
				return
			}
			must.NoError(t, err)
			must.Eq(t, "v-door-1 true", ask(t, conn,
				"SELECT current_user || ' ' || ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
			sleep := make(chan error)
			go func() { _, err := conn.Exec(ctx, "SELECT pg_sleep(600)"); sleep <- err }()
			s.sleeping(t, 1)
			must.NoError(t, conn.PgConn().CancelRequest(ctx))
			must.Eq(t, "57014", code(<-sleep))
			must.NoError(t, conn.Close(ctx))
		})
	}
	t.Run("the login is bound to the channel", func(t *testing.T) {
		spec := s.spec()
		spec.Postgres.URL = strings.Replace(spec.Postgres.URL, "disable", "verify-full", 1)
		spec.Postgres.CAs = authority
		o := openDoor(t, spec, credential)
		o.Door.(*postgresDoor).config.ChannelBinding = "require" // it is "prefer"
		must.Eq(t, "bound", ask(t, o.connect(t, ""), "SELECT 'bound'"))
	})
	t.Run("a server without TLS", func(t *testing.T) {
		spec := startServer(t).spec()
		spec.Postgres.URL = strings.Replace(spec.Postgres.URL, "disable", "require", 1)
		_, err := pgx.Connect(ctx, openDoor(t, spec, credential).unixDSN())
		must.ErrorContains(t, err, "door: PostgreSQL has no TLS, which sslmode asks for")
		must.ErrorContains(t, Reach(ctx, spec), "it has no TLS, which sslmode asks for")
	})
}
