// Package vaulttest is a Vault for tests: in memory and over net.Pipe, so that a testing/synctest bubble can hold both
// it and the client, and a day passes in no time. It knows what package vault asks for: JWT logins, token roles,
// tokens, leases, KV v1 and v2, a database engine that counts its users, static roles and certificates. It can fail in
// every way that a real one does. That it speaks like a real one is what the tests of package vault against bin/vault
// show.
package vaulttest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"nomad-driver-vault/driver/vault"
)

// Planted is part of every token and password of the server: a test can look for it where no secret may be.
const Planted = "hunter2"

// Role of the JWT auth method.
type Role struct {
	TTL      time.Duration
	MaxTTL   time.Duration // zero: tokens can be renewed for ever
	Fixed    bool          // tokens cannot be renewed
	Batch    bool
	Bare     bool // tokens lack the default policy
	Policies []string
	Deny     []string // path prefixes that the policies do not grant
	Revoke   bool     // they grant sys/leases/revoke, which Vault's default policy does not
}

// TokenRole is a token role, of which tokens are made at auth/token/create/<name>.
type TokenRole struct {
	Period, ExplicitMax time.Duration
	Fixed               bool // renewable = false
	Uses                int  // token_num_uses
	Disallowed          []string
	Deny                []string // path prefixes that the policies of its tokens do not grant
}

// Creds is a role of the database engine: database/creds/<name>.
type Creds struct {
	TTL    time.Duration
	MaxTTL time.Duration // zero: leases can be renewed for ever
	Fixed  bool          // leases cannot be renewed
}

// Fault is how requests fail while it is in force. The zero Fault does nothing.
type Fault struct {
	Match  string        // method and path that a request must start with, as "GET database/creds/"; empty: all
	Status int           // answer with this status, and the body that Vault has for it, without acting
	Hang   bool          // never answer
	Reset  bool          // break the connection without acting
	Lose   bool          // act, and break the connection instead of answering
	Slow   time.Duration // act, and answer only after that long
	// while it is slow: what it makes for who hangs up before the answer has no lease and ends by its TTL only
	Forget bool
	Body   string // act, and answer this instead
	Each   int    // only each of so many requests, not those between; zero: all

	seen int // requests that match
}

// Server is one Vault, with mounts secret/ (KV v2), kv/ (KV v1), database/, pki/ and auth/jwt-nomad/. Its exported
// fields are for set-up, before the first request.
type Server struct {
	JWT   string // what a login must present
	Roles map[string]Role
	Creds map[string]Creds
	Makes map[string]TokenRole
	Ahead time.Duration // how far its clock is ahead of the client's
	Lag   time.Duration // for how long the node that answers does not know a token that another has just made

	// Child is the name of a child namespace of the one that tokens live in, with the same mounts and roles:
	// child/secret/app. Mute keeps OpenBao's mount lookup from telling of it. Empty: there is none.
	Child string
	Mute  bool

	mu     sync.Mutex
	kv     map[string]*entry // by path without data/
	static map[string]time.Duration
	began  time.Time // of static rotations

	rotated int // times that static roles were rotated by hand
	tokens  map[string]*token
	leases  map[string]*lease
	faults  []*Fault
	calls   []string
	asked   map[string]bool // namespaces
	serial  int
	certs   map[string]string // their keys
	revoked map[string]bool   // certificates
	down    bool
	conns   map[net.Conn]bool
	accept  chan net.Conn
	done    chan struct{}
}

type token struct {
	accessor  string
	role      Role
	issued    time.Time
	ends, max time.Time
	used      bool
	parent    string // the token that it was made with, and ends with
	own       bool   // made by MakeOwn: it may make tokens, and Tokens and Leaked leave it out
}

type lease struct {
	token             string
	in                string // the child namespace, with a slash at its end
	creds             Creds
	issued, ends, max time.Time
	renewed           []time.Time
	returned          bool
	forgotten         bool // it is of no token, and none knows it
}

type entry struct {
	data               map[string]any
	version            int
	deleted, destroyed bool
}

// New starts a server that ends with the test, or when an example runs what it gave to Cleanup. It has the role "app"
// of an hour, which can be renewed for ever, and accepts the JWT "jwt".
func New(t interface{ Cleanup(func()) }) *Server {
	s := &Server{JWT: "jwt", Roles: map[string]Role{"app": {TTL: time.Hour}}, Creds: map[string]Creds{},
		Makes: map[string]TokenRole{}, kv: map[string]*entry{}, static: map[string]time.Duration{},
		began: time.Now(), tokens: map[string]*token{},
		leases: map[string]*lease{}, conns: map[net.Conn]bool{}, accept: make(chan net.Conn),
		done: make(chan struct{}), asked: map[string]bool{}, certs: map[string]string{}, revoked: map[string]bool{}}
	serving := &http.Server{Handler: s, ConnState: s.connState}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = serving.Serve(listener{s})
	}()
	t.Cleanup(func() {
		close(s.done)
		_ = serving.Close()
		<-ended
	})
	return s
}

