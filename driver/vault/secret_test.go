package vault

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
	"golang.org/x/crypto/ssh"
)

func TestNewSecret(t *testing.T) {
	later := func(d time.Duration) json.Number { return json.Number(fmt.Sprint(at(d).Unix())) }
	for name, test := range map[string]struct {
		op     Op
		engine string
		answer api.Secret
		kind   Kind
		ttl    time.Duration
	}{
		"a lease":                {Read, "database", api.Secret{LeaseID: "x", LeaseDuration: 60}, Leased, time.Minute},
		"a lease without a time": {Read, "database", api.Secret{LeaseID: "x"}, Leased, 0},
		"a lease that is longer than a Duration holds": {Read, "x", api.Secret{LeaseID: "x", LeaseDuration: 1 << 62},
			Leased, farAway * time.Second},
		"a lease of less than no time": {Read, "x", api.Secret{LeaseID: "x", LeaseDuration: -1}, Leased, 0},
		"KV v1, whose lease duration means nothing": {Read, "kv",
			api.Secret{LeaseDuration: 2764800, Data: map[string]any{"a": "b"}}, Polled, 0},
		"a key named ttl in KV": {Read, "kv",
			api.Secret{Data: map[string]any{"ttl": json.Number("60")}}, Polled, 0},
		"a key named expiration in a cubbyhole": {Read, "cubbyhole",
			api.Secret{Data: map[string]any{"expiration": later(time.Hour)}}, Polled, 0},
		"a certificate": {Write, "pki",
			api.Secret{Data: map[string]any{"expiration": later(time.Hour)}}, Expiring, time.Hour},
		"a certificate that ended before it came": {Read, "pki",
			api.Secret{Data: map[string]any{"expiration": later(-time.Hour)}}, Polled, 0},
		"an expiration that is no time": {Read, "pki",
			api.Secret{Data: map[string]any{"expiration": "never"}}, Polled, 0},
		"an expiration beyond all calendars": {Read, "pki",
			api.Secret{Data: map[string]any{"expiration": json.Number("1e300")}}, Expiring, time.Unix(farAway, 0).Sub(t0)},
		"a signed identity token": {Read, "identity",
			api.Secret{Data: map[string]any{"ttl": json.Number("60")}}, Expiring, time.Minute},
		"a static role": {Read, "database",
			api.Secret{Data: map[string]any{"ttl": json.Number("9"),
				"rotation_period": json.Number("60")}}, Rotating, 10 * time.Second},
		"a static role with a schedule, due now": {Read, "database",
			api.Secret{Data: map[string]any{"ttl": json.Number("0"), "rotation_schedule": "* * * * *"}}, Rotating, time.Second},
		"a static role whose rotation is late": {Read, "database",
			api.Secret{Data: map[string]any{"ttl": json.Number("-5"),
				"rotation_period": json.Number("60")}}, Rotating, time.Second},
		"an SSH certificate": {Write, "ssh", api.Secret{Data: map[string]any{"serial_number": "7",
			"signed_key": signedKey(t, uint64(at(time.Hour).Unix()))}}, Expiring, time.Hour},
		"an SSH certificate without an end": {Write, "ssh", api.Secret{Data: map[string]any{
			"signed_key": signedKey(t, ssh.CertTimeInfinity)}}, Fixed, 0},
		"an SSH certificate that is none": {Write, "ssh", api.Secret{Data: map[string]any{"signed_key": "x"}}, Fixed, 0},
		"an AppRole's secret ID": {Write, "approle", api.Secret{Data: map[string]any{"secret_id": "x",
			"secret_id_ttl": json.Number("600")}}, Expiring, 10 * time.Minute},
		"a secret ID without an end": {Write, "approle", api.Secret{Data: map[string]any{"secret_id": "x",
			"secret_id_ttl": json.Number("0")}}, Fixed, 0},
		"an AppRole": {Read, "approle", api.Secret{Data: map[string]any{"secret_id_ttl": json.Number("600"),
			"token_ttl": json.Number("60")}}, Polled, 0},
		"an access token of gcp": {Read, "gcp", api.Secret{Data: map[string]any{"token": "x",
			"token_ttl": json.Number("3599"), "expires_at_seconds": later(time.Hour)}}, Expiring, time.Hour},
		"an access token that tells its life alone": {Read, "gcp", api.Secret{Data: map[string]any{"token": "x",
			"token_ttl": json.Number("3600")}}, Expiring, time.Hour},
		"an access token of an OAuth server": {Write, "oauth", api.Secret{Data: map[string]any{"access_token": "x",
			"expires_in": json.Number("60")}}, Expiring, time.Minute},
		"a key named expires_in in KV": {Read, "kv", api.Secret{Data: map[string]any{"access_token": "x",
			"expires_in": json.Number("60")}}, Polled, 0},
		"a list": {List, "", api.Secret{Data: map[string]any{"keys": []any{"a"}}},
			Polled, 0},
		"an answer to a write": {Write, "transit",
			api.Secret{Data: map[string]any{"ciphertext": "x"}}, Fixed, 0},
		"no answer to a write": {Write, "transit", api.Secret{}, Fixed, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSecret(Request{Op: test.op}, "p", test.engine, &test.answer, t0, 0, 0.5)
			must.Eq(t, test.kind, s.Kind)
			must.Eq(t, test.ttl, s.Lease.TTL)
			must.Eq(t, test.ttl == 0, s.Lease.Ends.IsZero())
		})
	}
}

