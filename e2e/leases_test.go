package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// What becomes of leases and tokens that end, or that an operator takes away, while PostgreSQL knows whether what is
// left is good.

func TestStaticRoleFollowsItsRotations(t *testing.T) {
	const period, rotations = 10 * time.Second, 2
	each(t, "static", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		must.NoError(t, s.Postgres.Add(ctx, j.Name))
		must.NoError(t, s.Vault.Put(ctx, "database/static-roles/"+j.Name, map[string]any{
			"db_name": "postgres", "username": j.Name, "rotation_period": period.String()}))
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/static-creds/%s" { capabilities = ["read"] }`,
			j.Name), nil))
		j.Args = []string{"show", "/secrets/password"}
		j.Config = fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) +
			file("secrets/password", fmt.Sprintf(`{{ with secret "database/static-creds/%s" }}{{ .Data.password }}{{ end }}`,
				j.Name), onSignal)
		alloc := run(t, s, j)
		seen := map[string]bool{}
		for n := range 1 + rotations {
			password := shown(t, ctx, alloc, j, "/secrets/password", n+1)[n]
			must.False(t, seen[password], must.Sprint("each change is another password"))
			seen[password] = true
			must.SliceLen(t, n, changed(t, ctx, alloc, j, n), must.Sprint("a rotation is one change"))
			// The next rotation may come meanwhile. What is in the file is good again before long.
			eventually(t, period+slack, func() error {
				now, err := os.ReadFile(alloc.Path(j.Name, "secrets/password"))
				if err != nil {
					return err
				}
				db, err := s.Postgres.Connect(j.Name, string(now))
				if err != nil {
					return err
				}
				defer db.Close()
				return db.PingContext(ctx)
			})
		}
		unnoticed(t, ctx, alloc, j)
	})
}

func TestLeaseIsRenewedUntilItsMaximumAndReplacedBefore(t *testing.T) {
	each(t, "most", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 2*time.Minute)
		w := watched(s, j)
		j = withDatabase(t, s, j, time.Hour, "", onSignal)
		must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, 15*time.Second, 30*time.Second))
		j.Args = []string{"busy", "/secrets/db.env"} // It ends at the first connection that fails.
		alloc := run(t, s, j)
		names := users(t, ctx, alloc, j, 2)
		must.NotEq(t, names[0], names[1])
		must.Between(t, 1, w.granted(t, "sys/leases/renew"), 3, must.Sprint("no more where they have begun to give less"))
		must.Eq(t, 2, w.granted(t, "database/creds/"+j.Name))
		must.SliceLen(t, 1, changed(t, ctx, alloc, j, 1))
		eventually(t, time.Minute, func() error { return gone(ctx, s, names[0]) }) // And the process has not noticed.
		log, err := alloc.Logs(ctx, j.Name, "stdout")
		must.NoError(t, err)
		must.StrNotContains(t, log, "error")
		unnoticed(t, ctx, alloc, j)
	})
}

// TestLeaseThatIsRevokedByTheOperatorIsReplacedOnce: the driver finds that out when it next renews the lease.
func TestLeaseThatIsRevokedByTheOperatorIsReplacedOnce(t *testing.T) {
	t.Parallel()
	for name, revoke := range map[string]func(context.Context, *stack.Stack, string) error{
		"alone": func(ctx context.Context, s *stack.Stack, role string) error {
			leases, err := s.Vault.Leases(ctx, role)
			if err != nil || len(leases) != 1 {
				return fmt.Errorf("leases: %v (%w)", leases, err)
			}
			return s.Vault.API.Sys().RevokeWithContext(ctx, "database/creds/"+role+"/"+leases[0])
		},
		"with its prefix": func(ctx context.Context, s *stack.Stack, role string) error {
			return s.Vault.API.Sys().RevokePrefixWithContext(ctx, "database/creds/"+role)
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, "taken-"+name[:4], func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				w := watched(s, j)
				j = withDatabase(t, s, j, time.Hour, revokes, onSignal)
				must.NoError(t, s.Vault.DatabaseRole(ctx, j.Name, 10*time.Second, time.Hour))
				j.Args = []string{"db", "/secrets/db.env"}
				alloc := run(t, s, j)
				old := users(t, ctx, alloc, j, 1)[0]
				tokens := tokensOf(t, s, j.Name)
				must.NoError(t, revoke(ctx, s, j.Name))
				must.NoError(t, gone(ctx, s, old))
				must.NotEq(t, old, users(t, ctx, alloc, j, 2)[1])
				eventually(t, time.Minute, func() error { return renewed(ctx, s, j) }) // All is as it was before.
				must.Eq(t, 2, w.granted(t, "database/creds/"+j.Name))
				must.SliceLen(t, 1, changed(t, ctx, alloc, j, 1))
				must.Eq(t, 1, strings.Count(whole(t, ctx, alloc, j, "connected as "+users(t, ctx, alloc, j, 2)[1]), "signal"))
				must.Eq(t, tokens, tokensOf(t, s, j.Name))
				must.Zero(t, events(t, ctx, alloc, j, "Vault: "), must.Sprint("no trouble"))
				unnoticed(t, ctx, alloc, j)
			})
		})
	}
}

