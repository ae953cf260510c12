package httpdoor

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/internal/need"
)

// realVault starts the Vault of VAULT_BIN, or of the repository's bin folder, and returns it, its address and its root.
func realVault(t testing.TB) (binary, address string, root *vaultapi.Client) {
	t.Helper()
	if binary = os.Getenv("VAULT_BIN"); binary == "" {
		binary, _ = filepath.Abs("../../../bin/vault")
	}
	if _, err := os.Stat(binary); err != nil {
		need.Skip(t, "a Vault: set VAULT_BIN, or build bin/vault")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	must.NoError(t, l.Close())
	cmd := exec.Command(binary, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root",
		"-dev-listen-address="+l.Addr().String())
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address = "http://" + l.Addr().String()
	root = clientOf(t, address, "root")
	must.Wait(t, wait.InitialSuccess(wait.ErrorFunc(func() error {
		_, err := root.Sys().Health()
		return err
	}), wait.Timeout(30*time.Second), wait.Gap(50*time.Millisecond)))
	return binary, address, root
}

func clientOf(t testing.TB, address, token string) *vaultapi.Client {
	conf := vaultapi.DefaultConfig()
	must.NoError(t, conf.Error)
	conf.Address, conf.MaxRetries = address, 0
	c, err := vaultapi.NewClient(conf)
	must.NoError(t, err)
	c.SetToken(token)
	return c
}

// TestClientsOfARealVault: the library and the command work through a door unchanged, without the token.
func TestClientsOfARealVault(t *testing.T) {
	binary, address, root := realVault(t)
	must.NoError(t, root.Sys().PutPolicy("app", `path "secret/*" { capabilities = ["create","read","update","patch","list"] }`))
	secretOf := func() *vaultapi.Secret {
		made, err := root.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"app"}, TTL: "1h"})
		must.NoError(t, err)
		return made
	}
	token := secretOf().Auth.ClientToken
	spec := specOf("")
	spec.Secret = "~5f3a"
	spec.HTTP, spec.Vault = nil, &door.Vault{Address: address, Paths: []string{"secret/data/*", "secret/metadata/*"}}
	b := serve(t, spec)
	b.door.Use(&door.Credential{Generation: 1, Token: token, ReadAt: time.Now()})
	b.plugin.reread = func(uint64) error {
		b.door.Use(&door.Credential{Generation: 2, Token: secretOf().Auth.ClientToken, ReadAt: time.Now()})
		return nil
	}
	for name, placeholder := range map[string]string{"without a token": "", "with a placeholder": Placeholder} {
		t.Run(name, func(t *testing.T) { useVault(t, root, clientOf(t, "unix://"+b.socket, placeholder), token) })
	}
	t.Run("over TCP", func(t *testing.T) {
		useVault(t, root, clientOf(t, "http://"+b.listen("tcp", "127.0.0.1:0").String()+"/~5f3a", Placeholder), token)
	})
	t.Run("the command", func(t *testing.T) { useCommand(t, binary, b.socket) })
	t.Run("the token is revoked", func(t *testing.T) {
		must.NoError(t, root.Auth().Token().RevokeTree(token))
		_, err := clientOf(t, "unix://"+b.socket, "").KVv2("secret").Get(t.Context(), "app")
		must.NoError(t, err)
		must.Eq(t, 1, b.plugin.timesAsked())
		must.Eq(t, 2, b.last(1).Generation)
	})
}

func useVault(t *testing.T, root, c *vaultapi.Client, token string) {
	ctx := t.Context()
	kv := c.KVv2("secret")
	_, err := kv.Put(ctx, "app", map[string]any{"a": "1"})
	must.NoError(t, err)
	_, err = kv.Patch(ctx, "app", map[string]any{"b": "2"})
	must.NoError(t, err)
	got, err := kv.Get(ctx, "app")
	must.NoError(t, err)
	must.Eq(t, map[string]any{"a": "1", "b": "2"}, got.Data)
	listed, err := c.Logical().List("secret/metadata/")
	must.NoError(t, err)
	must.Eq(t, []any{"app"}, listed.Data["keys"].([]any))

	self, err := c.Auth().Token().LookupSelf()
	must.NoError(t, err)
	must.Eq(t, strings.Repeat("*", len(token)), self.Data["id"].(string))
	renewed, err := c.Auth().Token().RenewSelf(0)
	must.NoError(t, err)
	must.Eq(t, strings.Repeat("*", len(token)), renewed.Auth.ClientToken)

	wrapping := root.WithRequestCallbacks(func(r *vaultapi.Request) { r.WrapTTL = "60s" })
	wrapped, err := wrapping.Logical().Read("secret/data/app")
	must.NoError(t, err)
	unwrapped, err := c.Logical().Unwrap(wrapped.WrapInfo.Token)
	must.NoError(t, err)
	must.Eq(t, map[string]any{"a": "1", "b": "2"}, unwrapped.Data["data"].(map[string]any))

	_, err = c.Logical().Read("sys/mounts")
	must.ErrorContains(t, err, "the path is not among the door's paths")
	_, err = c.Auth().Token().Create(&vaultapi.TokenCreateRequest{})
	must.ErrorContains(t, err, "403")
	must.Error(t, c.Auth().Token().RevokeSelf(""))
}

func useCommand(t *testing.T, binary, socket string) {
	run := func(args ...string) string {
		var out bytes.Buffer
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Env = []string{"HOME=" + t.TempDir(), "VAULT_ADDR=unix://" + socket, "VAULT_TOKEN=" + Placeholder}
		cmd.Stdout, cmd.Stderr = &out, &out
		must.NoError(t, cmd.Run(), must.Func(func() string { return out.String() }))
		return out.String()
	}
	run("kv", "put", "-mount=secret", "cli", "a=1")
	must.Eq(t, "1\n", run("kv", "get", "-mount=secret", "-field=a", "cli")+"\n")
	var self struct{ Data map[string]any }
	must.NoError(t, json.Unmarshal([]byte(run("token", "lookup", "-format=json")), &self))
	must.StrNotContains(t, self.Data["id"].(string), "hvs")
	var wrapped vaultapi.Secret
	must.NoError(t, json.Unmarshal([]byte(run("kv", "get", "-mount=secret", "-wrap-ttl=60s", "-format=json", "cli")),
		&wrapped))
	must.StrContains(t, run("unwrap", wrapped.WrapInfo.Token), "map[a:1]")
}
