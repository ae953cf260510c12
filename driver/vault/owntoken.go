package vault

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// Token is a Vault token in a configuration. It prints itself as redacted.
type Token string

func (Token) String() string   { return "[redacted]" }
func (Token) GoString() string { return "[redacted]" }

// checkSource returns an error that names the field where the cluster cannot make tokens as it is configured.
func (c *Cluster) checkSource() error {
	switch {
	case c.Token != "" && c.TokenFile != "":
		return errors.New("both token and token_file are set: keep one")
	case c.TokenFile != "" && !strings.HasPrefix(c.TokenFile, "/"):
		return fmt.Errorf("token_file %q is not an absolute path", c.TokenFile)
	case c.Token != "" && !printable(string(c.Token)):
		return errors.New("token is not a Vault token: it has spaces or control characters")
	case c.Issues() && (c.Role == "" || strings.ContainsAny(c.Role, "/?#% ")):
		return fmt.Errorf("create_from_role %q: with token or token_file, name the token role that tasks get their tokens by", c.Role)
	}
	return nil
}

func printable(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// field is what the operator calls the source of the cluster's own token.
func (c *Cluster) field() string {
	if c.TokenFile != "" {
		return fmt.Sprintf("token_file (%s)", c.TokenFile)
	}
	return "token"
}

// ownToken reads the cluster's own token. A file that others can read or write, or that is none, is refused.
func (c *Cluster) ownToken() (string, error) {
	if c.TokenFile == "" {
		return string(c.Token), nil
	}
	token, err := readOwned(c.TokenFile)
	if err != nil {
		return "", &Error{Class: ErrInvalid, Op: fmt.Sprintf("read token_file of vault %q", c.Name), Detail: err.Error()}
	}
	return token, nil
}

func readOwned(name string) (string, error) {
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
	token := TokenIn(text)
	if err != nil || token == "" {
		return "", fmt.Errorf("%s holds no token", name)
	}
	return token, nil
}

// TokenIn returns the Vault token that a file with this text holds, empty where it holds none.
func TokenIn(text []byte) string {
	if token := strings.TrimSpace(string(text)); printable(token) {
		return token
	}
	return ""
}
