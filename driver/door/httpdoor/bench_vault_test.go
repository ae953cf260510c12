package httpdoor

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"nomad-driver-vault/driver/door"
)

// BenchmarkVault reads a secret of a real Vault through a door, and through Vault's own proxy, which adds a token too,
// 250 times a second: such a Vault has not many more answers.
func BenchmarkVault(b *testing.B) {
	binary, address, root := realVault(b)
	_, err := root.KVv2("secret").Put(b.Context(), "app", map[string]any{"key": "value"})
	must.NoError(b, err)
	listen := socketsOf(b)
	spec := specOf("")
	spec.HTTP, spec.Vault = nil, &door.Vault{Address: address, Paths: []string{"secret/data/app"}}
	all := map[string]side{
		"plain": plainProxy(b, listen("plain"), address, http.Header{"X-Vault-Token": {root.Token()}}),
		"door": doorSide(b, listen("door"), spec, &door.Credential{Generation: 1, Token: root.Token(),
			ReadAt: time.Now()}),
		"vault-proxy": vaultProxy(b, binary, address, root.Token()),
	}
	const path = "/v1/secret/data/app"
	names := []string{"plain", "door", "vault-proxy"}
	b.Run("latency", func(b *testing.B) { addedLatency(b, all, path, 4*time.Millisecond, names) })
	b.Run("throughput", func(b *testing.B) { throughput(b, all, path, 200, names) })
}

// vaultProxy starts Vault's proxy, which adds the token to each request.
func vaultProxy(b *testing.B, binary, address, token string) side {
	dir, err := os.MkdirTemp("", "proxy")
	must.NoError(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	config, socket := filepath.Join(dir, "proxy.hcl"), filepath.Join(dir, "s")
	must.NoError(b, os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600))
	must.NoError(b, os.WriteFile(config, fmt.Appendf(nil, `
vault { address = %q }
api_proxy { use_auto_auth_token = "force" }
auto_auth {
  method {
    type   = "token_file"
    config = { token_file_path = %q }
  }
}
listener "unix" {
  address     = %q
  tls_disable = true
}`, address, filepath.Join(dir, "token"), socket), 0o600))
	cmd := exec.Command(binary, "proxy", "-config="+config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must.NoError(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s := clientTo(socket)
	must.Wait(b, wait.InitialSuccess(wait.ErrorFunc(func() error {
		if c, err := net.Dial("unix", socket); err != nil {
			return err
		} else {
			c.Close()
		}
		res, err := s.client.Get("http://door/v1/secret/data/app")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("read through Vault's proxy: %s", res.Status)
		}
		return nil
	}), wait.Timeout(30*time.Second), wait.Gap(50*time.Millisecond)))
	return s
}