func TestSecretDoesNotPrintItsData(t *testing.T) {
	s := &Secret{Path: "kv/app", Data: map[string]any{"k": "hunter2"}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		must.StrNotContains(t, fmt.Sprintf(verb, s), "hunter2")
	}
	tok := &Auth{Value: "hvs.hunter2"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		must.StrNotContains(t, fmt.Sprintf(verb, tok), "hunter2")
	}
}

func TestRequestKey(t *testing.T) {
	base := Request{Op: Read, Path: "kv/app", Every: time.Second}
	same, version, write := base, base, base
	same.Every = time.Hour
	version.Query = map[string][]string{"version": {"2"}}
	write.Op, write.Data = Write, map[string]any{"b": "1", "a": "2"}
	reordered := write
	reordered.Data = map[string]any{"a": "2", "b": "1"}
	must.Eq(t, base.Key(), same.Key())
	must.Eq(t, write.Key(), reordered.Key())
	must.NotEq(t, base.Key(), version.Key())
	must.NotEq(t, base.Key(), write.Key())
}

// signedKey is an SSH certificate that ends then, as ssh/sign/<role> answers.
func signedKey(t *testing.T, ends uint64) string {
	_, key, err := ed25519.GenerateKey(nil)
	must.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	must.NoError(t, err)
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert, ValidBefore: ends}
	must.NoError(t, cert.SignCert(rand.Reader, signer))
	return string(ssh.MarshalAuthorizedKey(cert))
}

func TestEmptyAndMissing(t *testing.T) {
	v2 := mount{path: "secret/", engine: "kv", v2: true}
	meta := map[string]any{"version": json.Number("3"), "destroyed": false, "deletion_time": ""}
	deleted := map[string]any{"version": json.Number("3"), "destroyed": false, "deletion_time": "2026-01-02T03:04:05Z"}
	for name, test := range map[string]struct {
		req    Request
		mount  mount
		answer *api.Secret
		says   string // nothing: not empty
	}{
		"KV v2 data":     {Request{}, v2, &api.Secret{Data: map[string]any{"data": map[string]any{}, "metadata": meta}}, ""},
		"KV v2 metadata": {Request{}, v2, &api.Secret{Data: map[string]any{"versions": "x"}}, ""},
		"KV v1 with a key named data that is null": {Request{}, v2, &api.Secret{Data: map[string]any{"data": nil}}, ""},
		"a lease without data":                     {Request{}, v2, &api.Secret{LeaseID: "x"}, ""},
		"nothing":                                  {Request{}, v2, nil, "not found in Vault; write it first"},
		"nothing of that version": {Request{Query: map[string][]string{"version": {"9"}}}, v2, nil,
			"there is no version 9"},
		"nothing where nothing is mounted": {Request{}, mount{}, nil, "no secrets engine is mounted there"},
		"a deleted version": {Request{}, v2,
			&api.Secret{Data: map[string]any{"data": nil,
				"metadata": deleted}}, "version 3 was deleted at 2026-01-02T03:04:05Z; undelete it"},
		"a deleted version where the mount is not known": {Request{}, mount{},
			&api.Secret{Data: map[string]any{"data": nil, "metadata": deleted}}, "version 3 was deleted"},
		"a destroyed version": {Request{}, v2, &api.Secret{Data: map[string]any{"data": nil,
			"metadata": map[string]any{"version": json.Number("3"), "destroyed": true}}},
			"version 3 is destroyed; write it again, or name another version with secret/data/app?version=N"},
		"KV v2 by the path of v1": {Request{}, mount{},
			&api.Secret{Warnings: []string{"Invalid path for a versioned K/V secrets engine. See the API docs"}},
			"put data/ after the mount's name"},
		"another warning": {Request{}, v2, &api.Secret{Warnings: []string{"look\nhere"}}, "look here"},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, test.says != "", empty(test.answer))
			if test.says != "" {
				err := missing("read secret/data/app", test.req, test.mount, test.answer)
				must.ErrorIs(t, err, ErrNotFound)
				must.StrContains(t, err.Error(), test.says)
				must.StrNotContains(t, err.Error(), "\n")
			}
		})
	}
}