// Cluster is how a client reaches the server.
func (s *Server) Cluster() vault.Cluster {
	return vault.Cluster{Name: "default", Address: "http://127.0.0.1:8200", AuthPath: "jwt-nomad", Dial: s.dial}
}

// Identity returns the JWT that the server accepts when it is asked.
func (s *Server) Identity(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.JWT, nil
}

// Issue makes a token of the role, as somebody else does it for a task.
func (s *Server) Issue(role string) (token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, _ = s.issue(s.Roles[role])
	return token
}

// MakeOwn makes a token of a cluster's own, which its renewals extend by the period.
func (s *Server) MakeOwn(period time.Duration) (token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, t := s.issue(Role{TTL: period, Policies: []string{"nomad-server"}})
	t.own = true
	return token
}

// Lives reports whether a token does.
func (s *Server) Lives(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[token]
	return t != nil && time.Now().Before(t.ends)
}

// RevokeToken revokes one token.
func (s *Server) RevokeToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// SetTokenRole makes or changes a token role.
func (s *Server) SetTokenRole(name string, r TokenRole) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Makes[name] = r
}

// RemoveTokenRole removes a token role while sessions run.
func (s *Server) RemoveTokenRole(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.Makes, name)
}

// Certificates is how many were issued and not revoked.
func (s *Server) Certificates() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.certs) - len(s.revoked)
}

// Valid reports whether a certificate was issued and not revoked.
func (s *Server) Valid(cert string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.certs[cert] != "" && !s.revoked[cert]
}

// Extend renews a token, as somebody else does it.
func (s *Server) Extend(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[value]
	_, t.ends = extend(t.role.TTL, t.max)
}

// Put writes data in KV: below secret/ or kv/, or those of the child namespace.
func (s *Server) Put(path string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &entry{data: data, version: 1}
	if old := s.kv[path]; old != nil {
		e.version = old.version + 1
	}
	s.kv[path] = e
}

// Delete deletes what Put wrote, and destroys it for good when destroy is set.
func (s *Server) Delete(path string, destroy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(path, "kv/") {
		delete(s.kv, path)
		return
	}
	s.kv[path].deleted, s.kv[path].destroyed = true, destroy
}

// Static makes a static role of the database engine, whose password Vault rotates in that period.
func (s *Server) Static(name string, period time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.static[name] = period
}

// Rotate gives every static role another password at once.
func (s *Server) Rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotated++
}

// SetRole changes a role for the tokens to come.
func (s *Server) SetRole(name string, r Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Roles[name] = r
}

// Break puts a fault in force and returns what lifts it.
func (s *Server) Break(f Fault) (mend func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(one *Fault) bool { return one == &f })
	}
}

// Down makes the server refuse and break connections, or take them again.
func (s *Server) Down(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	for conn := range s.conns {
		if down {
			_ = conn.Close()
		}
	}
}

// Calls counts the requests so far that start with that method and path, as "PUT auth/", whatever became of them.
func (s *Server) Calls(prefix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, call := range s.calls {
		if strings.HasPrefix(call, prefix) {
			n++
		}
	}
	return n
}

// Namespaces are those that requests were for, each once, sorted. The server itself has none: as Vault's community
// edition, it does not look at the header.
func (s *Server) Namespaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.asked))
}

// Logins counts login requests.
func (s *Server) Logins() int { return s.Calls("PUT auth/jwt-nomad/login") }

// Minted counts the leases that were issued.
func (s *Server) Minted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leases)
}

// Users are the database users that exist, in no order: those whose leases have not ended.
func (s *Server) Users() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var users []string
	for id, l := range s.leases {
		if s.lives(l) {
			users = append(users, user(id))
		}
	}
	return users
}

// Issued is when leases of a database role were issued, in order.
func (s *Server) Issued(name string) (times []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.leases {
		if strings.HasPrefix(id, "database/creds/"+name+"/") {
			times = append(times, l.issued)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times
}

// Renewals returns when a lease was issued, and then when it was renewed.
func (s *Server) Renewals(lease string) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[lease]
	return append([]time.Time{l.issued}, l.renewed...)
}

// Neglected are the database users whose lease has ended although a renewal would have extended it, and when it ended.
func (s *Server) Neglected() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	users := map[string]time.Time{}
	for id, l := range s.leases {
		t := s.tokens[l.token]
		over := !l.ends.IsZero() && !time.Now().Before(l.ends)
		if over && !l.creds.Fixed && l.ends.Before(l.max) && t != nil && l.ends.Before(t.ends) {
			users[user(id)] = l.ends
		}
	}
	return users
}

