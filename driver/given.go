package driver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"nomad-driver-vault/driver/identity"

	"github.com/hashicorp/nomad/plugins/drivers"
)

// nomadsToken is where Nomad keeps the Vault token that it derives for a task with a vault block outside of config, whether the job wants to
// see it or not (client/allocrunner/taskrunner/vault_hook.go).
const nomadsToken = "private/vault_token"

// given returns the source of Nomad's token for a vault block that says nothing of how to log in, in a task without an identity to log in with;
// nil for every other.
func given(block VaultConfig, cfg *drivers.TaskConfig) func() (string, error) {
	source := identitySource(block, cfg)
	if block.Role != "" || block.IdentityFile != "" || block.Identity != "vault" || len(block.Policies) > 0 {
		return nil
	}
	if _, err := source.Peek(); !errors.Is(err, identity.ErrAbsent) {
		return nil
	}
	read := func() (string, error) { return readToken(cfg.TaskDir().Dir) }
	if _, err := read(); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return read
}

// readToken reads Nomad's token of the task with that directory. No task sees the file, yet it is read as one that a task could have made:
// never through a link, never blocking, never without a limit.
func readToken(taskDir string) (string, error) {
	root, err := os.OpenRoot(taskDir)
	if err != nil {
		return "", fmt.Errorf("open task directory: %w", err)
	}
	defer root.Close()
	file, err := root.OpenFile(filepath.FromSlash(nomadsToken), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", fmt.Errorf("read the token that Nomad derived: %w", err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("read the token that Nomad derived: %s is not a file", nomadsToken)
	}
	const most = 64 << 10
	text, err := io.ReadAll(io.LimitReader(file, most))
	token := strings.TrimSpace(string(text))
	if err != nil || token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("read the token that Nomad derived: %s holds none", nomadsToken)
	}
	return token, nil
}