func TestAPIPath(t *testing.T) {
	v2, nested := mount{path: "secret/", v2: true}, mount{path: "team/kv/", v2: true}
	for name, test := range map[string]struct {
		mount mount
		op    Op
		path  string
		want  string
	}{
		"the path of vault kv get":          {v2, Read, "secret/app", "secret/data/app"},
		"the path of the API":               {v2, Read, "secret/data/app", "secret/data/app"},
		"the metadata":                      {v2, Read, "secret/metadata/app", "secret/metadata/app"},
		"the path of vault kv put":          {v2, Write, "secret/app", "secret/data/app"},
		"the path of vault kv list":         {v2, List, "secret/app", "secret/metadata/app"},
		"the list of a whole mount":         {v2, List, "secret", "secret/metadata"},
		"a mount of two words":              {nested, Read, "team/kv/app/db", "team/kv/data/app/db"},
		"a secret whose name begins so":     {v2, Read, "secret/database", "secret/data/database"},
		"a path of another mount":           {v2, Read, "secrets/app", "secrets/app"},
		"KV v1":                             {mount{path: "secret/"}, Read, "secret/app", "secret/app"},
		"a mount that is not known":         {mount{}, Read, "secret/app", "secret/app"},
		"a secret named config":             {v2, Read, "secret/config", "secret/data/config"},
		"a secret below config":             {v2, Read, "secret/config/app", "secret/data/config/app"},
		"a secret below delete":             {v2, Read, "secret/delete/app", "secret/data/delete/app"},
		"a secret below undelete":           {v2, Read, "secret/undelete/app", "secret/data/undelete/app"},
		"a secret below destroy":            {v2, Read, "secret/destroy/app", "secret/data/destroy/app"},
		"a secret named destroy to write":   {v2, Write, "secret/destroy", "secret/data/destroy"},
		"a secret below config to write":    {v2, Write, "secret/config/app", "secret/data/config/app"},
		"the list of what is below config":  {v2, List, "secret/config", "secret/metadata/config"},
		"versions to delete":                {v2, Write, "secret/delete/app", "secret/delete/app"},
		"a secret below data":               {v2, Read, "secret/data/data/app", "secret/data/data/app"},
		"a secret below one named like API": {v2, Read, "secret/app/data", "secret/data/app/data"},
	} {
		t.Run(name, func(t *testing.T) { must.Eq(t, test.want, test.mount.apiPath(test.op, test.path)) })
	}
}

func TestMountsAreRememberedByNamespaceAndForAWhile(t *testing.T) {
	var m mounts
	m.learn("", "secret/x", map[string]any{"path": "secret/", "type": "kv", "options": map[string]any{"version": "2"}})
	m.learn("team", "secret/x", map[string]any{"path": "secret/", "type": "kv"})
	found, ok := m.find("", "secret/a/b/c")
	must.True(t, ok)
	must.True(t, found.v2)
	found, ok = m.find("team", "secret")
	must.True(t, ok)
	must.False(t, found.v2)
	_, ok = m.find("", "secrets/a")
	must.False(t, ok)
	_, ok = m.find("", "a")
	must.False(t, ok)
	must.Eq(t, mount{}, m.learn("", "secret/x", map[string]any{"type": "kv"}))
	old := m.known["|secret/"]
	old.asked = old.asked.Add(-mountTTL)
	m.known["|secret/"] = old
	_, ok = m.find("", "secret/a")
	must.False(t, ok)
}