// Returned are the database users that the client itself has given up: it has revoked their lease, or the token they
// came with.
func (s *Server) Returned() (users []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.leases {
		if l.returned {
			users = append(users, user(id))
		}
	}
	return users
}

// Reissue changes what a login must present.
func (s *Server) Reissue(jwt string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.JWT = jwt
}

// Tokens are the values of the tokens that live, in no order.
func (s *Server) Tokens() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for value, t := range s.tokens {
		if time.Now().Before(t.ends) && !t.own {
			values = append(values, value)
		}
	}
	return values
}

// Leaked are the tokens that live although they could be revoked: no batch tokens, and none of which the client never
// heard.
func (s *Server) Leaked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for value, t := range s.tokens {
		if t.used && !t.own && !t.role.Batch && time.Now().Before(t.ends) {
			values = append(values, value)
		}
	}
	return values
}

// RevokeTokens revokes every token, as an operator or a lost storage does it.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// RevokeLease revokes one lease, as vault lease revoke does it.
func (s *Server) RevokeLease(of string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.leases {
		if user(id) == of {
			l.ends = time.Time{}
		}
	}
}

// RevokeLeases revokes every lease, as vault lease revoke -prefix does it.
func (s *Server) RevokeLeases() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.leases {
		l.ends = time.Time{}
	}
}

// lives reports whether a lease does. One of a child namespace does not end with its token: OpenBao 2.6 looks for it in
// the token's namespace (vault/expiration.go, RevokeByToken).
func (s *Server) lives(l *lease) bool {
	t := s.tokens[l.token]
	return time.Now().Before(l.ends) && (l.forgotten || l.in != "" || t != nil && time.Now().Before(t.ends))
}

func user(leaseID string) string { return "v-" + leaseID[strings.LastIndex(leaseID, "/")+1:] }

type listener struct{ s *Server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.s.accept:
		return conn, nil
	case <-l.s.done:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return address }

var address = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8200}

func (s *Server) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: address, Err: syscall.ECONNREFUSED}
	}
	client, server := net.Pipe()
	select {
	case s.accept <- server:
		return client, nil
	case <-s.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Server) connState(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.conns[conn] = true
	case http.StateClosed:
		delete(s.conns, conn)
	}
}

// ServeHTTP answers as Vault's HTTP API does.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", time.Now().Add(s.Ahead).UTC().Format(http.TimeFormat))
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	fault := s.note(r.Method+" "+path, r.Header.Get("X-Vault-Namespace"))
	switch {
	case fault.Hang:
		select {
		case <-r.Context().Done():
		case <-s.done:
		}
		panic(http.ErrAbortHandler)
	case fault.Reset:
		panic(http.ErrAbortHandler)
	case fault.Status != 0:
		write(w, refuse(fault.Status, http.StatusText(fault.Status)))
		return
	}
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	a := s.serve(r, path, body)
	s.mu.Unlock()
	s.delay(r, fault, a)
	switch {
	case fault.Lose:
		panic(http.ErrAbortHandler)
	case fault.Body != "":
		_, _ = w.Write([]byte(fault.Body))
	default:
		write(w, a)
	}
}

// delay is what Vault does until it answers. A database user that it has made for a request that is cut off before its
// lease is registered it forgets (builtin/logical/database/path_creds_create.go, vault/expiration.go).
func (s *Server) delay(r *http.Request, fault Fault, a answer) {
	hungUp := r.Context().Done()
	if !fault.Forget {
		hungUp = nil
	}
	select {
	case <-time.After(fault.Slow):
	case <-s.done:
	case <-hungUp:
		s.mu.Lock()
		defer s.mu.Unlock()
		if id, ok := a.body["lease_id"].(string); ok && s.leases[id] != nil {
			s.leases[id].forgotten = true
		}
	}
}

// note counts the request and returns the fault in force for it.
func (s *Server) note(call, namespace string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.asked[namespace] = append(s.calls, call), true
	for _, f := range s.faults {
		if !strings.HasPrefix(call, f.Match) {
			continue
		}
		if f.seen++; f.Each == 0 || f.seen%f.Each == 0 {
			return *f
		}
	}
	return Fault{}
}

// answer is a status and, unless that is 204, a body.
type answer struct {
	status int
	body   map[string]any
}

func reply(body map[string]any) answer { return answer{http.StatusOK, body} }

func refuse(status int, said ...string) answer {
	return answer{status, map[string]any{"errors": said}}
}

func denied(more string) answer {
	return refuse(http.StatusForbidden, fmt.Sprintf("1 error occurred:\n\t* permission denied\n%s\n", more))
}

func write(w http.ResponseWriter, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	if a.status != http.StatusNoContent {
		_ = json.NewEncoder(w).Encode(a.body)
	}
}
