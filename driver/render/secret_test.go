package render

import (
	"net/url"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
)

func TestSecretBlockAsksWhatTheCommandsOfVaultAsk(t *testing.T) {
	for name, test := range map[string]struct {
		block config.Secret
		want  vault.Request
	}{
		"vault read": {config.Secret{Method: "read", Path: "aws/sts/x", Args: map[string]string{"ttl": "1h"}},
			vault.Request{Op: vault.Read, Path: "aws/sts/x", Query: url.Values{"ttl": {"1h"}}}},
		"vault kv get -version": {config.Secret{Method: "read", Path: "kv/x", Version: 3, Optional: true},
			vault.Request{Op: vault.Read, Path: "kv/x", Query: url.Values{"version": {"3"}}, Optional: true}},
		"vault write": {config.Secret{Method: "write", Path: "ssh/sign/x", Args: map[string]string{"ttl": "1h"}},
			vault.Request{Op: vault.Write, Path: "ssh/sign/x", Data: map[string]any{"ttl": "1h"}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &test.block
			b.Output = config.Output{Vault: "default", Perms: "0600", Splay: "5s", ChangeMode: "noop"}
			task := &config.Task{KillTimeout: "5s", Secrets: map[string]*config.Secret{"x": b}}
			must.NoError(t, task.Validate(config.Operator{}))
			must.Eq(t, test.want, secretBlock{b}.request())
		})
	}
}
