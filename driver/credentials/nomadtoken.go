package credentials

import (
	"errors"
	"fmt"
	"os"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/identity"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/internal/inode"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// nomadTokenFile is where Nomad keeps the Vault token that it derives for a task with a vault block outside of
// config, whether or not the job wants to see it (client/allocrunner/taskrunner/vault_hook.go).
const nomadTokenFile = "private/vault_token"

// nomadToken returns a function that reads the token that Nomad derived. It returns nil unless the vault block says
// nothing of how to log in, the task has no identity to log in with, and there is such a token.
func nomadToken(block config.Vault, cfg *drivers.TaskConfig) func() (string, error) {
	source := IdentitySource(block, cfg)
	if block.Role != "" || block.IdentityFile != "" || block.Identity != "vault" || len(block.Policies) > 0 {
		return nil
	}
	if _, err := source.Peek(); !errors.Is(err, identity.ErrAbsent) {
		return nil
	}
	if !HasNomadToken(cfg) {
		return nil
	}
	return func() (string, error) { return readNomadToken(cfg.TaskDir().Dir) }
}

// HasNomadToken reports whether Nomad has derived a token for the task.
func HasNomadToken(cfg *drivers.TaskConfig) bool {
	_, err := readNomadToken(cfg.TaskDir().Dir)
	return !errors.Is(err, os.ErrNotExist)
}

// readNomadToken reads the token that Nomad derived for the task with that directory. No task sees the file, yet it
// is read as one that a task could have made.
func readNomadToken(taskDir string) (string, error) {
	root, err := os.OpenRoot(taskDir)
	if err != nil {
		return "", fmt.Errorf("open task directory: %w", err)
	}
	defer root.Close()
	const most = 64 << 10
	text, _, err := inode.Read(root, nomadTokenFile, most)
	if err != nil {
		return "", fmt.Errorf("read the token that Nomad derived: %s: %w", nomadTokenFile, err)
	}
	token := vault.TokenIn(text)
	if token == "" {
		return "", fmt.Errorf("read the token that Nomad derived: %s holds none", nomadTokenFile)
	}
	return token, nil
}
