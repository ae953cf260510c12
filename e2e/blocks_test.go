package e2e

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// Secrets and certificates without a template.

// secret is a secret block (HCL) for a secret of the job's, kv/<namespace>/<job>/<secret>.
func secret(j job, name, of, more string) string {
	return fmt.Sprintf("secret %q {\n path = \"kv/data/default/%s/%s\"\n %s\n }\n", name, j.Name, of, more)
}

func TestSecretBlocksAreFilesInTheFormThatIsAskedFor(t *testing.T) {
	each(t, "secret-file", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		fields := map[string]any{"user": "web", "pass": "it's $5", "client": map[string]any{"secret": "x#y"},
			"blob": base64.StdEncoding.EncodeToString([]byte("\x00\xff"))}
		put(t, s, j, map[string]any{"user": "nobody", "pass": "", "blob": "", "client": map[string]any{"secret": ""}})
		put(t, s, j, fields)
		j.Args = []string{"show", "/secrets/app", "/local/old", "/secrets/blob.bin", "/secrets/app.env", "/secrets/app.yaml",
			"/alloc/app.properties", "/secrets/client"}
		j.Config = secret(j, "app", "config", "exclude = [\"b*\", \"client\"]\n "+onSignal) +
			secret(j, "client", "config", "key = \"client.secret\"\n "+onNoop) +
			secret(j, "old", "config", "version = 1\n key = \"user\"\n destination = \"local/old\"\n change_mode = \"noop\"") +
			secret(j, "blob", "config", "key = \"blob\"\n encoding = \"base64\"\n destination = "+
				"\"${NOMAD_SECRETS_DIR}/blob.bin\"\n "+onNoop) +
			secret(j, "env", "config", "include = [\"pass\", \"user\"]\n rename = { user = \"PGUSER\" }\n format = \"env\"\n "+
				"destination = \"secrets/app.env\"\n "+onNoop) +
			secret(j, "yaml", "config", "include = [\"user\"]\n rename {\n user = \"on\"\n }\n format = \"yaml\"\n "+
				"destination = \"/secrets/app.yaml\"\n "+onNoop) +
			secret(j, "java", "config", "include = [\"pass\"]\n format = \"properties\"\n destination = "+
				"\"alloc/app.properties\"\n perms = \"0640\"\n "+onNoop) +
			secret(j, "late", "late", "optional = true\n "+onSignal)
		alloc := run(t, s, j)
		for name, holds := range map[string]string{
			"/secrets/app": `{"pass":"it's $5","user":"web"}` + "\n", "/local/old": "nobody", "/secrets/blob.bin": "\x00\xff",
			"/secrets/app.env": "PGUSER=web\n" + `pass='it'"'"'s $5'` +
				"\n", "/secrets/app.yaml": "\"on\": \"web\"\n", "/alloc/app.properties": "pass=it's $5\n", "/secrets/client": "x#y",
		} {
			must.Eq(t, []string{holds}, shown(t, ctx, alloc, j, name, 1), must.Sprint(name,
				": the file is there before the process"))
		}
		info, err := os.Stat(alloc.Path(j.Name, "secrets/app"))
		must.NoError(t, err)
		must.Eq(t, 0o600, info.Mode().Perm())
		info, err = os.Stat(alloc.Path("alloc", "app.properties"))
		must.NoError(t, err)
		must.Eq(t, 0o640, info.Mode().Perm())
		_, err = os.Stat(alloc.Path(j.Name, "secrets/late"))
		must.ErrorIs(t, err, os.ErrNotExist)

		fields["user"] = "job"
		put(t, s, j, fields)
		must.Eq(t, `{"pass":"it's $5","user":"job"}`+"\n", shown(t, ctx, alloc, j, "/secrets/app", 2)[1])
		must.Eq(t, "nobody", shown(t, ctx, alloc, j, "/local/old", 2)[1], must.Sprint("that version does not change"))

		must.NoError(t, s.Vault.Put(ctx, "kv/data/default/"+j.Name+"/late", map[string]any{"data": map[string]any{"k": "v"}}))
		_, err = alloc.Event(ctx, j.Name, `Secrets changed: secret "late"; sent SIGHUP`)
		must.NoError(t, err)
		late, err := os.ReadFile(alloc.Path(j.Name, "secrets/late"))
		must.NoError(t, err)
		must.Eq(t, "{\"k\":\"v\"}\n", string(late))
		unnoticed(t, ctx, alloc, j)

		ended := stop(t, ctx, s, alloc, j)
		eventually(t, slack+time.Until(ended.Add(5*time.Second)), func() error {
			if left := rendered(t, alloc); len(left) > 0 {
				return fmt.Errorf("files are left: %v", left)
			}
			return nil
		})
	})
}

