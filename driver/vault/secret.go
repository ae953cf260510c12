package vault

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/api"
	"golang.org/x/crypto/ssh"
)

// Op is what a Request does at its path.
type Op string

// The three operations a template can ask for.
const (
	Read  Op = "read"
	Write Op = "write"
	List  Op = "list"
)

// Request is one question to Vault. Two requests that differ in no more than Every, Before, Optional and Revoke are the
// same question.
type Request struct {
	Op    Op             `json:"op"`
	Path  string         `json:"path"`
	Query url.Values     `json:"query,omitempty"` // of a read: version=2
	Data  map[string]any `json:"data,omitempty"`  // of a write

	// Every is how often an answer without a lease is read again to notice a change; zero: never, and a lease that ends
	// is then not replaced either (a template with once = true).
	Every time.Duration `json:"every"`

	// Before is how long before its end an answer that cannot be renewed is replaced, but not in the first half of its
	// life; zero: at 85 % of its life.
	Before time.Duration `json:"before,omitempty"`

	// Optional makes it an answer that there is nothing at the path of a read yet: an Absent secret, which is polled.
	Optional bool `json:"optional,omitempty"`

	// Revoke is where Vault revokes a certificate that was issued without a lease: pki/revoke-with-key, or pki/revoke
	// where the answer has no key. Empty: it is left to end.
	Revoke string `json:"revoke,omitempty"`
}

// Format keeps what a template sends to Vault out of logs, errors and panics.
func (r Request) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%s %s", r.Op, r.Path) }

// Key identifies the question: requests with the same key are the same.
func (r Request) Key() string {
	data, _ := json.Marshal(r.Data) // maps are marshalled in key order; what a template passes is strings
	return string(r.Op) + " " + r.Path + "?" + r.Query.Encode() + " " + string(data)
}

// Secret is one answer of Vault. It is never changed after it was made: every generation that shows it shares it. It
// does not print its data.
type Secret struct {
	Path      string         `json:"path"` // as Vault's API has it, with a KV v2 mount's data/
	RequestID string         `json:"request_id,omitempty"`
	Data      map[string]any `json:"data"`
	Warnings  []string       `json:"warnings,omitempty"`
	Lease     Lease          `json:"lease"` // as granted
	Kind      Kind           `json:"kind"`

	// Auth is the token that the answer is of a token store or a login; nil: of neither. It is renewed and revoked by
	// itself, as a lease is.
	Auth     *Auth             `json:"auth,omitempty"`
	Metadata map[string]string `json:"auth_metadata,omitempty"` // that Vault has of it
}

// Kind is how a secret is kept current.
type Kind string

const (
	// Leased secrets have a lease that is renewed or replaced.
	Leased Kind = "leased"
	// Expiring secrets say when they end without having a lease: certificates, signed tokens. They are replaced.
	Expiring Kind = "expiring"
	// Rotating secrets are changed by Vault at a time that it tells, or whenever an operator says so: database static
	// roles.
	Rotating Kind = "rotating"
	// OfToken answers tell of the token that asked. They are read again when that is another.
	OfToken Kind = "of-token"
	// Polled secrets change whenever somebody writes them.
	Polled Kind = "polled"
	// Fixed answers have no end and asking again could create something: most writes.
	Fixed Kind = "fixed"
)

// String keeps the data out of logs and error messages.
func (s Secret) String() string { return "[secret " + s.Path + "]" }

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// Handle is what the secret is revoked by, its lease's ID, a token's accessor or a certificate's serial number. It is
// empty where it has none, and where there is no secret.
func (s *Secret) Handle() string {
	switch {
	case s == nil:
		return ""
	case s.Auth != nil:
		return s.Auth.Accessor
	case s.Kind == Expiring:
		serial, _ := s.Data["serial_number"].(string)
		return serial
	}
	return s.Lease.ID
}

// ChildNamespace is the namespace of the secret's lease where that is a child of the one that was asked, with a slash
// at its end; empty where it is the same.
func (s *Secret) ChildNamespace() string { return childNamespace(s.Path, s.Lease.ID) }

// childNamespace reads it from a lease's ID, which is made of the path in the namespace of the lease, and one more
// segment (vault/expiration.go, Register).
func childNamespace(path, leaseID string) string {
	inside := leaseID[:max(0, strings.LastIndex(leaseID, "/"))]
	child, ok := strings.CutSuffix(path, inside)
	if !ok || inside == "" || !strings.HasSuffix(child, "/") {
		return ""
	}
	return child
}

