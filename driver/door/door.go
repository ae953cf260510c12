// Package door has what all doors are made of. A door is a listener of one task. What the task sends there goes to one
// upstream, with a credential that the door adds and the task never has.
//
// The plugin runs as root, makes the listeners and renders the credentials. An unprivileged process, of package
// process, serves the doors: it alone reads what a task or an upstream has sent. This package is what the two say to
// each other. The kinds of doors are packages of their own: httpdoor and postgresdoor.
package door

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// A Spec is what is known of a door before it opens: the job's block, and what the operator permits. It has no
// credential.
type Spec struct {
	ID       string    // unique on the node: allocation, task and name
	Name     string    // of the block
	HTTP     *HTTP     `json:",omitempty"` // of these three, one is set
	Vault    *Vault    `json:",omitempty"`
	Postgres *Postgres `json:",omitempty"`

	Dial   Dial
	Peers  Peers
	Secret string // that clients over TCP show, see SecretOf; "": none is demanded

	Rate        float64       // calls (HTTP) or connections (PostgreSQL) a second; zero: no bound
	Burst       int           // with Rate
	MaxConns    int           // of clients at a time, and as many to the upstream
	HeaderTime  time.Duration // for a request's header, or for a login
	IdleTimeout time.Duration // of a connection that does nothing
	Stale       time.Duration // how long a credential is used that cannot be made anew; zero: no bound
	Record      Record
}

// SecretOf returns what a client must show on a connection: as the first segment of each path, or as the password of
// PostgreSQL. Each process of a network can connect over TCP. A socket's file has an owner and a mode in place of a
// secret.
func (s Spec) SecretOf(c net.Conn) string {
	if c != nil && c.LocalAddr().Network() == "unix" {
		return ""
	}
	return s.Secret
}

// Format keeps the secret out of logs, errors and panics.
func (s Spec) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[door %s]", s.ID) }

// HTTP is a door to one origin.
type HTTP struct {
	URL          string   // scheme, host and perhaps a path, which is put before that of each request
	Methods      []string // none: all but CONNECT and TRACE
	Paths        []string // "*" at the end or as a whole segment; none: all. Relative to URL
	EncodedSlash bool     // %2f in a path is let through
	Scrub        Scrub
	Header       []string // names of the headers and parameters that the credential sets. The task's own are removed
	Query        []string
	ClientCert   bool   // the credential has one
	CAs          []byte // PEM, for the upstream's certificate; nil: the host's
}

// Vault is a door to a Vault cluster, with the task's own token.
type Vault struct {
	Address       string
	Namespace     string
	Paths         []string // narrow the token's policies; none: they are enough
	Passthrough   bool     // a client's own token is sent in the place of the task's
	TLSServerName string
	CAs           []byte // PEM; nil: the host's
}

// Postgres is a door to one database.
type Postgres struct {
	URL  string // postgres://host:port/database?sslmode=verify-full, without user and password
	Role string // that each session has from its start, as by SET ROLE; "": none
	CAs  []byte // PEM; nil: the host's
}

// Scrub says where the credential is looked for in an upstream's answers, and made unreadable.
type Scrub string

// The values of the option scrub.
const (
	ScrubFull    Scrub = "full" // headers, trailers and bodies
	ScrubHeaders Scrub = "headers"
	ScrubOff     Scrub = "off"
)

// Record says which calls are written down: of those that Calls names, one of Sample.
type Record struct {
	Calls  RecordCalls
	Sample int
}

// Wants reports whether the nth call of a door, counted from zero, is written down.
func (r Record) Wants(n int64, refused bool) bool {
	switch r.Calls {
	case RecordOff:
		return false
	case RecordDenied:
		return refused
	}
	return refused || r.Sample <= 1 || n%int64(r.Sample) == 0
}

// RecordCalls are the values of the option record.
type RecordCalls string

// Calls that are refused are always among those that are recorded, unless none is.
const (
	RecordAll    RecordCalls = "all"
	RecordDenied RecordCalls = "denied"
	RecordOff    RecordCalls = "off"
)

// Dial says which addresses a door may connect to. They are judged after the name was resolved.
type Dial struct {
	AllowHosts []string       // "*.example.com" for one label or more before it; none: all
	AllowCIDRs []netip.Prefix // also loopback, link-local and this node's own ones, which are else not allowed
}

// Peers says who may use a door's socket.
type Peers struct {
	Cgroups []string // paths in /proc/<pid>/cgroup, of which the peer's must be one or be below one; none: all
}

// A Credential is what a door adds to a call, all of it of one generation. Which fields are set depends on the kind of
// the door.
type Credential struct {
	Generation uint64    // higher than any before it of the same door
	Accessor   string    // for the record: of the token that is the credential, or that has read it
	Leases     []string  // for the record: IDs of Vault's leases that the credential ends with
	ReadAt     time.Time // when it was last known to be current: Stale counts from then

	Header   map[string]string // also what bearer and basic_auth make
	Query    map[string]string
	CertPEM  []byte // client certificate and its key
	KeyPEM   []byte
	Token    string // of Vault
	Username string // of PostgreSQL
	Password string
}

// Format keeps the credential out of logs, errors and panics.
func (c Credential) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[credential of generation %d]", c.Generation)
}

// A Door serves one Spec. Its methods may be called at any time, at once.
type Door interface {
	// Serve serves the connections of a listener until Close is called, or the listener fails for good: the error says
	// how. Running out of file descriptors is not for good.
	Serve(l net.Listener) error
	// Use has calls that begin from now on use c. Calls in flight keep what they have. With nil the door refuses all.
	Use(c *Credential)
	// Close ends the door: no call begins, and those in flight are cut off when ctx is over.
	Close(ctx context.Context)
	Counters() Counters
}

// Plugin is what a door asks of the plugin.
type Plugin interface {
	// Reread says that the upstream has refused the credential of a generation, which may have been replaced. It
	// returns when Use was called with what a new reading gave, or with an error when there is nothing newer.
	Reread(ctx context.Context, generation uint64) error
	// Unused says that a generation that is not current any more has no call in flight: its lease can be revoked.
	Unused(generation uint64)
	// Call records what became of a call. It never blocks.
	Call(Call)
}

// Call is a line of the record.
type Call struct {
	Time       time.Time     `json:"time"`
	Door       string        `json:"door"` // ID of the Spec
	Generation uint64        `json:"generation,omitempty"`
	Accessor   string        `json:"accessor,omitempty"` // of the Credential, as are leases
	Leases     []string      `json:"leases,omitempty"`
	PID        int           `json:"pid,omitempty"` // of the peer of a socket, in the node's own namespace
	UID        *int          `json:"uid,omitempty"`
	Method     string        `json:"method,omitempty"`
	Path       string        `json:"path,omitempty"`    // without the query
	Status     int           `json:"status,omitempty"`  // that the task got
	Refused    string        `json:"refused,omitempty"` // why the door refused the call; "" for an upstream's answer
	Error      string        `json:"error,omitempty"`
	Sent       int64         `json:"sent"`     // bytes of bodies to the upstream
	Received   int64         `json:"received"` // and from it
	Duration   time.Duration `json:"duration_ns"`
}

// With notes the credential of a call.
func (c *Call) With(used *Credential) {
	c.Generation, c.Accessor, c.Leases = used.Generation, used.Accessor, used.Leases
}

// Counters are totals since the door was opened, and what is in flight.
type Counters struct {
	Connections int64 // open now
	Calls       int64
	InFlight    int64
	Refused     int64 // by the door
	Failed      int64 // the upstream could not be reached, or broke off
	Sent        int64 // bytes
	Received    int64
}
