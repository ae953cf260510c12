package vault

import "strings"

// Token is a Vault token in a configuration. It prints itself as redacted.
type Token string

// String keeps the token out of logs and error messages.
func (Token) String() string { return "[redacted]" }

// GoString is String, for %#v.
func (Token) GoString() string { return "[redacted]" }

// Valid reports whether it can be a token: it is not empty and has no spaces or control characters.
func (t Token) Valid() bool {
	return t != "" && !strings.ContainsFunc(string(t), func(r rune) bool { return r <= ' ' || r > '~' })
}

// TokenIn returns the Vault token that a file with this text holds, empty where it holds none.
func TokenIn(text []byte) string {
	if token := strings.TrimSpace(string(text)); Token(token).Valid() {
		return token
	}
	return ""
}