// TestEnginesThatAreMountedAnew: to Vault they are others with nothing in them, and the leases of the old ones have
// ended with them.
func TestEnginesThatAreMountedAnew(t *testing.T) {
	each(t, "anew", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 3*time.Minute)
		kv, db := "kv-"+j.Name, "db-"+j.Name
		mount := func(color string) {
			t.Helper()
			must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, kv, &vault.MountInput{Type: "kv",
				Options: map[string]string{"version": "2"}}))
			must.NoError(t, s.Vault.API.Sys().MountWithContext(ctx, db, &vault.MountInput{Type: "database"}))
			must.NoError(t, s.Vault.Put(ctx, db+"/config/postgres", s.Postgres.Config()))
			must.NoError(t, s.Vault.DatabaseRoleAt(ctx, db, "app", 10*time.Second, time.Hour))
			eventually(t, slack, func() error { // A new KV engine is not ready at once.
				return s.Vault.Put(ctx, kv+"/data/app", map[string]any{"data": map[string]any{"color": color}})
			})
		}
		mount("green")
		must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "%s/data/app" { capabilities = ["read"] }
			path "%s/creds/app" { capabilities = ["read"] }`, kv, db), nil))
		j.Args = []string{"show", "/secrets/color", "/secrets/db.env"}
		j.Config = fmt.Sprintf("vault {\n role = %q\n }\n", j.Name) +
			file("secrets/color", fmt.Sprintf(`{{ with secret "%s/data/app" }}{{ .Data.data.color }}{{ end }}`, kv), onSignal) +
			file("secrets/db.env", strings.ReplaceAll(credentials(j), "database/creds/"+j.Name, db+"/creds/app"), onSignal)
		alloc := run(t, s, j)
		must.Eq(t, "green", shown(t, ctx, alloc, j, "/secrets/color", 1)[0])
		old := userIn(t, shown(t, ctx, alloc, j, "/secrets/db.env", 1)[0])
		before := untouched(t, ctx, alloc, j, "secrets/color", "secrets/db.env")

		for _, engine := range []string{kv, db} {
			must.NoError(t, s.Vault.API.Sys().UnmountWithContext(ctx, engine))
		}
		must.NoError(t, gone(ctx, s, old))
		troubles := []string{"Vault: read " + kv + "/data/app", "Vault: read " + db + "/creds/app"}
		for _, trouble := range troubles {
			_, err := alloc.Event(ctx, j.Name, trouble+": not found in Vault")
			must.NoError(t, err)
		}
		must.Eq(t, len(troubles), events(t, ctx, alloc, j, "Vault: "),
			must.Sprint("although the first has been asked for again and again"))
		must.Eq(t, before, untouched(t, ctx, alloc, j, "secrets/color", "secrets/db.env"))

		mount("blue")
		eventually(t, time.Minute, func() error {
			log, err := alloc.Logs(ctx, j.Name, "stdout")
			if err != nil {
				return err
			}
			_, last, _ := strings.Cut(log[strings.LastIndex(log, "/secrets/color: "):], "PGUSER=")
			if !strings.Contains(log, `/secrets/color: "blue"`) || last == "" || strings.HasPrefix(last, old) {
				return errors.New("the process does not have both yet")
			}
			return nil
		})
		env := inTask(t, alloc, "/secrets/db.env")
		must.Error(t, gone(ctx, s, userIn(t, env)), must.Sprint("the new user is there"))
		must.LessEq(t, 2, len(changes(t, ctx, alloc, j)), must.Sprint("one for each engine, or one for both"))
		must.Len(t, 1, tokensOf(t, s, j.Name))
		unnoticed(t, ctx, alloc, j)
	})
}

// TestTokenThatEndsIsReplacedOnce, with all leases that end with it: one login, one generation, one action.
func TestTokenThatEndsIsReplacedOnce(t *testing.T) {
	t.Parallel()
	revoke := func(t *testing.T, s *stack.Stack, j job) {
		t.Helper()
		tokens := tokensOf(t, s, j.Name)
		must.Len(t, 1, tokens)
		must.NoError(t, s.Vault.API.Auth().Token().RevokeAccessorWithContext(t.Context(), tokens[0]))
	}
	for name, test := range map[string]struct {
		role map[string]any // as it differs from nomad-workloads
		take func(t *testing.T, s *stack.Stack, j job)
		left int // tokens that have an accessor
	}{
		"revoked":          {take: revoke, left: 1},
		"explicit_max_ttl": {role: map[string]any{"token_explicit_max_ttl": "20s"}, left: 1},
		"role turns batch": {take: func(t *testing.T, s *stack.Stack, j job) {
			must.NoError(t, s.Vault.Put(t.Context(), "auth/jwt-nomad/role/"+j.Name, map[string]any{"role_type": "jwt",
				"token_type": "batch", "token_period": 0}))
			revoke(t, s, j)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, "token-"+strings.ReplaceAll(strings.Fields(name)[0], "_", "-"), func(t *testing.T, s *stack.Stack, j job) {
				ctx := within(t, 2*time.Minute)
				w := watched(s, j)
				put(t, s, j, map[string]any{"color": "green"})
				policy := fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] } %s`, j.Name, revokes)
				j = withDatabase(t, s, j, time.Hour, policy, onSignal)
				must.NoError(t, s.Vault.Role(ctx, j.Name, fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] } %s`,
					j.Name, policy), test.role))
				j.Config += file("secrets/color", inJob(j, "color"), onSignal)
				j.Args = []string{"db", "/secrets/db.env"}
				alloc := run(t, s, j)
				old := users(t, ctx, alloc, j, 1)[0]
				if test.take != nil {
					test.take(t, s, j)
				}
				now := users(t, ctx, alloc, j, 2)[1]
				must.NotEq(t, old, now)
				must.SliceLen(t, 1, changed(t, ctx, alloc, j, 1))
				must.Eq(t, 1, strings.Count(whole(t, ctx, alloc, j, "connected as "+now), "signal"))
				must.Eq(t, 2, w.granted(t, "auth/jwt-nomad/login"))
				must.Eq(t, 2, w.granted(t, "database/creds/"+j.Name))
				eventually(t, time.Minute, func() error {
					if tokens := tokensOf(t, s, j.Name); len(tokens) != test.left {
						return fmt.Errorf("tokens %v, not %d", tokens, test.left)
					}
					return gone(ctx, s, old)
				})
				put(t, s, j, map[string]any{"color": "blue"}) // It goes on with the new token.
				users(t, ctx, alloc, j, 3)
				must.Eq(t, "blue", inTask(t, alloc, "/secrets/color"))
				must.Zero(t, events(t, ctx, alloc, j, "Vault: "), must.Sprint("no trouble"))
				unnoticed(t, ctx, alloc, j)
			})
		})
	}
}

// TestTokenThatEndsAfterNomadsKeyWasRotated: the task logs in with an identity that is signed by a key which Vault has
// not seen yet.
func TestTokenThatEndsAfterNomadsKeyWasRotated(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Plugins: []stack.Plugin{stack.Wrap("exec", "vault-exec"),
		stack.Wrap("docker", "vault-docker")}})
	must.NoError(t, audit(t.Context(), s))
	ctx := within(t, 2*time.Minute)
	var jobs []job
	var allocs []*stack.Alloc
	for _, driver := range []string{"vault-exec", "vault-docker"} {
		j := job{Name: "key-" + driver[len("vault-"):], Driver: driver, Args: []string{"show", "/secrets/color"}}
		put(t, s, j, map[string]any{"color": "green"})
		j.Config = "vault {\n file = true\n change_mode = \"signal\"\n change_signal = \"SIGHUP\"\n }\n" +
			file("secrets/color", inJob(j, "color"), onNoop)
		_, alloc := register(t, s, strings.Replace(j.spec(), `ttl  = "1h"`, `ttl = "30s"`, 1))
		shown(t, ctx, alloc, j, "/secrets/color", 1)
		jobs, allocs = append(jobs, j), append(allocs, alloc)
	}
	old := signedBy(t, allocs[0], jobs[0])
	_, _, err := s.Nomad.API.Keyring().Rotate(nil, (&nomad.WriteOptions{}).WithContext(ctx))
	must.NoError(t, err)
	for i, j := range jobs {
		eventually(t, time.Minute, func() error {
			if signedBy(t, allocs[i], j) == old {
				return errors.New("Nomad has not renewed the identity yet")
			}
			return nil
		})
		token := find(t, allocs[i], j, "secrets/vault_token", `.+`)
		must.NoError(t, s.Vault.API.Auth().Token().RevokeTreeWithContext(ctx, token))
		shown(t, ctx, allocs[i], j, "/secrets/color", 2)
		must.NotEq(t, token, find(t, allocs[i], j, "secrets/vault_token", `.+`))
		ofJob(t, ctx, s, j, find(t, allocs[i], j, "secrets/vault_token", `.+`))
		must.Eq(t, 2, watched(s, j).granted(t, "auth/jwt-nomad/login"))
		must.SliceLen(t, 1, changed(t, ctx, allocs[i], j, 1))
		must.Eq(t, 1, strings.Count(whole(t, ctx, allocs[i], j, `/secrets/color: "green"`), "signal"))
		unnoticed(t, ctx, allocs[i], j)
	}
}

// signedBy is the key of Nomad's that has signed the task's identity (RFC 7515, "kid"); empty while the file is being
// written.
func signedBy(t *testing.T, alloc *stack.Alloc, j job) string {
	t.Helper()
	jwt, err := os.ReadFile(alloc.Path(j.Name, "secrets/nomad_vault.jwt"))
	must.NoError(t, err)
	head, _, _ := strings.Cut(string(jwt), ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	must.NoError(t, err)
	var header struct{ Kid string }
	if len(text) > 0 {
		must.NoError(t, json.Unmarshal(text, &header))
	}
	return header.Kid
}