// KVv2 reports whether the secret has the shape of a KV version 2 answer: fields below Data["data"].
func (s *Secret) KVv2() bool {
	_, data := s.Data["data"]
	_, meta := s.Data["metadata"]
	return data && meta
}

// Absent reports that there was nothing at the path, which only an Optional request takes for an answer.
func (s *Secret) Absent() bool { return s.Kind == Polled && s.Data == nil }

// Issued reports that to read the secret again issues another one.
func (s *Secret) Issued() bool { return s.Kind == Leased || s.Kind == Expiring }

// EndsWithToken reports that answers of that kind are over when the token is that they were read with.
func (k Kind) EndsWithToken() bool { return k == Leased || k == OfToken }

// newSecret reads an answer to req. engine is the mount's type as Vault names it, empty when unknown; ahead is how far
// Vault's clock is ahead of ours. Only KV v1 tells a duration without a lease (vault/request_handling.go, "KV mounts
// should return the TTL").
func newSecret(req Request, path, engine string, answer *api.Secret, now time.Time, ahead time.Duration,
	jitter float64) *Secret {
	s := &Secret{Path: path, RequestID: answer.RequestID, Data: answer.Data, Warnings: answer.Warnings}
	if answer.LeaseID != "" {
		s.Kind, s.Lease = Leased, NewLease(answer.LeaseID, span(answer.LeaseDuration), answer.Renewable, now, jitter)
		return s
	}
	if answer.Auth != nil && answer.Auth.ClientToken != "" {
		auth := newAuth(answer.Auth, now, jitter)
		s.Kind, s.Lease, s.Auth, s.Metadata = Leased, auth.Lease, &auth, answer.Auth.Metadata
		return s
	}
	if engine == "" && answer.LeaseDuration > 0 {
		engine = "kv"
	}
	end, rotation := ends(engine, answer.Data, now, ahead)
	switch {
	case req.Op == Read && path == "auth/token/lookup-self":
		s.Kind, end = OfToken, now
	case end.After(now) && rotation:
		s.Kind = Rotating
	case end.After(now):
		s.Kind = Expiring
	case req.Op == Write:
		s.Kind, end = Fixed, now
	default:
		s.Kind, end = Polled, now
	}
	s.Lease = NewLease("", end.Sub(now), false, now, jitter)
	return s
}

// keeps reports that an engine of that type only keeps what somebody wrote: to read it issues nothing.
func keeps(engine string) bool { return engine == "kv" || engine == "generic" || engine == "cubbyhole" }

// ends finds the end that an answer without a lease tells in its data, and whether Vault itself rotates it then: "ttl"
// of database static roles and of identity tokens, and what until and life find. In a KV store such keys are somebody's
// data and mean nothing.
func ends(engine string, data map[string]any, now time.Time, ahead time.Duration) (end time.Time, rotation bool) {
	if keeps(engine) {
		return time.Time{}, false
	}
	if at := until(data); at > 0 {
		return time.Unix(at, 0).Add(-ahead), false
	}
	ttl := span(int(life(data)))
	_, period := data["rotation_period"]
	_, schedule := data["rotation_schedule"]
	switch {
	case period || schedule:
		return now.Add(ttl + time.Second), true // the TTL is told in whole seconds: do not come a moment early
	case ttl > 0:
		return now.Add(ttl), false
	}
	return time.Time{}, false
}

// until is the second at which something ends, zero where the answer tells none: pki's certificates
// (https://developer.hashicorp.com/vault/api-docs/secret/pki#generate-certificate-and-key), gcp's access tokens
// (https://developer.hashicorp.com/vault/api-docs/secret/gcp, "OAuth2 Access Token") and ssh's certificates,
// which tell it themselves (PROTOCOL.certkeys of OpenSSH).
func until(data map[string]any) int64 {
	if at := cmp.Or(number(data["expiration"]), number(data["expires_at_seconds"])); at > 0 {
		return at
	}
	signed, _ := data["signed_key"].(string)
	key, _, _, _, _ := ssh.ParseAuthorizedKey([]byte(signed))
	if cert, ok := key.(*ssh.Certificate); ok && cert.ValidBefore < farAway {
		return int64(cert.ValidBefore)
	}
	return 0
}

