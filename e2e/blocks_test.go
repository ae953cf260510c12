package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// Secrets without a template.

// secret is a secret block (HCL) for a secret of the job's, kv/<namespace>/<job>/<secret>.
func secret(j job, name, of, more string) string {
	return fmt.Sprintf("secret %q {\n path = \"kv/data/default/%s/%s\"\n %s\n }\n", name, j.Name, of, more)
}

func TestSecretBlocksAreFilesInTheFormThatIsAskedFor(t *testing.T) {
	each(t, "secret-file", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		fields := map[string]any{"user": "web", "pass": "it's $5", "blob": base64.StdEncoding.EncodeToString([]byte("\x00\xff"))}
		put(t, s, j, map[string]any{"user": "nobody", "pass": "", "blob": ""})
		put(t, s, j, fields)
		j.Args = []string{"show", "/secrets/app", "/local/old", "/secrets/blob.bin", "/secrets/app.env", "/secrets/app.yaml", "/alloc/app.properties"}
		j.Config = secret(j, "app", "config", "exclude = [\"b*\"]\n "+onSignal) +
			secret(j, "old", "config", "version = 1\n key = \"user\"\n destination = \"local/old\"\n change_mode = \"noop\"") +
			secret(j, "blob", "config", "key = \"blob\"\n encoding = \"base64\"\n destination = \"${NOMAD_SECRETS_DIR}/blob.bin\"\n "+onNoop) +
			secret(j, "env", "config", "include = [\"pass\", \"user\"]\n rename = { user = \"PGUSER\" }\n format = \"env\"\n destination = \"secrets/app.env\"\n "+onNoop) +
			secret(j, "yaml", "config", "include = [\"user\"]\n rename {\n user = \"on\"\n }\n format = \"yaml\"\n destination = \"/secrets/app.yaml\"\n "+onNoop) +
			secret(j, "java", "config", "include = [\"pass\"]\n format = \"properties\"\n destination = \"alloc/app.properties\"\n perms = \"0640\"\n "+onNoop) +
			secret(j, "late", "late", "optional = true\n "+onSignal)
		alloc := run(t, s, j)
		for name, holds := range map[string]string{
			"/secrets/app": `{"pass":"it's $5","user":"web"}` + "\n", "/local/old": "nobody", "/secrets/blob.bin": "\x00\xff",
			"/secrets/app.env": "PGUSER=web\n" + `pass='it'"'"'s $5'` + "\n", "/secrets/app.yaml": "\"on\": \"web\"\n", "/alloc/app.properties": "pass=it's $5\n",
		} {
			must.Eq(t, []string{holds}, shown(t, ctx, alloc, j, name, 1), must.Sprint(name, ": the file is there before the process"))
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
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, j.Name), nil))
		j.Args = []string{"db"}
		j.Task = fmt.Sprintf("env {\n PGHOST = \"127.0.0.1\"\n PGPORT = %d\n }\n", s.Postgres.Port)
		j.Config = fmt.Sprintf("vault {\n role = %q\n }\nsecret \"db\" {\n path = \"database/creds/%s\"\n env = true\n splay = \"0s\"\n"+
			" rename = {\n username = \"PGUSER\"\n password = \"PGPASSWORD\"\n }\n }\n", j.Name, j.Name)
		alloc := run(t, s, j)
		// What it connects as twice are two users of the database: the lease cannot be renewed, and is replaced before it ends.
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
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, j.Name), nil))
		j.Args = []string{"show", "/secrets/block", "/secrets/template"}
		j.Config = fmt.Sprintf("vault {\n role = %[1]q\n }\nsecret \"block\" {\n path = \"database/creds/%[1]s\"\n key = \"username\"\n }\n", j.Name) +
			file("secrets/template", `{{ with secret "database/creds/`+j.Name+`" }}{{ .Data.username }}{{ end }}`, onNoop)
		alloc := run(t, s, j)
		must.Eq(t, shown(t, ctx, alloc, j, "/secrets/block", 1), shown(t, ctx, alloc, j, "/secrets/template", 1))
		must.RegexMatch(t, regexp.MustCompile(`^v-`), shown(t, ctx, alloc, j, "/secrets/block", 1)[0])
		must.Eq(t, 1, watched(s, j).granted(t, "database/creds/"+j.Name))
	})
}
