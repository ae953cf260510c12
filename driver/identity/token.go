package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// A Token is one signed identity of a task. It prints itself as "[redacted]" under every verb and encoder. The zero
// Token has no JWT. Nobody has checked the signature: the times are for messages and for the next look, never for a
// decision about access.
type Token struct {
	IssuedAt time.Time // zero if it does not say
	Expires  time.Time // zero: never, which is Nomad's default for an identity without a ttl
	// Audience are the parties that it is for. It is empty if it does not say, or in no form of RFC 7519 §4.1.3.
	Audience []string
	// Behind a pointer, because fmt calls no method on an unexported field of another struct: it prints an address then.
	jwt *string
}

const redacted = "[redacted]"

// JWT is the secret itself, for the login request and nothing else.
func (t Token) JWT() string {
	if t.jwt == nil {
		return ""
	}
	return *t.jwt
}

// String is "[redacted]".
func (t Token) String() string { return redacted }

// GoString is "[redacted]".
func (t Token) GoString() string { return redacted }

// Format writes "[redacted]" for every verb, those included that would look past String, such as %d.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText is "[redacted]"; encoding/json and hclog's JSON lines use it.
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// signatureSize is the least number of bytes of a signature by the two algorithms Nomad signs with
// (nomad/structs/keyring.go: 2048-bit RSA since 1.7, Ed25519 before). Without it a JWT that was read half-written would
// look whole.
var signatureSize = map[string]int{"RS256": 256, "EdDSA": 64}

// parse reads a JWT in the compact form of RFC 7515 §7.1. Its errors say what is wrong with the form and quote nothing.
func parse(text string) (Token, error) {
	parts := strings.SplitN(text, ".", 4)
	if len(parts) != 3 || strings.ContainsAny(text, " \t\r\n") {
		return Token{}, errors.New("it is not three parts with dots between them")
	}
	var header struct {
		Alg string `json:"alg"`
	}
	if !decode(parts[0], &header) || header.Alg == "" {
		return Token{}, errors.New("its header is not JSON with an alg")
	}
	var claims struct {
		IssuedAt *float64 `json:"iat"`
		Expires  *float64 `json:"exp"`
		Audience any      `json:"aud"`
	}
	if !decode(parts[1], &claims) {
		return Token{}, errors.New("its claims are not JSON of the types RFC 7519 gives them")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) == 0 || len(signature) < signatureSize[header.Alg] {
		return Token{}, errors.New("its signature is cut short")
	}
	return Token{IssuedAt: date(claims.IssuedAt), Expires: date(claims.Expires), Audience: audience(claims.Audience),
		jwt: &text}, nil
}

// decode reads one base64url part that must hold a JSON object.
func decode(part string, into any) bool {
	data, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) && json.Unmarshal(data, into) == nil
}

// audience reads the claim aud, which is a text or a list of texts.
func audience(claim any) (all []string) {
	list, many := claim.([]any)
	if !many {
		list = []any{claim}
	}
	for _, one := range list {
		if text, ok := one.(string); ok {
			all = append(all, text)
		}
	}
	return all
}

// date is what a number of seconds since 1970 stands for, with or without a fraction (RFC 7519 §2), within the years
// that a calendar has. No number is no time.
func date(seconds *float64) time.Time {
	if seconds == nil {
		return time.Time{}
	}
	whole, fraction := math.Modf(min(max(*seconds, -1<<40), 1<<40))
	return time.Unix(int64(whole), int64(fraction*1e9))
}