func TestSecretBlocksAreEnvironmentAndNoFile(t *testing.T) {
	const ttl = 20 * time.Second
	each(t, "secret-env", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, ttl, ttl))
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, j.Name),
			nil))
		j.Args = []string{"db"}
		j.Task = fmt.Sprintf("env {\n PGHOST = \"127.0.0.1\"\n PGPORT = %d\n }\n", s.Postgres.Port)
		j.Config = fmt.Sprintf("vault {\n role = %q\n }\nsecret \"db\" {\n path = \"database/creds/%s\"\n env = true\n "+
			"splay = \"0s\"\n"+
			" rename = {\n username = \"PGUSER\"\n password = \"PGPASSWORD\"\n }\n }\n", j.Name, j.Name)
		alloc := run(t, s, j)
		// What it connects as twice are two users of the database: the lease cannot be renewed, and is replaced before it
		// ends.
		names := users(t, ctx, alloc, j, 2)
		must.NotEq(t, names[0], names[1])
		message, err := alloc.Event(ctx, j.Name, "Secrets changed")
		must.NoError(t, err)
		must.StrContains(t, message, `secret "db"; restarted by `+j.Driver)
		must.NoError(t, eachFile(alloc.Path(j.Name, ""), func(name string, content []byte) {
			must.False(t, strings.Contains(string(content), "PGPASSWORD"), must.Sprint(name))
		}))
		must.SliceEmpty(t, rendered(t, alloc))
		unnoticed(t, ctx, alloc, j)
	})
}

func TestSecretBlockAsksForWhatATemplateAsksForOnce(t *testing.T) {
	each(t, "secret-one", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, time.Hour, time.Hour))
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, j.Name),
			nil))
		j.Args = []string{"show", "/secrets/block", "/secrets/template"}
		j.Config = fmt.Sprintf("vault {\n role = %[1]q\n }\nsecret \"block\" {\n path = \"database/creds/%[1]s\"\n key = "+
			"\"username\"\n }\n", j.Name) +
			file("secrets/template", `{{ with secret "database/creds/`+j.Name+`" }}{{ .Data.username }}{{ end }}`, onNoop)
		alloc := run(t, s, j)
		must.Eq(t, shown(t, ctx, alloc, j, "/secrets/block", 1), shown(t, ctx, alloc, j, "/secrets/template", 1))
		must.RegexMatch(t, regexp.MustCompile(`^v-`), shown(t, ctx, alloc, j, "/secrets/block", 1)[0])
		must.Eq(t, 1, watched(s, j).granted(t, "database/creds/"+j.Name))
	})
}