// lives are the fields that tell for how many seconds another one is good. Alone they are settings of a role.
var lives = []struct{ issued, seconds string }{
	{"secret_id", "secret_id_ttl"}, // https://developer.hashicorp.com/vault/api-docs/auth/approle#generate-new-secret-id
	{"token", "token_ttl"},         // gcp
	{"access_token", "expires_in"}, // RFC 6749, 5.1
}

// life is for how many seconds what the answer has is good, zero where it tells none.
func life(data map[string]any) int64 {
	for _, l := range lives {
		if value, _ := data[l.issued].(string); value != "" && number(data[l.seconds]) > 0 {
			return number(data[l.seconds])
		}
	}
	return number(data["ttl"])
}

func number(v any) int64 {
	n, _ := v.(json.Number)
	f, _ := n.Float64()
	return int64(max(0, min(f, farAway)))
}

// SameContent reports whether two answers to the same question say the same. A lease is part of what a leased secret
// says: its credentials end with it. For how long a static role's password is still good is not: it is less each time.
func (s *Secret) SameContent(other *Secret) bool {
	data, others := s.Data, other.Data
	if s.Kind == Rotating {
		data, others = maps.Clone(data), maps.Clone(others)
		delete(data, "ttl")
		delete(others, "ttl")
	}
	return s.Kind == other.Kind && s.Lease.ID == other.Lease.ID && s.Path == other.Path && s.Auth.same(other.Auth) &&
		reflect.DeepEqual(data, others)
}

// Due is when an answer of that kind next wants attention, and whether that is a renewal; zero means never. Nothing is
// asked for again within a second, however short its life.
func (k Kind) Due(l Lease, every time.Duration) (at time.Time, renew bool) {
	if at, renew = l.Due(); k == Leased && renew {
		return at, true
	}
	if every <= 0 {
		return time.Time{}, false
	}
	poll := l.Issued.Add(max(time.Second, fraction(every, 0.9+0.2*l.Jitter)))
	switch k {
	case Leased, Expiring:
		if at.IsZero() {
			return at, false
		}
		if soonest := l.Issued.Add(time.Second); at.Before(soonest) {
			at = soonest
		}
		return at, false
	case Rotating: // an operator may rotate it before its time
		if rotated := l.Ends.Add(fraction(5*time.Second, l.Jitter)); !rotated.IsZero() && rotated.Before(poll) {
			poll = rotated
		}
		return poll, false
	case Polled:
		return poll, false
	default:
		return time.Time{}, false
	}
}

// Clean returns the request with its path as Vault's API has it.
func (r Request) Clean() Request {
	r.Path = clean(r.Path)
	return r
}

// clean is the path as Vault's API has it: templates may write a leading slash.
func clean(path string) string { return strings.Trim(path, "/ ") }

// CheckPath returns an error for a path that could lead elsewhere than it says. The Vault API joins what it is given as
// path.Join does, so that ".." leaves the mount, or Vault's API altogether. What is not printable Vault itself refuses,
// and it forges lines of logs. For Vault "%2e" is three characters, but a proxy before it may decode what it passes on.
func CheckPath(path string) error {
	path = clean(path)
	for segment := range strings.SplitSeq(path, "/") {
		if found := unsafe(decoded(segment)); found != "" {
			return &Error{Class: errRefused, Op: fmt.Sprintf("path %q", path), Detail: "it has " + found,
				Hint: "write the names of the mount and of what is below it, with one slash between two of them"}
		}
	}
	return nil
}

// unsafe is what makes a segment of a path one that is refused, empty where nothing does.
func unsafe(segment string) string {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case segment == "":
		return "an empty segment"
	case segment == ".", segment == "..":
		return fmt.Sprintf("the segment %q", segment)
	case strings.Contains(segment, "/"):
		return "an encoded slash"
	case !utf8.ValidString(segment), strings.ContainsFunc(segment, unprintable):
		return "a character that cannot be printed"
	}
	return ""
}

// escape is a byte as a URL has it.
var escape = regexp.MustCompile("%[0-9A-Fa-f]{2}")

// decoded is text without escapes, however often they were escaped themselves.
func decoded(text string) string {
	for {
		plain := escape.ReplaceAllStringFunc(text, func(code string) string {
			char, _ := url.PathUnescape(code)
			return char
		})
		if plain == text {
			return plain
		}
		text = plain
	}
}
