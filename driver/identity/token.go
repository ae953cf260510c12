package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Token is one signed identity of a task. It prints itself as "[redacted]" under every verb and encoder; its claims
// are public and may be shown. The zero Token has no JWT.
type Token struct {
	Claims
	// Behind a pointer, because fmt calls no method on an unexported field of another struct: it prints an address then.
	jwt *string
}

// Claims are what the JWT says of itself: the registered claims of RFC 7519 §4.1 that matter here, and Nomad's own
// (https://developer.hashicorp.com/nomad/docs/concepts/workload-identity). Nobody has checked the signature: they are
// for messages and for the time of the next look, never for a decision about access.
type Claims struct {
	Issuer   string
	Subject  string
	Audience []string
	IssuedAt time.Time // zero if it does not say
	Expires  time.Time // zero: never, which is Nomad's default for an identity without a ttl

	Namespace string // nomad_namespace
	JobID     string // nomad_job_id
	Task      string // nomad_task
	AllocID   string // nomad_allocation_id
}

const redacted = "[redacted]"

// JWT is the secret itself, for the login request and nothing else.
func (t Token) JWT() string {
	if t.jwt == nil {
		return ""
	}
	return *t.jwt
}

// Same reports whether both are the same signed JWT; a renewed one is not.
func (t Token) Same(other Token) bool { return t.JWT() == other.JWT() }

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
	var claims wireClaims
	if !decode(parts[1], &claims) {
		return Token{}, errors.New("its claims are not JSON of the types RFC 7519 gives them")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) == 0 || len(signature) < signatureSize[header.Alg] {
		return Token{}, errors.New("its signature is cut short")
	}
	return Token{Claims: claims.named(), jwt: &text}, nil
}

// decode reads one base64url part that must hold a JSON object.
func decode(part string, into any) bool {
	data, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) && json.Unmarshal(data, into) == nil
}

type wireClaims struct {
	Issuer    string      `json:"iss"`
	Subject   string      `json:"sub"`
	Audience  audience    `json:"aud"`
	IssuedAt  numericDate `json:"iat"`
	Expires   numericDate `json:"exp"`
	Namespace string      `json:"nomad_namespace"`
	JobID     string      `json:"nomad_job_id"`
	Task      string      `json:"nomad_task"`
	AllocID   string      `json:"nomad_allocation_id"`
}

func (c wireClaims) named() Claims {
	return Claims{
		Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience, IssuedAt: c.IssuedAt.Time, Expires: c.Expires.Time,
		Namespace: c.Namespace, JobID: c.JobID, Task: c.Task, AllocID: c.AllocID,
	}
}

// audience is one string or a list of them (RFC 7519 §4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = nil
		if one != "" {
			*a = audience{one}
		}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// numericDate is a number of seconds since 1970, with or without a fraction (RFC 7519 §2).
type numericDate struct{ time.Time }

func (d *numericDate) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	seconds, err := strconv.ParseFloat(string(data), 64)
	if err != nil || math.Abs(seconds) >= 1<<40 {
		return errors.New("not a date")
	}
	whole, fraction := math.Modf(seconds)
	d.Time = time.Unix(int64(whole), int64(fraction*1e9))
	return nil
}
