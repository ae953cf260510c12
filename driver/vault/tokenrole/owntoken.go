package tokenrole

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"nomad-driver-vault/driver/vault"
)

// validate returns an error that names the field where the cluster cannot make tokens as it is configured.
func validate(c vault.Cluster) error {
	switch {
	case c.Token != "" && c.TokenFile != "":
		return errors.New("both token and token_file are set: keep one")
	case c.TokenFile != "" && !strings.HasPrefix(c.TokenFile, "/"):
		return fmt.Errorf("token_file %q is not an absolute path", c.TokenFile)
	case c.Token != "" && !c.Token.Valid():
		return errors.New("token is not a Vault token: it has spaces or control characters")
	case c.Role == "" || strings.ContainsAny(c.Role, "/?#% "):
		return fmt.Errorf("create_from_role %q: with token or token_file, "+
			"name the token role that tasks get their tokens by", c.Role)
	}
	return nil
}

// tokenField is what the operator calls the place of the cluster's own token.
func tokenField(c vault.Cluster) string {
	if c.TokenFile != "" {
		return fmt.Sprintf("token_file (%s)", c.TokenFile)
	}
	return "token"
}

// readOwnToken reads the cluster's own token. A file that others can read or write, or that is none, is refused.
func readOwnToken(c vault.Cluster) (string, error) {
	if c.TokenFile == "" {
		return string(c.Token), nil
	}
	token, err := readOwnedFile(c.TokenFile)
	if err != nil {
		return "", &vault.Error{Class: vault.ErrInvalid, Op: fmt.Sprintf("read token_file of vault %q", c.Name),
			Detail: err.Error()}
	}
	return token, nil
}

func readOwnedFile(name string) (string, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) {
		return "", fmt.Errorf("%s is a symbolic link: name the file", name)
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	switch owner := info.Sys().(*syscall.Stat_t).Uid; {
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a regular file", name)
	case int(owner) != os.Geteuid():
		return "", fmt.Errorf("%s belongs to user %d: chown it to %d", name, owner, os.Geteuid())
	case info.Mode().Perm()&0o027 != 0:
		return "", fmt.Errorf("%s has mode %04o, which lets others in: chmod it to 0600", name, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, 64<<10))
	token := vault.TokenIn(text)
	if err != nil || token == "" {
		return "", fmt.Errorf("%s holds no token", name)
	}
	return token, nil
}