func TestMountIsLearntOnlyOfThePathThatWasAsked(t *testing.T) {
	for name, test := range map[string]struct{ namespace, asked, told, want string }{
		"a mount":                          {"", "secret/app", "secret/", "secret/"},
		"a mount with a slash in its name": {"", "team/secret/app", "team/secret/", "team/secret/"},
		"the mount itself":                 {"", "secret", "secret/", "secret/"},
		"an auth method":                   {"", "auth/ops/role/x/role-id", "ops/", "auth/ops/"},
		"a mount of another name":          {"", "secret/app", "kv/", ""},
		"a mount that only begins like it": {"", "secrets/app", "secret/", ""},
		"what is no mount":                 {"", "secret/app", "secret", ""},
		"everything":                       {"", "secret/app", "/", ""},
		"nothing":                          {"", "secret/app", "", ""},
		"a child of the root namespace":    {"", "frontend/secret/app", "frontend/secret/", "frontend/secret/"},
		"a child namespace": {"engineering", "frontend/secret/app", "engineering/frontend/secret/",
			"frontend/secret/"},
		"a child of a nested namespace": {"org/engineering/", "frontend/secret/app",
			"org/engineering/frontend/secret/", "frontend/secret/"},
		"a child namespace of the same name": {"team", "team/secret/app", "team/team/secret/", "team/secret/"},
		"a mount named like the namespace":   {"team", "team/app", "team/", "team/"},
		"an auth method in a child namespace": {"team", "frontend/auth/ops/role/x", "team/frontend/auth/ops/",
			"frontend/auth/ops/"},
		"another namespace": {"engineering", "frontend/secret/app", "marketing/frontend/secret/", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var m mounts
			must.Eq(t, test.want, m.learn(test.namespace, test.asked, map[string]any{"path": test.told, "type": "kv"}).path)
			must.Eq(t, test.want != "", len(m.known) == 1)
		})
	}
}

// FuzzAnswer reads any answer of Vault. Whatever it says, a secret is not asked for again and again, nor kept for ever
// when it ends, nor printed.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"lease_id":"database/creds/app/x","lease_duration":3600,"renewable":true,"data":{"username":"u","password":"hunter2"}}`,
		`{"data":{"data":{"k":"hunter2"},"metadata":{"version":1,"deletion_time":"","destroyed":false}}}`,
		`{"data":{"expiration":4102444800,"certificate":"hunter2"}}`,
		`{"data":{"ttl":60,"rotation_period":3600,"password":"hunter2"}}`,
		`{"data":{"ttl":1e999}}`, `{"lease_id":"x","lease_duration":9223372036854775807}`, `{"data":{"expiration":-1e300}}`,
		`{"warnings":["x"],"data":null}`, `{}`, `{"errors":["x"]}`, `{"data":{"keys":["a"]}}`, `{"data":{"data":null,"metadata":{"destroyed":true}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, err := api.ParseSecret(bytes.NewReader(body))
		if err != nil || empty(answer) {
			return
		}
		for _, op := range []Op{Read, Write, List} {
			for _, engine := range []string{"", "kv", "database"} {
				s := newSecret(Request{Op: op, Path: "p"}, "p", engine, answer, t0, 0, 0.5)
				due, renew := s.Kind.Due(s.Lease, 30*time.Second)
				must.False(t, !due.IsZero() && due.Before(t0.Add(time.Second/2)), must.Sprint(s.Kind, due))
				must.False(t, renew && s.Lease.ID == "")
				must.True(t, s.Lease.Ends.IsZero() || s.Lease.Ends.After(t0))
				must.True(t, s.SameContent(s))
				must.Eq(t, "[secret p]", fmt.Sprintf("%v", s))
			}
		}
	})
}

func TestCleanPath(t *testing.T) {
	must.Eq(t, "secret/app", clean("/secret/app/ "))
	must.True(t, strings.Contains(clean("a b/c"), " "))
}