// pkiFor mounts a PKI engine of the job's name, with the role "app" and a Vault role that may use it.
func pkiFor(t *testing.T, s *stack.Stack, j job, ttl time.Duration, leased bool) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, j.Name, &vault.MountInput{Type: "pki"}))
	must.NoError(t, s.Vault.Put(ctx, j.Name+"/root/generate/internal", map[string]any{"common_name": "root", "ttl": "24h",
		"key_type": "ec"}))
	must.NoError(t, s.Vault.Put(ctx, j.Name+"/roles/app", map[string]any{"allow_any_name": true, "allow_ip_sans": true,
		"allowed_uri_sans": "spiffe://*",
		"ttl":              ttl.String(), "max_ttl": "1h", "key_type": "ec", "key_bits": 256, "generate_lease": leased}))
	must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "%[1]s/issue/app" { capabilities = ["update"] }
		path "%[1]s/revoke-with-key" { capabilities = ["update"] } %[2]s`, j.Name, revokes), nil))
}

// certificatesRevoked waits until Vault has revoked that many of the job's certificates.
func certificatesRevoked(t *testing.T, ctx context.Context, s *stack.Stack, j job, wanted int) {
	t.Helper()
	eventually(t, 5*time.Second+slack, func() error {
		list, err := s.Vault.API.Logical().ListWithContext(ctx, j.Name+"/certs/revoked")
		if err != nil {
			return err
		}
		revoked := 0
		if list != nil {
			revoked = len(list.Data["keys"].([]any))
		}
		if revoked != wanted {
			return fmt.Errorf("%d certificates are revoked, not %d", revoked, wanted)
		}
		return nil
	})
}

// certificate is a pki block that asks for each file.
func certificate(j job, more string) string {
	return fmt.Sprintf("vault {\n role = %[1]q\n }\npki \"web\" {\n path = \"%[1]s/issue/app\"\n common_name = "+
		"\"a.example\"\n alt_names = [\"b.example\", \"c.example\"]\n"+
		" ip_sans = [\"10.0.0.1\"]\n uri_sans = [\"spiffe://example/web\"]\n args = {\n private_key_format = \"pkcs8\"\n }\n"+
		" cert_file = \"secrets/tls.crt\"\n key_file = \"secrets/tls.key\"\n ca_file = \"local/ca.crt\"\n chain_file = "+
		"\"secrets/chain.crt\"\n bundle_file = \"secrets/bundle.pem\"\n"+
		" splay = \"0s\"\n %[2]s\n }\n", j.Name, more)
}

var certificateFiles = []string{"/secrets/tls.crt", "/secrets/tls.key", "/local/ca.crt", "/secrets/chain.crt",
	"/secrets/bundle.pem"}

// generation returns the certificate that the task has printed the n-th time, after having checked that all its files
// fit.
func generation(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, n int) *x509.Certificate {
	t.Helper()
	files := map[string]string{}
	for _, name := range certificateFiles {
		files[name] = shown(t, ctx, alloc, j, name, n)[n-1]
	}
	cert, key, ca := files["/secrets/tls.crt"], files["/secrets/tls.key"], files["/local/ca.crt"]
	leaf := pair(t, cert, key)
	must.StrHasPrefix(t, "-----BEGIN PRIVATE KEY-----", key, must.Sprint("pkcs8"))
	must.Eq(t, cert+ca, files["/secrets/chain.crt"])
	must.Eq(t, key+cert+ca, files["/secrets/bundle.pem"])
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM([]byte(ca)))
	for _, name := range []string{"a.example", "b.example", "c.example", "10.0.0.1"} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: leaf.NotBefore.Add(time.Second)})
		must.NoError(t, err, must.Sprint(name))
	}
	must.Eq(t, "spiffe://example/web", leaf.URIs[0].String())
	return leaf
}

func TestPKIBlockIsReplacedBeforeItEndsAndAllItsFilesFitAndIsRevoked(t *testing.T) {
	each(t, "pki-block", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		const ttl = time.Minute
		pkiFor(t, s, j, ttl, false)
		j.Task = `user = "nobody"`
		j.Args = append([]string{"show"}, certificateFiles...)
		j.Config = certificate(j, "renew_before = \"30s\"\n revoke = true\n change_mode = \"signal\"\n change_signal = "+
			"\"SIGHUP\"")
		alloc := run(t, s, j)
		first := generation(t, ctx, alloc, j, 1)
		for name, mode := range map[string]os.FileMode{"secrets/tls.key": 0o600, "secrets/bundle.pem": 0o600,
			"secrets/tls.crt": 0o644, "secrets/chain.crt": 0o644} {
			info, err := os.Stat(alloc.Path(j.Name, name))
			must.NoError(t, err)
			must.Eq(t, mode, info.Mode().Perm(), must.Sprint(name))
			must.Eq(t, 65534, info.Sys().(*syscall.Stat_t).Uid, must.Sprint(name, ": nobody's"))
		}
		second := generation(t, ctx, alloc, j, 2)
		must.NotEq(t, first.SerialNumber, second.SerialNumber)
		issued := watched(s, j).answered(t, j.Name+"/issue/app", true)
		must.SliceLen(t, 2, issued, must.Sprint("five files, one certificate at a time"))
		must.Between(t, ttl/2-stretched(slack), first.NotAfter.Sub(issued[1]), ttl/2+stretched(slack))
		message, err := alloc.Event(ctx, j.Name, "Secrets changed")
		must.NoError(t, err)
		must.StrContains(t, message, `pki "web"; sent SIGHUP`)
		unnoticed(t, ctx, alloc, j)

		stop(t, ctx, s, alloc, j)
		certificatesRevoked(t, ctx, s, j, 2)
	})
}

func TestPKIBlockIsKeptOverARestartAndRevokedWithItsLease(t *testing.T) {
	each(t, "pki-lease", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		pkiFor(t, s, j, time.Hour, true)
		j.Args = append([]string{"show"}, certificateFiles...)
		j.Config = certificate(j, "")
		alloc := run(t, s, j)
		first := generation(t, ctx, alloc, j, 1)
		must.NoError(t, alloc.Restart(ctx, j.Name))
		must.Eq(t, first.SerialNumber, generation(t, ctx, alloc, j, 2).SerialNumber)
		must.Eq(t, 1, watched(s, j).granted(t, j.Name+"/issue/app"))

		stop(t, ctx, s, alloc, j)
		certificatesRevoked(t, ctx, s, j, 1)
	})
}

// TestPKIBlockIsOneCertificateWhateverRestarts: the plugin, the agent or the process. Vault issues a second one when
// the first nears its end. Both are revoked although the plugin dies when the node is drained.
func TestPKIBlockIsOneCertificateWhateverRestarts(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Agent: patient})
	must.NoError(t, audit(t.Context(), s))
	ctx := within(t, 5*time.Minute)
	const ttl, before = 3 * time.Minute, 80 * time.Second
	var all []*certified
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		all = append(all, certify(t, ctx, s, driver, ttl, before))
	}

	killPlugins(t, s)
	for _, c := range all {
		c.goesOn(t, ctx, s, 1)
	}
	must.NoError(t, s.Nomad.Stop())
	must.NoError(t, s.Nomad.Start(ctx))
	for _, c := range all {
		c.goesOn(t, ctx, s, 2)
	}
	for _, c := range all {
		must.NoError(t, c.alloc.Restart(ctx, c.job.Name))
		must.Eq(t, c.first.SerialNumber, generation(t, ctx, c.alloc, c.job, 2).SerialNumber)
		must.One(t, watched(s, c.job).granted(t, c.job.Name+"/issue/app"))
	}
	for _, c := range all {
		second := generation(t, ctx, c.alloc, c.job, 3)
		must.NotEq(t, c.first.SerialNumber, second.SerialNumber)
		must.SliceLen(t, 1, changed(t, ctx, c.alloc, c.job, 1))
		must.Eq(t, 1, strings.Count(whole(t, ctx, c.alloc, c.job, "signal hangup"), "signal hangup"))
		issued := watched(s, c.job).answered(t, c.job.Name+"/issue/app", true)
		must.SliceLen(t, 2, issued)
		must.Between(t, before-stretched(slack), c.first.NotAfter.Sub(issued[1]), before*11/10+stretched(slack))
	}

	killPlugins(t, s)
	drain(t, ctx, s)
	for _, c := range all {
		_, err := c.alloc.Ended(ctx)
		must.NoError(t, err)
		eventually(t, time.Minute, func() error { return leftBehind(t, s, c.job.Name, c.alloc) })
		certificatesRevoked(t, ctx, s, c.job, 2)
	}
}

// certified is a task with a certificate, which it prints when it starts and when it is told of a new one. It has a
// lease, or its block revokes it.
type certified struct {
	job    job
	alloc  *stack.Alloc
	first  *x509.Certificate
	before string
}

func certify(t *testing.T, ctx context.Context, s *stack.Stack, driver string, ttl, before time.Duration) *certified {
	t.Helper()
	j := job{Name: "pki-" + driver[len("vault-"):], Driver: driver, Args: append([]string{"show"}, certificateFiles...)}
	pkiFor(t, s, j, ttl, !j.Docker())
	j.Config = certificate(j, fmt.Sprintf("renew_before = %q\n revoke = %t\n change_mode = \"signal\"\n change_signal "+
		"= \"SIGHUP\"", before, j.Docker()))
	c := &certified{job: j, alloc: run(t, s, j)}
	c.first = generation(t, ctx, c.alloc, j, 1)
	c.before = c.now(t)
	return c
}

// now says what a restart of plugin or agent must leave as it is.
func (c *certified) now(t *testing.T) string {
	t.Helper()
	text := fmt.Sprint("process ", application(t, c.alloc))
	for _, name := range certificateFiles {
		info, err := os.Stat(c.alloc.Path(c.job.Name, name))
		must.NoError(t, err)
		text += fmt.Sprintf(", %s %d of %v", name, info.Sys().(*syscall.Stat_t).Ino, info.ModTime())
	}
	return text
}

// goesOn checks that the task is as it was, after it was taken over that many times.
func (c *certified) goesOn(t *testing.T, ctx context.Context, s *stack.Stack, times int) {
	t.Helper()
	said, err := c.alloc.Log(ctx, c.job.Name, "stderr", "taken over after the end of the plugin before, .*", times)
	must.NoError(t, err)
	must.StrContains(t, said[times-1], `vault "default" token`)
	must.Eq(t, c.before, c.now(t))
	must.One(t, watched(s, c.job).granted(t, c.job.Name+"/issue/app"))
	unnoticed(t, ctx, c.alloc, c.job)
}

// drain has Nomad move every task off the node.
func drain(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	nodes, _, err := s.Nomad.API.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	must.NoError(t, err)
	_, err = s.Nomad.API.Nodes().UpdateDrain(nodes[0].ID, &nomad.DrainSpec{Deadline: time.Minute}, false,
		(&nomad.WriteOptions{}).WithContext(ctx))
	must.NoError(t, err)
}
